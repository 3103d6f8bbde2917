"""Measures training and decoding on a GPU, and compares training with a plain torch loop.

    python tools/bench_gpu.py --out DIR [--part NAME …] [--minutes N] [--rehearse]

The benchmark has several parts:

`laws`          Checks the laws of every attention layer on CUDA, at both sizes, and runs the other tests for CUDA.
`translation_…` Trains translation models with 6 + 6 blocks on generated sentences: base (width 512), big (1024).
`lm_…`          Trains language models of 44 and 124 million parameters, on samples of 512 and 1,024 tokens.
`synth_…`       Trains the base translation model with dense, random, and random + dot-product Synthesizers. In these
                parts, the plain loop has dot-product attention.
`decoding`      Translates with the base model, which has random weights: beam 5, 25 tokens per sentence.

Each part writes DIR/PART.json. If the file has results for the same settings, the part is skipped, unless it failed. So
an interrupted benchmark continues if the command is repeated. After --minutes, no further part starts. The table of all
finished parts is printed and written to DIR/table.md.

Training is in bf16. Four loops train the same model, each in a separate process:

- the plain loop of tools/bench_training.py, and the same loop with a compiled loss;
- the Trainer with compile=off, and with compile=step.

All batches are in the GPU's memory before the timing starts. Both compiled loops read batches made with batch.shapes.
The loops without compilation read batches made without it. The columns of the table:

`tokens/s`      Target tokens per second, without padding.
`launches`      The number of kernels and CUDA graphs that the host launches in an update. On a CPU, the number of
                operators, including views and nested operators.
`host busy`     The share of time in which the host does not wait for the GPU. Like `launches`, it is measured by
                torch's profiler, which makes the host slower.
`first update`  The time of the first update, including the compilation for one shape.

--rehearse runs all parts on the CPU at a tiny size, to test this tool. Its figures have no meaning. It traces graphs as
a GPU run does, but generates no code for them, because that would take minutes. It checks the laws of one layer only.
"""

import argparse
import dataclasses
import gc
import importlib.util
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import bench_training as bench  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from measuring import in_a_process, kind_of, seconds, settings_of, table  # noqa: E402

from seqtk.config import schema  # noqa: E402
from seqtk.data.indexed_writer import IndexedWriter  # noqa: E402
from seqtk.data.loader import load_updates  # noqa: E402
from seqtk.data.plan import real_batches  # noqa: E402
from seqtk.data.vocabulary import UNK, Vocabulary  # noqa: E402
from seqtk.generation.config import SearchConfig  # noqa: E402
from seqtk.generation.decode import BatchTranslator, Sentence  # noqa: E402
from seqtk.training.config import TrainConfig  # noqa: E402
from seqtk.training.flops import ModelFlops, peak_tflops  # noqa: E402
from seqtk.training.parallel import start_engine  # noqa: E402
from seqtk.training.trainer import Trainer  # noqa: E402
from seqtk.utils.files import write_text  # noqa: E402
from seqtk.utils.memory import peak_memory_gib  # noqa: E402

Figures = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """A model to train, and the size of its data."""

    dim: int = 512
    ffn_dim: int = 2048
    heads: int = 8
    layers: int = 6
    words: int = 32_000
    length: int | None = None
    """The number of tokens in a sample of a language model, or None for a translation model."""
    attention: str = "softmax"
    """The self-attention of the Trainer's model."""


MODELS = {
    "translation_base": Model(),
    "translation_big": Model(dim=1024, ffn_dim=4096, heads=16),
    "lm_44m": Model(words=50_304, length=512),
    "lm_124m": Model(dim=768, ffn_dim=3072, heads=12, layers=12, words=50_304, length=1024),
    "synth_dense": Model(attention="synthesizer_dense"),
    "synth_random": Model(attention="synthesizer_random"),
    "synth_mixture": Model(attention="random+dot"),
}
PARTS = ("laws", *MODELS, "decoding")
LAWS = (
    "tests/laws/test_laws.py::test_layer_obeys_the_law",
    "tests/laws/test_laws.py::test_results_on_cuda_equal_results_on_cpu",
    "tests/parity/test_attention.py::test_softmax_equals_torch_multihead_attention",
    "tests/unit/attention/test_softmax.py::test_flex_and_sdpa_train_equally_on_cuda",
)
LAWS_SECONDS = 240
OUTPUT, BEAM = 25, 5


@dataclass(frozen=True)
class Settings:
    """The settings that all parts share."""

    rehearse: bool
    tokens: int
    """batch.max_tokens"""
    shapes: int
    """batch.shapes of the compiled loops."""
    batches: int = 4
    rounds: int = 10
    """The number of timed updates of each batch."""
    examples: int = 100_000
    sentences: int = 1024
    peak_tflops: float | None = None

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    def model(self, name: str) -> Model:
        """Returns the model of a part."""
        model = MODELS[name]
        if not self.rehearse:
            return model
        length = None if model.length is None else 16
        return dataclasses.replace(model, dim=16, ffn_dim=32, heads=2, layers=1, words=100, length=length)


REHEARSAL = Settings(
    rehearse=True, tokens=256, shapes=1, batches=1, rounds=1, examples=200, sentences=8, peak_tflops=0.01
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder for the results")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="parts to run; default: all")
    parser.add_argument("--minutes", type=float, default=8.0, help="no part starts after this many minutes")
    parser.add_argument("--tokens", type=int, default=16_384, help="batch.max_tokens")
    parser.add_argument("--shapes", type=int, default=2, help="batch.shapes of the compiled loops")
    parser.add_argument("--peak-tflops", type=float, help="peak of the GPU in bf16, if seqtk does not know it")
    parser.add_argument("--rehearse", action="store_true", help="run all parts on the CPU at a tiny size")
    arguments = parser.parse_args()
    settings = Settings(
        rehearse=False, tokens=arguments.tokens, shapes=arguments.shapes, peak_tflops=arguments.peak_tflops
    )
    settings = REHEARSAL if arguments.rehearse else settings
    started, late = time.monotonic(), []
    if settings.rehearse:
        importlib.import_module("torch._dynamo.backends.debugging")  # before the fork, so that all processes have it
    elif failure := _in_a_process(dict, settings).get("failure"):
        raise SystemExit(f"The GPU cannot be used: {failure}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.part:
        path = arguments.out / f"{name}.json"
        if _is_measured(path, settings):
            print(f"{name}: already measured", flush=True)
        elif time.monotonic() - started > 60 * arguments.minutes:
            late.append(name)
        else:
            print(f"{name} …", flush=True)
            since = time.monotonic()
            rows = measure(name, settings)
            text = {"settings": dataclasses.asdict(settings), "rows": rows, "seconds": time.monotonic() - since}
            write_text(path, json.dumps(text, indent=1) + "\n")
    text = markdown(arguments.out, settings)
    write_text(arguments.out / "table.md", text)
    print(f"\n{text}")
    if late:
        raise SystemExit(f"There was no time for {', '.join(late)}. Run the same command again.")
    if any(not _is_measured(arguments.out / f"{name}.json", settings) for name in arguments.part):
        raise SystemExit("Some parts failed. Run the same command again to repeat them.")


def _read(path: Path, settings: Settings) -> dict[str, Figures]:
    """Returns the rows of a part, or an empty dict if it was not measured with the same settings."""
    if not path.is_file():
        return {}
    tree = json.loads(path.read_text())
    return dict(tree["rows"]) if tree["settings"] == dataclasses.asdict(settings) else {}


def _is_measured(path: Path, settings: Settings) -> bool:
    rows = _read(path, settings)
    return bool(rows) and not any("failure" in row for row in rows.values())


def measure(name: str, settings: Settings) -> dict[str, Figures]:
    """Measures a part. Returns name of a table row → figures of the row."""
    if name == "laws":
        return {"": laws(settings)}
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        model = settings.model("translation_base" if name == "decoding" else name)
        data = make_data(Path(folder) / "data-bin", model, settings)
        if name == "decoding":
            return {"": _in_a_process(lambda: decoding(data, model, settings), settings)}
        return {
            loop: _in_a_process(lambda loop=loop: training(data, model, settings, loop), settings)  # type: ignore[misc]
            for loop in LOOPS
        }


def _in_a_process(work: Callable[[], Figures], settings: Settings) -> Figures:
    """Runs `work` in a separate process, so that memory and errors of other loops do not affect it."""

    def report() -> Iterator[Figures]:
        torch.set_num_threads(1)
        if settings.rehearse:
            _trace_only()
        try:
            yield {**work(), "card": torch.cuda.get_device_name() if settings.device == "cuda" else "CPU"}
        except Exception as error:
            traceback.print_exc()
            yield {"failure": f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"}

    found, code = in_a_process(report)
    return found[0] if found else {"failure": f"ended with exit code {code}"}


def _trace_only() -> None:
    """Makes torch.compile only trace the forward and backward graphs, and run them without generating code."""
    compile_with = torch.compile

    def compiled(function: Any, *, fullgraph: bool = False, dynamic: bool | None = None, **_: Any) -> Any:
        return compile_with(function, fullgraph=fullgraph, dynamic=dynamic, backend="aot_eager")

    torch.compile = compiled  # type: ignore[assignment]


def markdown(out: Path, settings: Settings) -> str:
    """Returns a Markdown table of all parts that were measured."""
    rows = {}
    found = {name: _read(out / f"{name}.json", settings) for name in PARTS}
    for name, loops in found.items():
        for loop, figures in loops.items():
            speed, plain = figures.get("tokens/s"), loops.get("plain", {}).get("tokens/s")
            ratio = {"relative to plain": speed / plain} if speed and plain else {}
            shown = {key: value for key, value in {**figures, **ratio}.items() if key != "card"}
            rows[f"{name}: {loop}" if loop else name] = {key: _text(value) for key, value in shown.items()}
    cards = sorted({figures["card"] for loops in found.values() for figures in loops.values() if "card" in figures})
    about = (
        f"{', '.join(cards)}, torch {torch.__version__}, {time.strftime('%d %B %Y')}, bf16, {settings.tokens:,} tokens"
    )
    return f"{about}\n\n{table('part', rows)}\n"


def _text(value: object) -> str:
    if not isinstance(value, float | int):
        return "" if value is None else str(value).replace("|", "/")
    return f"{value:,.0f}" if isinstance(value, int) or value >= 100 else f"{value:.3g}"


# --- laws ---


def laws(settings: Settings) -> Figures:
    """Runs the tests in LAWS. Returns the numbers of passed, failed and skipped tests."""
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-W",
            "default",
            "-m",
            "not slow",
            "--tb=line",
        ]
        command += [f"--device={settings.device}", f"--junitxml={report}", *LAWS]
        if settings.rehearse:
            command += ["-k", "fnet"]
        elif importlib.util.find_spec("xdist") is not None:
            command += ["-n", "4"]
        try:
            code = subprocess.run(command, cwd=ROOT, timeout=LAWS_SECONDS, stdout=sys.stderr).returncode
        except subprocess.TimeoutExpired:
            return {"failure": f"not finished after {LAWS_SECONDS} s"}
        if not report.is_file():
            return {"failure": f"pytest ended with exit code {code}"}
        suites = ElementTree.parse(report).getroot().iter("testsuite")
        counts = [
            {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")} for suite in suites
        ]
    total = {key: sum(count[key] for count in counts) for key in counts[0]}
    failed = total["failures"] + total["errors"]
    figures = {"passed": total["tests"] - failed - total["skipped"], "failed": failed, "skipped": total["skipped"]}
    return figures | ({} if code == 0 else {"failure": f"pytest ended with exit code {code}"})


# --- training ---


def make_data(folder: Path, model: Model, settings: Settings) -> Path:
    """Makes a data-bin of random sentence pairs or, for a language model, of a random text. Returns its folder."""
    if model.length is None:
        return bench._make_corpus(folder, words=model.words, pairs=settings.examples)
    folder.mkdir(parents=True)
    vocabulary = Vocabulary([f"word{rank}" for rank in range(model.words - UNK - 1)])
    vocabulary.save(folder / "dict.txt")
    sizes_N = np.full(1000, settings.tokens * settings.batches * 2 // 1000 + 1)
    with IndexedWriter(folder / "train", vocabulary_size=len(vocabulary)) as writer:
        writer.extend_arrays(np.random.default_rng(1).integers(UNK + 1, len(vocabulary), sizes_N.sum()), sizes_N)
    return folder


def trainer(data: Path, model: Model, settings: Settings, **changes: Any) -> Trainer:
    """Returns a Trainer, whose updates the caller runs one by one. `changes` are settings that replace the defaults."""
    sizes = {"dim": model.dim, "ffn_dim": model.ffn_dim, "heads": model.heads, "dropout": 0.1}
    blocks = {"encoder": {"layers": model.layers}, "decoder": {"layers": model.layers}}
    tree: dict[str, Any] = {
        "device": settings.device,
        "precision": "bf16",
        "save_dir": str(data / "no-run"),  # nothing is saved
        "validation": {"split": "train"},  # nothing is validated
        "max_updates": 1_000_000,
        "clip_norm": bench.CLIP_NORM,
        "compile": "off",
        "batch": {"max_tokens": settings.tokens},
        "task": {"data": str(data)},
        "model": {**sizes, **blocks},
        "criterion": {"kind": "label_smoothed_cross_entropy", "label_smoothing": bench.LABEL_SMOOTHING},
        "optimizer": {"kind": "adam", **bench.ADAM},
        "schedule": {"kind": "constant"},
    }
    if model.length is not None:
        tree["task"] |= {"kind": "language_modeling", "tokens_per_sample": model.length}
        tree |= {"model": {"kind": "transformer_lm", **sizes, "layers": model.layers}, "criterion": "cross_entropy"}
    tree["model"]["attention"] = {"kind": kind_of(model.attention), **settings_of(model.attention)}
    return Trainer(schema.from_dict(TrainConfig, tree | changes), engine=start_engine(device=settings.device))


@dataclass(frozen=True)
class Work:
    """The batches to train on, which are on the device."""

    batches: Sequence[Any]
    flops: float
    """The floating-point operations of the model for all batches."""
    peak: float | None
    """The device's peak in TFLOP/s."""

    @classmethod
    def of(cls, run: Trainer, settings: Settings) -> "Work":
        """Returns the first batches of a run, on its device."""
        plan = run.plan()[: settings.batches]
        loaded = load_updates(plan, run.train_set, run.task.collate, device=run.engine.device)
        batches = [batch for _, micro_batches in loaded for batch in micro_batches]
        sizes_ND = run.train_set.sizes_ND[np.concatenate([indices for indices, _ in real_batches(plan)])]
        known = None if settings.rehearse else peak_tflops(torch.cuda.get_device_name(), "bf16")
        return cls(batches, ModelFlops(run.model).of_update(sizes_ND), settings.peak_tflops or known)


def training(data: Path, model: Model, settings: Settings, loop: str) -> Figures:
    """Trains with one of LOOPS, and returns the figures of its table row."""
    batching = {"max_tokens": settings.tokens, "shapes": settings.shapes if loop in COMPILED else None}
    update, work = LOOPS[loop](data, model, settings, loop, batching)
    gc.collect()
    device = settings.device
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def all_batches() -> None:
        for batch in work.batches:
            update(batch)

    first = seconds(lambda: update(work.batches[0]), device)
    # The first round compiles every shape, and the second one records CUDA graphs.
    for _ in range(1 if settings.rehearse else 3):
        all_batches()
    taken = statistics.median(seconds(all_batches, device) for _ in range(settings.rounds))
    peak_gib = peak_memory_gib(torch.device(device))
    launches, busy = profiled(all_batches, device)
    return {
        "tokens/s": sum(batch.weight for batch in work.batches) / taken,
        "MFU, %": work.peak and 100 * work.flops / taken / (work.peak * 1e12),
        "launches": launches / len(work.batches),
        "host busy, %": 100 * busy,
        "GiB": peak_gib,
        "first update, s": first,
    }


def _ours(data: Path, model: Model, settings: Settings, loop: str, batching: Figures) -> tuple[Any, Work]:
    mode = loop.partition("=")[2]
    run = trainer(data, model, settings, batch=batching, compile=mode)

    def update(batch: Any) -> None:
        run.update([batch])
        if (run.compilation.mode if run.compilation else "off") != mode:
            raise RuntimeError(f"compile={mode} is not possible on this machine: the Trainer ran without compilation.")

    return update, Work.of(run, settings)


def _plain(data: Path, model: Model, settings: Settings, loop: str, batching: Figures) -> tuple[Any, Work]:
    run = trainer(data, dataclasses.replace(model, attention="softmax"), settings, batch=batching)
    bench.DIM, bench.FFN_DIM, bench.HEADS, bench.LAYERS = model.dim, model.ffn_dim, model.heads, model.layers
    is_pair = model.length is None
    plain = bench.PlainLoop(
        model.words,
        dropout=0.1,
        precision="bf16",
        model=bench.PlainTransformer if is_pair else bench.PlainLanguageModel,
        label_smoothing=bench.LABEL_SMOOTHING if is_pair else 0.0,
        device=settings.device,
    )
    if loop in COMPILED:
        plain.loss = torch.compile(plain.loss, dynamic=False)  # type: ignore[method-assign]
    return plain.update, Work.of(run, settings)


LOOPS = {"plain": _plain, "plain, compiled": _plain, "seqtk, compile=off": _ours, "seqtk, compile=step": _ours}
COMPILED = ("plain, compiled", "seqtk, compile=step")


def profiled(work: Callable[[], object], device: str) -> tuple[int, float]:
    """Returns the number of kernel launches of `work`, and the share of its time in which the host does not wait."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds, acc_events=True) as profile:
        taken = seconds(work, device)
    return launches_and_busy(((event.name, event.time_range.elapsed_us()) for event in profile.events()), taken, device)


def launches_and_busy(events: Iterable[tuple[str, float]], taken: float, device: str) -> tuple[int, float]:
    """Returns the number of kernel launches among `events`, and the share of time in which the host does not wait.

    An event is (name, microseconds). `taken` is the total time in seconds.
    """
    launch = r"aten::" if device == "cpu" else r"(cuda|cu|hip)\w*(Launch\w*Kernel|GraphLaunch)"
    launches, waiting = 0, 0.0
    for name, microseconds in events:
        launches += re.match(launch, name) is not None
        waiting += microseconds / 1e6 if re.match(r"(cuda|cu|hip)\w*Synchronize", name) else 0
    return launches, max(1 - waiting / taken, 0.0)


# --- decoding ---


def decoding(data: Path, model: Model, settings: Settings) -> Figures:
    """Returns the speed and peak memory of beam search. The time includes the preparation of batches."""
    run = trainer(data, model, settings)
    search = SearchConfig(beam=BEAM, min_length=OUTPUT, max_length_b=OUTPUT)
    device = torch.device(settings.device)
    vocabulary = run.task.target_vocabulary
    translate = BatchTranslator((run.model.eval(),), vocabulary=vocabulary, search=search, device=device, bf16=True)
    order = np.argsort(run.train_set.sizes_ND[: settings.sentences, 0], kind="stable")
    sentences = [Sentence(source=run.train_set[index][1], index=index) for index in order.tolist()]
    batches = [sentences[start : start + 128] for start in range(0, len(sentences), 128)]
    translate(batches[0])
    taken = seconds(lambda: [translate(batch) for batch in batches], settings.device)
    return {"sentences/s": len(sentences) / taken, "GiB": peak_memory_gib(device)}


if __name__ == "__main__":
    main()
