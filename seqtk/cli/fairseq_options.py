"""Translates fairseq's options to seqtk's keys, for suggestions when `--option value` is given."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqtk.cli.recipe_files import recipe_names
from seqtk.config import schema
from seqtk.config.registry import REGISTRIES
from seqtk.utils.errors import UserError
from seqtk.utils.suggestions import closest, nearest_key

KEYS: dict[str, str] = {
    "activation_dropout": "model.activation_dropout",
    "activation_fn": "model.activation",
    "adam_betas": "optimizer.betas",
    "adam_eps": "optimizer.eps",
    "adaptive_softmax_cutoff": "model.adaptive.cutoffs",
    "adaptive_softmax_dropout": "model.adaptive.dropout",
    "arch": "model",
    "attention_dropout": "attention.dropout",
    "batch_size": "batch.max_sentences max_sentences",
    "best_checkpoint_metric": "validation.metric",
    "bpe": "tokens",
    "clip_norm": "clip_norm",
    "context_window": "context_window",
    "criterion": "criterion",
    "data": "task.data data",
    "decoder_attention_heads": "model.decoder.heads model.heads",
    "decoder_embed_dim": "model.decoder.dim model.dim",
    "decoder_ffn_embed_dim": "model.decoder.ffn_dim model.ffn_dim",
    "decoder_layers": "model.decoder.layers model.layers",
    "destdir": "destdir",
    "dropout": "model.dropout",
    "encoder_attention_heads": "model.encoder.heads model.heads",
    "encoder_embed_dim": "model.encoder.dim model.dim",
    "encoder_ffn_embed_dim": "model.encoder.ffn_dim model.ffn_dim",
    "encoder_layers": "model.encoder.layers model.layers",
    "finetune_from_model": "init_from",
    "gen_subset": "split",
    "input": "input",
    "inputs": "checkpoint",
    "keep_best_checkpoints": "checkpoint.keep_best",
    "keep_interval_updates": "checkpoint.keep_last",
    "keep_last_epochs": "checkpoint.keep_last",
    "label_smoothing": "criterion.label_smoothing",
    "lenpen": "length_penalty",
    "log_interval": "log.every",
    "lr": "optimizer.lr",
    "lr_period_updates": "schedule.period",
    "lr_scheduler": "schedule",
    "max_epoch": "max_epochs",
    "max_len_a": "max_length_a validation.search.max_length_a",
    "max_len_b": "max_length_b validation.search.max_length_b",
    "max_sentences": "batch.max_sentences max_sentences",
    "max_source_positions": "model.max_source_length",
    "max_target_positions": "model.max_target_length model.max_length",
    "max_tokens": "batch.max_tokens max_tokens",
    "max_update": "max_updates",
    "min_len": "min_length",
    "momentum": "optimizer.momentum",
    "nbest": "nbest",
    "no_repeat_ngram_size": "no_repeat_ngram",
    "num_epoch_checkpoints": "last",
    "num_update_checkpoints": "last",
    "num_workers": "batch.workers",
    "optimizer": "optimizer",
    "output": "output",
    "output_word_probs": "output",
    "path": "checkpoint",
    "patience": "validation.patience",
    "prefix_size": "prefix_size",
    "ref": "reference",
    "required_batch_size_multiple": "batch.size_multiple",
    "sample_break_mode": "task.break_mode break_mode",
    "sampling_topk": "top_k",
    "sampling_topp": "top_p",
    "save_dir": "save_dir",
    "save_interval_updates": "checkpoint.every",
    "seed": "seed",
    "source_lang": "task.source_lang source_lang",
    "srcdict": "source_dict",
    "sys": "hypothesis",
    "t_mult": "schedule.t_mult",
    "target_lang": "task.target_lang target_lang",
    "task": "task",
    "temperature": "temperature",
    "testpref": "test",
    "tgtdict": "target_dict",
    "tokens_per_sample": "task.tokens_per_sample tokens_per_sample",
    "trainpref": "train",
    "unkpen": "unk_penalty",
    "update_freq": "update_freq",
    "user_dir": "user_dir",
    "valid_subset": "validation.split",
    "validate_interval_updates": "validation.every",
    "validpref": "valid",
    "warmup_updates": "schedule.warmup_updates",
    "weight_decay": "optimizer.weight_decay",
    "workers": "workers",
}
"""Option of fairseq → keys of seqtk. The suggestion uses the first key that the command has."""

CONSTANTS: dict[str, str] = {
    "bf16": "precision=bf16",
    "cpu": "device=cpu",
    "decoder_normalize_before": "model.pre_norm=true",
    "encoder_normalize_before": "model.pre_norm=true",
    "eval_bleu": "validation.decode=true",
    "fp16": "precision=bf16",
    "joined_dictionary": "joint=true",
    "layernorm_embedding": "model.norm_embedding=true",
    "memory_efficient_fp16": "precision=bf16",
    "no_scale_embedding": "model.scale_embedding=false",
    "only_source": "target_lang=null",
    "sampling": "sampling=true",
    "score_reference": "score_reference=true",
    "share_all_embeddings": "model.share_embeddings=all",
    "share_decoder_input_output_embed": "model.share_embeddings=decoder",
    "unnormalized": "normalize_scores=false",
}
"""Option of fairseq without a value → the equivalent setting of seqtk."""

ADVICE: dict[str, str] = {
    "ddp_backend": "start several processes with torchrun, and set parallel=ddp or parallel=fsdp2",
    "distributed_world_size": "start several processes with torchrun",
    "maximize_best_checkpoint_metric": "validation.metric determines the direction",
    "nwordssrc": "set vocab_size",
    "nwordstgt": "set vocab_size",
    "remove_bpe": "output is always plain text",
    "reset_optimizer": "use a new save_dir, and init_from=MODEL_FILE to keep the weights",
    "restore_file": "a run resumes from its save_dir; init_from=MODEL_FILE starts a new run from a model",
    "tensorboard_logdir": "log.tensorboard=true writes save_dir/tensorboard",
    "thresholdsrc": "set vocab_size",
    "thresholdtgt": "set vocab_size",
    "tokenizer": "SentencePiece tokenizes the text; for tokenized text, set tokens=words",
}
"""Option of fairseq without an equivalent setting → advice on what to use instead."""

NOT_NEEDED = {
    "checkpoint_suffix",
    "dataset_impl",
    "eval_bleu_args",
    "eval_bleu_detok",
    "eval_bleu_print_samples",
    "eval_bleu_remove_bpe",
    "fp16_init_scale",
    "left_pad_source",
    "log_format",
    "no_epoch_checkpoints",
    "no_last_checkpoints",
    "no_progress_bar",
    "quiet",
    "raw_text",
    "skip_invalid_size_inputs_valid_test",
    "threshold_loss_scale",
    "warmup_init_lr",
}
"""Options of fairseq that seqtk does not need. The suggested command omits them."""

NO_COUNTERPART = "this command has no such setting"

SHORT = {"a": "arch", "s": "source_lang", "t": "target_lang", "r": "ref", "o": "criterion"}

POSITIONAL: dict[str, tuple[str, ...]] = {
    "seqtk-score": ("hypothesis", "reference"),
    "seqtk-classify": ("checkpoint", "input"),
    "seqtk-evaluate": ("checkpoint", "input"),
}
"""Command → keys of its positional arguments. In other commands, the argument is the data or the checkpoint."""

SLOTS = ("task", "model", "optimizer", "schedule", "criterion")


def translate(program: str, arguments: Sequence[str], config: Any, *, recipes: bool) -> UserError:
    """Returns the error for arguments that do not have the form key=value.

    The error suggests the equivalent command of seqtk, or the most similar key.
    """
    pairs, positional = _options(arguments)
    unknown = next((argument for argument in arguments if argument.startswith("-")), None)
    problem = (
        f"There is no option {unknown}. Settings have the form key=value; --help lists them."
        if unknown
        else f"'{positional[0]}' does not have the form key=value."
    )
    for name, value in pairs:  # kinds first, because they determine which keys exist
        key = KEYS.get(name, "")
        if key in SLOTS and hasattr(config, key):
            kind = _kind(key, value)
            if kind:
                config = schema.update(config, key, kind)
    known = schema.keys(config)
    translated, advice = [], []
    has_path = any(name == "path" for name, _ in pairs)
    for key, value in zip(_positional_keys(program, known, has_path=has_path), positional, strict=False):
        if "checkpoint" in known and not has_path and _is_model(Path(value)):
            key = "checkpoint"
        translated.append(f"{key}={_quoted(value)}")
    for name, value in pairs:
        if name == "=":
            translated.append(value)
            continue
        setting, note = _setting(name, value, known)
        if setting is None and not note and name not in NOT_NEEDED:
            leaves = [*known, *(["recipe"] if recipes else [])]
            return UserError(problem, nearest_key(name, [], leaves) or "--help lists all keys.")
        if setting is not None and setting not in translated:
            translated.append(setting)
        if note:
            advice.append(f"--{name.replace('_', '-')}: {note}")
    meant = f"Did you mean: {program} {' '.join(translated)}" if translated else ""
    return UserError(problem, meant, "; ".join(dict.fromkeys(advice)) + ("." if advice else ""))


def _options(arguments: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Splits the arguments into (options, positional arguments).

    An option is (name, value). An argument of the form key=value is returned as the option ("=", argument).
    """
    pairs: list[tuple[str, str]] = []
    positional: list[str] = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("-") or argument == "-":
            if "=" in argument:
                pairs.append(("=", argument))
            else:
                positional.append(argument)
            continue
        option, equals, value = argument.partition("=")
        name = option.lstrip("-").replace("-", "_")
        name = SHORT.get(name, name)
        takes_value = name not in CONSTANTS and name not in NOT_NEEDED
        if not equals:
            follows = bool(remaining) and (not remaining[0].startswith("-") or _is_number(remaining[0]))
            value = remaining.pop(0) if takes_value and follows and "=" not in remaining[0] else "true"
            if takes_value and name == "inputs":
                while remaining and not remaining[0].startswith("-"):
                    value += f",{remaining.pop(0)}"
        pairs.append((name, value))
    return pairs, positional


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text) is not None


def _is_model(path: Path) -> bool:
    """Returns True if a path is a model file or the folder of a run."""
    return path.suffix == ".safetensors" or (path / "latest").exists()


def _positional_keys(program: str, known: Sequence[str], *, has_path: bool) -> tuple[str, ...]:
    if program in POSITIONAL:
        return POSITIONAL[program]
    keys = ("task.data", "data", *(() if has_path else ("checkpoint",)))
    return tuple(key for key in keys if key in known)[:1]


def _setting(name: str, value: str, known: Sequence[str]) -> tuple[str | None, str]:
    """Returns (`key=value` for an option of fairseq, or None; advice on what to use instead, or "")."""
    if name in CONSTANTS:
        has_key = CONSTANTS[name].partition("=")[0] in known
        return (CONSTANTS[name], "") if has_key else (None, NO_COUNTERPART)
    by_leaf = {key.rpartition(".")[2]: key for key in sorted(known, key=lambda key: -key.count("."))}
    keys = KEYS.get(name, "").split()
    key = next((key for key in keys if key in known), None if keys else by_leaf.get(name))
    if key is None:
        return None, ADVICE.get(name, NO_COUNTERPART if keys else "")
    if key in SLOTS:
        kind = _kind(key, value)
        if kind is None and key == "model" and value in recipe_names():
            return f"recipe={value}", ""
        if kind is None:
            names = list(REGISTRIES[key])
            return None, f"there is no {key} '{value}'; set {key}= to one of {', '.join(names[:6])}" + (
                ", …" if len(names) > 6 else ""
            )
        return f"{key}={kind}", ""
    if key == "tokens":
        value = value if value in ("characters", "bytes") else "sentencepiece"
    if value.startswith("(") or key.endswith("cutoffs"):
        value = "[" + ",".join(re.findall(r"[^(),\s]+", value)) + "]"
    return f"{key}={_quoted(value)}", ""


def _kind(slot: str, value: str) -> str | None:
    """Returns the name in a slot's registry that corresponds to fairseq's name, or None."""
    registry = REGISTRIES.get(slot, ())
    value = {
        "fixed": "constant",
        "polynomial_decay": "polynomial",
        "translation_multi_simple_epoch": "translation",
    }.get(value, value)
    family = [name for name in registry if name.partition("_")[0] == value.partition("_")[0]]
    return value if value in registry else closest(value, family)


def _quoted(value: str) -> str:
    """Quotes a value for a shell."""
    return f"'{value}'" if re.search(r"[\s'\"$&|;<>()]", value) else value
