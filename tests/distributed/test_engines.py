"""Every attention layer, criterion and model trains under `ddp` and `fsdp2` as in one process."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from seqtk.attention import Role, attentions
from seqtk.data.preprocess import PreprocessConfig, preprocess
from tests.distributed.matrix import Case, distance, train

TOLERANCE = 1e-6
SLOTS = {
    Role.ENCODER: "model.encoder.self_attention",
    Role.CAUSAL: "model.decoder.self_attention",
    Role.CROSS: "model.decoder.cross_attention",
}
RANDOM = ("reformer",)
"""Layers that draw numbers in each forward pass, as dropout does: processes draw others than one process."""
STACKS = ("model.encoder.layers=2", "model.decoder.layers=2")
CRITERIONS = {
    "nll": ("criterion=cross_entropy",),
    "smoothed": ("criterion=label_smoothed_cross_entropy",),
    "sum": ("criterion={kind:sum,parts:[{criterion:{kind:cross_entropy}},{weight:0.5}]}",),
}


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data-bin of lines with a class."""
    folder = tmp_path_factory.mktemp("words")
    draws = np.random.default_rng(1)
    for split, lines in (("train", 120), ("valid", 12)):
        text = [" ".join(f"w{word}" for word in draws.integers(0, 40, draws.integers(3, 20))) for _ in range(lines)]
        (folder / split).write_text("\n".join(text) + "\n")
    target = folder / "data-bin"
    preprocess(
        PreprocessConfig(
            tokens="words", train=f"{folder}/train", valid=(f"{folder}/valid",), destdir=str(target), workers=1
        )
    )
    (target / "classes.txt").write_text("no\nyes\n")
    for split, lines in (("train", 120), ("valid", 12)):
        np.save(target / f"{split}.labels.npy", np.arange(lines, dtype=np.int32) % 2)
    return target


def layers(role: Role) -> Iterator[tuple[str, Case]]:
    """Each attention layer that has this role in a translation model."""
    for name in attentions:
        if role in attentions.class_of(attentions.config_type(name)).roles:
            yield name, (*STACKS, f"{SLOTS[role]}={{kind:{name}}}")


def models(words: Path) -> Iterator[tuple[str, Case]]:
    """Each model with each criterion, and variants that share or split tables."""
    lm = (
        f"task={{kind:language_modeling,data:{words},tokens_per_sample:24}}",
        "model=transformer_lm",
        "model.layers=2",
    )
    memory = (lm[0], "model={kind:recurrent_memory_lm,segment_length:10,memory_tokens:2}", "model.layers=2")
    masked = (f"task={{kind:masked_lm,data:{words},tokens_per_sample:24}}", "model=transformer_masked_lm")
    classes = (f"task={{kind:classification,data:{words}}}", "model=transformer_classifier")
    kinds = {
        "transformer": STACKS,
        "lm": lm,
        "memory": memory,
        "masked": (*masked, "model.encoder.layers=2"),
        "classifier": (*classes, "model.encoder.layers=2"),
    }
    for name, case in kinds.items():
        for criterion, settings in CRITERIONS.items():
            yield f"{name}-{criterion}", (*case, *settings)
    yield "untied", (*STACKS, "model.share_embeddings=none")
    bands = (*lm, *CRITERIONS["nll"])
    yield "adaptive", (*bands, "model.adaptive={cutoffs:[15,30]}")
    yield (
        "untied-bands",
        (*bands, "model.adaptive={cutoffs:[15,30],tie_projections:false}", "model.tie_embeddings=false"),
    )
    yield "streams", (*lm, "attention=transformer_xl", "model.positions=none", "batch.streams=4")
    yield "memory-tokens", (*STACKS, "model.encoder.memory_tokens=3", "model.pre_norm=true")
    yield "penalty", (*STACKS, "attention={kind:feedforward_kernel,orthogonality:10}")
    yield "redraws", (*STACKS, "attention={kind:performer,redraw_every:1}")
    yield "frozen", (*STACKS, "freeze=[encoder.blocks.0,target_embedding]")
    yield "rates", (*STACKS, "layer_decay=0.5", "lr_scales=[{name:encoder,scale:0.1}]")
    yield "average", (*STACKS, "ema.decay=0.9")
    yield "decoding", (*STACKS, "validation.decode=true", "validation.metric=chrf", "validation.search.max_length_b=5")
    yield "histograms", (*STACKS, "attention=convluna", "log.histograms=1")


def check(cases: dict[str, Case], folder: Path, corpus: Path, *, processes: int) -> None:
    """Trains all cases with one process and with several, and compares their weights."""
    cases = {
        name: case if any(s.startswith("task") for s in case) else (f"task.data={corpus}", *case)
        for name, case in cases.items()
    }
    train(cases, folder / "one", of=processes)
    for engine in ("ddp", "fsdp2"):
        train(cases, folder / engine, engine=engine, processes=processes, of=processes)
    found = {
        f"{engine}/{name}": distance(folder / ("ddp" if name in RANDOM else "one") / name, folder / engine / name)
        for engine in ("ddp", "fsdp2")
        for name in cases
    }
    print(f"{len(found)} runs; largest difference {max(found.values()):.1e}")
    assert {name: value for name, value in found.items() if not value <= TOLERANCE} == {}


HANDFUL = ("transformer-smoothed", "streams", "penalty", "average", "decoding")
"""Cases of the fast suite."""
REPRESENTATIVE = (
    *HANDFUL,
    "lm-nll",
    "memory-sum",
    "masked-nll",
    "classifier-smoothed",
    "untied-bands",
    "frozen",
    "rates",
)
"""Cases with four processes."""


class TestEquality:
    def test_handful(self, words: Path, tiny_corpus: Path, tmp_path: Path) -> None:
        every = dict(models(words))
        check({name: every[name] for name in HANDFUL}, tmp_path, tiny_corpus, processes=2)

    @pytest.mark.slow
    @pytest.mark.parametrize("role", SLOTS)
    def test_layers(self, role: Role, tiny_corpus: Path, tmp_path: Path) -> None:
        check(dict(layers(role)), tmp_path, tiny_corpus, processes=2)

    @pytest.mark.slow
    def test_models(self, words: Path, tiny_corpus: Path, tmp_path: Path) -> None:
        check(dict(models(words)), tmp_path, tiny_corpus, processes=2)

    @pytest.mark.slow
    def test_four_processes(self, words: Path, tiny_corpus: Path, tmp_path: Path) -> None:
        every = dict(models(words))
        check({name: every[name] for name in REPRESENTATIVE}, tmp_path, tiny_corpus, processes=4)
