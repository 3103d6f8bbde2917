"""A command line of fairseq is answered with the complete seqtk command."""

import shlex
from typing import Any

import pytest

from seqtk.cli import compose
from seqtk.cli.fairseq_options import ADVICE, CONSTANTS, KEYS, NOT_NEEDED, translate
from seqtk.config import schema
from seqtk.config.registry import REGISTRIES
from tests.unit.cli.test_refusals import COMMANDS

LINES = [
    (
        "train",
        "data-bin/X --arch transformer_iwslt_de_en --share-decoder-input-output-embed --optimizer adam "
        "--adam-betas '(0.9, 0.98)' --clip-norm 0.0 --lr 5e-4 --lr-scheduler inverse_sqrt --warmup-updates 4000 "
        "--dropout 0.3 --weight-decay 0.0001 --criterion label_smoothed_cross_entropy --label-smoothing 0.1 "
        "--max-tokens 4096 --eval-bleu --best-checkpoint-metric bleu --maximize-best-checkpoint-metric --fp16",
        "task.data=data-bin/X model=transformer_iwslt_de_en model.share_embeddings=decoder optimizer=adam "
        "optimizer.betas=[0.9,0.98] clip_norm=0.0 optimizer.lr=5e-4 schedule=inverse_sqrt schedule.warmup_updates=4000 "
        "model.dropout=0.3 optimizer.weight_decay=0.0001 criterion=label_smoothed_cross_entropy "
        "criterion.label_smoothing=0.1 batch.max_tokens=4096 validation.decode=true validation.metric=bleu "
        "precision=bf16",
    ),
    (
        "train",
        "--task language_modeling 'my data' --arch transformer_lm --decoder-layers 4 --tokens-per-sample 512 "
        "--sample-break-mode none --max-update 50000 --save-dir=checkpoints/lm",
        "task.data='my data' task=language_modeling model=transformer_lm model.layers=4 task.tokens_per_sample=512 "
        "task.break_mode=none max_updates=50000 save_dir=checkpoints/lm",
    ),
    (
        "preprocess",
        "--source-lang en --target-lang de --trainpref raw/train --validpref raw/valid --testpref raw/test "
        "--destdir data-bin/x --joined-dictionary --workers 4",
        "source_lang=en target_lang=de train=raw/train valid=raw/valid test=raw/test destdir=data-bin/x "
        "joint=true workers=4",
    ),
    (
        "generate",
        "data-bin/x --path ck/best.safetensors --beam 5 --remove-bpe --gen-subset test --lenpen 0.6 --quiet",
        "data=data-bin/x checkpoint=ck/best.safetensors beam=5 split=test length_penalty=0.6",
    ),
    ("interactive", "data-bin/x --path m --nbest 3", "checkpoint=m nbest=3"),
    (
        "eval_lm",
        "data-bin/x --path m --context-window 400 --gen-subset valid",
        "data=data-bin/x checkpoint=m context_window=400 split=valid",
    ),
    ("score", "hyp.de ref.de", "hypothesis=hyp.de reference=ref.de"),
    ("classify", "runs/a texts.txt", "checkpoint=runs/a input=texts.txt"),
    ("score", "--sys hyp.de --ref ref.de", "hypothesis=hyp.de reference=ref.de"),
    ("average", "--inputs ck --num-epoch-checkpoints 5 --output mean.pt", "checkpoint=ck last=5 output=mean.pt"),
]


def answer(command: str, line: str) -> list[str]:
    program = f"seqtk-{command.replace('_', '-')}"
    error = translate(program, shlex.split(line), COMMANDS[command](), recipes=command == "train")
    return str(error).splitlines()


@pytest.mark.parametrize(("command", "line", "meant"), LINES)
def test_fairseq_command_line_is_translated(command: str, line: str, meant: str) -> None:
    lines = answer(command, line)
    assert len(lines) <= 3
    assert lines[1] == f"Did you mean: seqtk-{command.replace('_', '-')} {meant}"
    overrides = compose.parse_overrides(shlex.split(meant))
    compose.compose(COMMANDS[command](), [], overrides)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("data-bin/X --arch wmt14_base --max-tokens 4096", "recipe=wmt14_base"),
        ("data-bin/X --arch transformer --restore-file x.pt", "resumes from its save_dir"),
        ("data-bin/X --arch transformer --finetune-from-model x.pt", "init_from=x.pt"),
        ("data-bin/X --arch fconv_iwslt_de_en", "no model 'fconv_iwslt_de_en'"),
        ("data-bin/X --arch transformer --ddp-backend no_c10d", "torchrun"),
        ("--frobnicate 3", "--help"),
        ("--max-tokenz 3", "'batch.max_tokens'"),
    ],
)
def test_errors_about_options_suggest_an_alternative(line: str, words: str) -> None:
    lines = answer("train", line)
    assert len(lines) <= 3
    assert words in "\n".join(lines)


def test_suggested_keys_exist() -> None:
    """Every key in a suggestion is a key of some command."""
    known: set[str] = set()
    for config_type in COMMANDS.values():
        configs: list[Any] = [config_type()]
        for slot in ("model", "task", "schedule", "optimizer"):
            registry = next((known for known in REGISTRIES.values() if known.kind == slot), None)
            if hasattr(configs[0], slot) and registry:
                configs += [schema.update(configs[0], slot, kind) for kind in registry]
        known |= {key for config in configs for key in schema.keys(config)}
    known |= {f"model.adaptive.{name}" for name in ("cutoffs", "dropout")}
    unknown = {key for keys in KEYS.values() for key in keys.split()} - known
    assert not unknown
    assert {setting.partition("=")[0] for setting in CONSTANTS.values()} <= known
    assert not set(CONSTANTS) & set(KEYS)
    assert not NOT_NEEDED & (set(KEYS) | set(ADVICE))
