"""Imports fairseq's language models. Imported models compute the features and scores of fairseq."""

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from seqtk.attention.softmax import SoftmaxConfig
from seqtk.data.blocks import BreakMode
from seqtk.interop.fairseq_adaptive import adaptive_config, seqtk_layout, vocabulary_size
from seqtk.interop.fairseq_file import ACTIVATIONS, FairseqFile
from seqtk.interop.fairseq_keys import current_names, seqtk_state
from seqtk.interop.fairseq_options import Options
from seqtk.models.language_model import TransformerLM, TransformerLMConfig
from seqtk.utils.errors import UserError

BREAK_MODES: dict[str, BreakMode] = {mode: mode for mode in get_args(BreakMode)}

REFUSED = {
    "add_bos_token": "samples that begin with bos",
    "character_embeddings": "a character encoder",
    "future_target": "a target that is the token after the next one",
    "past_target": "a target that is the previous token",
    "self_target": "a target that is the input token",
}
"""Options of fairseq that seqtk's language model does not support → their description. See also `REFUSED`."""


@dataclass(frozen=True)
class ImportedLanguageModel:
    """A language model of fairseq, converted to seqtk's config and tensors."""

    config: TransformerLMConfig
    state: dict[str, Tensor]
    """Parameter name in seqtk → float32 tensor. A tied tensor appears under each of its names."""
    vocabulary: int
    tokens_per_sample: int
    break_mode: BreakMode
    label_smoothing: float
    updates: int

    def model(self) -> TransformerLM:
        """Returns the network, in evaluation mode."""
        model = TransformerLM(self.config, vocabulary=self.vocabulary)
        model.load_state_dict(self.state)
        return model.eval()


def import_language_model(file: FairseqFile) -> ImportedLanguageModel:
    """Returns the language model in `file`. Raises UserError, with option or key, if seqtk cannot reproduce it."""
    options, where = file.options, file.where
    _check(options)
    state = current_names(file.tensors)
    vocabulary = vocabulary_size(state, where=where)
    config = _config(options, vocabulary=vocabulary)
    with torch.device("meta"):
        model = TransformerLM(config, vocabulary=vocabulary)
    state = seqtk_layout(state, adaptive=config.adaptive, tied=config.tie_embeddings)
    return ImportedLanguageModel(
        config=config,
        state=seqtk_state(state, model, where=where),
        vocabulary=vocabulary,
        tokens_per_sample=int(options.number("tokens_per_sample", 1024)),
        break_mode=options.known("sample_break_mode", BREAK_MODES, "none"),
        label_smoothing=file.label_smoothing,
        updates=file.updates,
    )


def _check(options: Options) -> None:
    """Raises UserError if the model is not a language model, or has a part that is not supported."""
    task = options.get("task", "language_modeling")
    if task != "language_modeling":
        raise UserError(
            f"{options.where} contains a language model that was trained for fairseq's task '{task}'.",
            "Only models of the tasks 'language_modeling' and 'translation' can be imported.",
        )
    options.refuse(REFUSED, model="language model")


def _config(options: Options, *, vocabulary: int) -> TransformerLMConfig:
    adaptive = adaptive_config(options, vocabulary=vocabulary)
    adaptive_softmax = adaptive is not None and adaptive.softmax_factor is not None
    tied = "tie_adaptive_weights" if adaptive_softmax else "share_decoder_input_output_embed"
    learned = options.get("decoder_learned_pos", False)
    with_positions = not options.get("no_token_positional_embeddings", False)
    longest = options.get("max_target_positions", None) or options.number("tokens_per_sample", 1024)
    return TransformerLMConfig(
        dim=options.size("decoder_embed_dim"),
        ffn_dim=options.size("decoder_ffn_embed_dim"),
        heads=options.size("decoder_attention_heads"),
        layers=options.size("decoder_layers"),
        attention=(SoftmaxConfig(dropout=options.number("attention_dropout", 0.0)),),
        positions=("learned" if learned else "sinusoidal") if with_positions else "none",
        max_length=int(longest),
        tie_embeddings=bool(options.get(tied, False)),
        adaptive=adaptive,
        pre_norm=bool(options.get("decoder_normalize_before", False)),
        final_norm=not options.get("no_decoder_final_norm", False),
        scale_embedding=not options.get("no_scale_embedding", False),
        norm_embedding=bool(options.get("layernorm_embedding", False)),
        activation=options.known("activation_fn", ACTIVATIONS, "relu"),
        dropout=options.number("dropout", 0.1),
        activation_dropout=options.number("activation_dropout", 0.0) or options.number("relu_dropout", 0.0),
        layer_drop=options.number("decoder_layerdrop", 0.0),
    )
