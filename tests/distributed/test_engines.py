"""Training under `ddp` and `fsdp2` equals training in one process, for all attention layers, criterions and models."""

import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from seqtk.attention import Role, attentions
from seqtk.data.preprocess import PreprocessConfig, preprocess
from tests.distributed.matrix import UPDATES, Case, distance, train, weights
from tests.e2e.runs import Run, finish, logged

TOLERANCE = 1e-6
SLOTS = {
    Role.ENCODER: "model.encoder.self_attention",
    Role.CAUSAL: "model.decoder.self_attention",
    Role.CROSS: "model.decoder.cross_attention",
}
RANDOM = ("reformer",)
"""Layers that draw random numbers in each forward pass. With two processes, these numbers are different."""
STACKS = ("model.encoder.layers=2", "model.decoder.layers=2")
CRITERIONS = {
    "nll": ("criterion=cross_entropy",),
    "smoothed": ("criterion=label_smoothed_cross_entropy",),
    "sum": (
        "criterion={kind:sum,parts:[{criterion:{kind:cross_entropy}},{criterion:{kind:label_smoothed_cross_entropy},weight:0.5}]}",
    ),
}


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a data-bin of lines with class labels."""
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
    """Yields (name, settings of a translation model) for each attention layer that has this role."""
    for name in attentions:
        if role in attentions.class_of(attentions.config_type(name)).roles:
            yield name, (*STACKS, f"{SLOTS[role]}={{kind:{name}}}")


def models(words: Path) -> Iterator[tuple[str, Case]]:
    """Yields (name, settings) of each model with each criterion, and of variants such as separate embeddings."""
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
    yield "histograms", (*STACKS, "attention=convluna", "log.histograms=1", "log.sinks=[tensorboard]")


def differences(cases: dict[str, Case], folder: Path, corpus: Path, *, processes: int) -> dict[str, float]:
    """Trains all cases with one process and with several. Returns the differences of weights above the tolerance."""
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
    return {name: value for name, value in found.items() if not value <= TOLERANCE}


HANDFUL = ("transformer-smoothed", "streams", "penalty", "average", "decoding")
"""The cases that are tested without the marker `matrix`."""


class TestEquality:
    @pytest.mark.slow
    def test_some_models_train_as_in_one_process(self, words: Path, tiny_corpus: Path, tmp_path: Path) -> None:
        every = dict(models(words))
        assert differences({name: every[name] for name in HANDFUL}, tmp_path, tiny_corpus, processes=2) == {}

    @pytest.mark.slow
    @pytest.mark.matrix
    @pytest.mark.parametrize("processes", [2, 4])
    @pytest.mark.parametrize("role", SLOTS)
    def test_every_layer_trains_as_in_one_process(
        self, role: Role, processes: int, tiny_corpus: Path, tmp_path: Path
    ) -> None:
        assert differences(dict(layers(role)), tmp_path, tiny_corpus, processes=processes) == {}

    @pytest.mark.slow
    @pytest.mark.matrix
    @pytest.mark.parametrize("processes", [2, 4])
    def test_every_model_trains_as_in_one_process(
        self, processes: int, words: Path, tiny_corpus: Path, tmp_path: Path
    ) -> None:
        assert differences(dict(models(words)), tmp_path, tiny_corpus, processes=processes) == {}


@pytest.mark.slow
def test_adafactor_trains_as_in_one_process(tiny_corpus: Path, tmp_path: Path) -> None:
    """Compares only matrices: rounding errors of vectors with gradient 0 give full steps in Adafactor."""
    cases = {"run": (f"task.data={tiny_corpus}", *STACKS, "optimizer={kind:adafactor,lr:0.01}")}
    train(cases, tmp_path / "one", of=2)
    train(cases, tmp_path / "fsdp2", engine="fsdp2", processes=2, of=2)
    one, other = (weights(tmp_path / name / "run") for name in ("one", "fsdp2"))
    found = {name: float((one[name] - other[name]).abs().max()) for name in one if one[name].ndim > 1}
    print(f"largest difference {max(found.values()):.1e}")
    assert {name: value for name, value in found.items() if not value <= 1e-5} == {}


PAIRS = [("fsdp2", "none", 1), ("fsdp2", "ddp", 3), ("fsdp2", "fsdp2", 4), ("ddp", "fsdp2", 3), ("none", "fsdp2", 2)]
"""The engine that writes a checkpoint, the engine that reads it, and the number of processes that read it."""


@pytest.mark.slow
class TestResume:
    def test_checkpoints_resume_with_different_engines(self, tiny_corpus: Path, tmp_path: Path) -> None:
        """Runs of one process (`none`) or two (`ddp`, `fsdp2`) resume with different engines in 1 to 4 processes."""
        case = (f"task.data={tiny_corpus}", *STACKS, "batch.max_sentences=3", "ema.decay=0.9")
        train({"run": (*case, "max_updates=6")}, tmp_path / "whole", of=12)
        for writer in ("none", "ddp", "fsdp2"):
            train({"run": case}, tmp_path / writer, engine=writer, processes=1 if writer == "none" else 2, of=12)
        found = {}
        for writer, reader, processes in PAIRS:
            folder = tmp_path / f"{writer} {reader} {processes}"
            shutil.copytree(tmp_path / writer, folder)
            train({"run": (*case, "max_updates=6")}, folder, engine=reader, processes=processes, of=12)
            found[folder.name] = distance(tmp_path / "whole" / "run", folder / "run")
        assert {name: value for name, value in found.items() if not value <= TOLERANCE} == {}

    def test_resuming_fsdp2_is_bit_exact(self, tiny_corpus: Path, tmp_path: Path) -> None:
        shared = (f"task.data={tiny_corpus}", *STACKS, "ema.decay=0.9", "validation.every=2")
        cases = {
            f"{optimizer} {precision}": (*shared, f"optimizer={optimizer}", f"precision={precision}")
            for optimizer, precision in product(("adam", "muon", "adafactor"), ("fp32", "bf16", "fp16"))
        }
        longer = {name: (*case, "max_updates=6") for name, case in cases.items()}
        train(longer, tmp_path / "whole", engine="fsdp2", processes=2, of=4)
        for stage in (cases, longer):
            train(stage, tmp_path / "parts", engine="fsdp2", processes=2, of=4)
        found = {name: distance(tmp_path / "whole" / name, tmp_path / "parts" / name) for name in cases}
        assert found == dict.fromkeys(cases, 0.0)


STEP = 0.1 * 0.5
"""The largest step of an update: the learning rate times the maximum norm of the gradient."""
ROUNDING = 2**-8
"""The relative spacing of bfloat16 numbers. Under fsdp2, norms, biases and gradients are also rounded to bfloat16."""
PLUGIN = """
import os
from seqtk.modules.linear import Linear

forward = Linear.forward

def noting(self, x):
    if os.environ["RANK"] == "0":
        with open(os.environ["SEEN"], "a") as file:
            print("training" if self.training else "validation", self.weight.dtype, file=file)
    return forward(self, x)

Linear.forward = noting
"""


@pytest.mark.slow
class TestPrecision:
    def test_training_gathers_weights_in_the_autocast_dtype(self, tiny_corpus: Path, tmp_path: Path) -> None:
        """Validation uses float32 weights, as they are stored."""
        (tmp_path / "notes.py").write_text(PLUGIN)
        settings = (f"user_dir={tmp_path / 'notes.py'}", "parallel={kind:fsdp2,timeout:20}", "max_updates=2")
        for precision, dtype in (("fp32", "float32"), ("bf16", "bfloat16")):
            seen = tmp_path / precision
            finish(
                tiny_corpus,
                tmp_path / f"run {precision}",
                *settings,
                f"precision={precision}",
                processes=2,
                environment={"SEEN": str(seen)},
            )
            assert set(seen.read_text().splitlines()) == {f"training torch.{dtype}", "validation torch.float32"}

    def test_bf16_variants_train_as_in_one_process(self, tiny_corpus: Path, tmp_path: Path) -> None:
        """The tolerance allows for the rounding of weights and gradients under fsdp2."""
        bf16 = (f"task.data={tiny_corpus}", *STACKS, "precision=bf16")
        cases = {
            "decoding": (*bf16, "validation.decode=true", "validation.metric=chrf", "validation.search.max_length_b=5"),
            "recomputed": (*bf16, "model.recompute_blocks=all", "model.pre_norm=true"),
            "penalty": (*bf16, "attention={kind:feedforward_kernel,orthogonality:10}"),
            "monitored": (*bf16, "attention=convluna", "log.histograms=1", "log.sinks=[tensorboard]"),
            "frozen": (*bf16, "freeze=[encoder.blocks.0,*.norm]", "ema.decay=0.9"),
            "fp16": (*bf16, "precision=fp16"),
        }
        train(cases, tmp_path / "one", of=4)
        train(cases, tmp_path / "fsdp2", engine="fsdp2", processes=2, of=4)
        found = {name: distance(tmp_path / "one" / name, tmp_path / "fsdp2" / name) for name in cases}
        print(f"largest difference {max(found.values()):.1e}")
        assert {name: value for name, value in found.items() if not value <= UPDATES * STEP * ROUNDING} == {}

    @pytest.mark.matrix
    def test_every_layer_in_bf16_trains_as_in_one_process(self, tiny_corpus: Path, tmp_path: Path) -> None:
        """Each layer is used in all of its roles. The tolerance allows for the rounding of weights and gradients."""
        cases: dict[str, list[str]] = {}
        for role, slot in SLOTS.items():
            for name, _ in layers(role):
                start = [
                    f"task.data={tiny_corpus}",
                    "model.encoder.layers=1",
                    "model.decoder.layers=1",
                    "precision=bf16",
                ]
                cases.setdefault(name, [*start, "max_updates=1"]).append(f"{slot}={{kind:{name}}}")
        train(cases, tmp_path / "one", of=2)
        train(cases, tmp_path / "fsdp2", engine="fsdp2", processes=2, of=2)
        found = {
            name: distance(tmp_path / "one" / name, tmp_path / "fsdp2" / name) for name in cases if name not in RANDOM
        }
        print(f"largest difference {max(found.values()):.1e}")
        assert {name: value for name, value in found.items() if not value <= STEP * ROUNDING} == {}


TRACED = """
import torch
torch.compiler.set_stance(force_backend="aot_eager")
"""
"""A plug-in with which graphs are traced and differentiated, but no code is generated, because that takes minutes."""


@pytest.mark.slow
class TestCompiledBlocks:
    def test_compiled_blocks_train_and_resume_under_fsdp2(self, tiny_corpus: Path, tmp_path: Path) -> None:
        """The losses equal the losses without compile to within bfloat16's rounding, and resuming is bit-exact."""
        (tmp_path / "traced.py").write_text(TRACED)
        settings = (
            "parallel={kind:fsdp2,timeout:60}",
            "batch.shapes=2",
            "precision=bf16",
            f"user_dir={tmp_path / 'traced.py'}",
        )
        for name, mode, ends in (("eager", "off", (6,)), ("whole", "blocks", (6,)), ("parts", "blocks", (3, 6))):
            for end in ends:
                case = (*settings, f"compile={mode}", f"max_updates={end}")
                printed = finish(tiny_corpus, tmp_path / name, *case, processes=2)
                assert ("Compiling (blocks)" in printed) == (mode == "blocks")
                assert "Warning" not in printed
        eager, whole = (
            [line["loss"] for line in logged(tmp_path / name) if line["kind"] == "train"] for name in ("eager", "whole")
        )
        assert len(whole) == 6
        assert whole == pytest.approx(eager, abs=2e-3)
        assert distance(tmp_path / "whole", tmp_path / "parts") == 0.0


@pytest.mark.slow
class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "key"),
        [
            (("parallel=none",), "parallel=none"),
            (("parallel={kind:fsdp2,timeout:60}", "compile=step"), "compile=step"),
        ],
    )
    def test_two_processes_refuse_unsupported_settings(
        self, tiny_corpus: Path, tmp_path: Path, settings: Case, key: str
    ) -> None:
        run = Run(tiny_corpus, tmp_path / "run", *settings, "max_updates=2", processes=2)
        assert run.wait() == 2, run.printed
        lines = [line for line in run.printed.splitlines() if line.startswith("seqtk-train: ")]
        assert sorted(line.startswith("seqtk-train: [rank") for line in lines) == [False, True]
        assert key in run.printed
        assert "Traceback" not in run.printed
        assert not (tmp_path / "run").exists()
