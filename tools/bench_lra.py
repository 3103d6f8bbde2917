"""Measures byte-level classifiers, as in the text task of the Long Range Arena: speed, memory and loading.

    python tools/bench_lra.py [--only PART …] [--layers NAME …] [--lengths N …] [--device cuda --rows 32]

The benchmark has four parts:

`speed`    Updates per second and peak memory of each layer at each length, and their ratios to `softmax` in the same
           run, as in the speed table of Tay et al. 2021 (arXiv 2011.04006). Each layer is measured in a separate
           process, alternately with `softmax`, one update each. The ratio is the median of all rounds. The memory is
           the increase during an update, so it does not include the weights and the optimizer's state.
`memory`   Peak memory of an update with a `linear` layer, for 1k to 16k bytes. If memory grows linearly with the
           length, the memory per byte is constant.
`loading`  Examples per second that the loader reads from a memory-mapped data-bin, and that training consumes.
`plain`    Training speed, compared with a plain torch loop around torch.nn.TransformerEncoder with the same sizes,
           dropout and batches. The plain loop has its batches in memory. Both train in separate processes, alternately,
           one update each of the same batch. Before the timing, their losses are compared: they start from the same
           weights and train without dropout.

The data are random bytes with random labels. In `loading` and `plain`, the lengths are distributed like those of movie
reviews, with a maximum of 1,024. The model has the sizes of the Long Range Arena's code: 4 blocks of width 256, with
1024 hidden units and 4 heads. An update has 4,096 bytes (--positions) or, if --rows is set, this number of examples (32
in the paper). Dropout is 0.1. The dropout of attention weights, which some layers do not have, is 0, except in `plain`
(--attention-dropout).
"""

import argparse
import contextlib
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import (
    Worker,
    has_bf16,
    in_a_process,
    keep_freed_memory,
    kind_of,
    memory,
    return_freed_memory,
    seconds,
    serve,
    settings_of,
    table,
)
from torch import Tensor, nn
from torch.nn import functional

from seqtk.checkpoint.model_file import tensors_of
from seqtk.config import schema
from seqtk.data.char_tokenizer import byte_vocabulary
from seqtk.data.encoder_batches import ClassBatch
from seqtk.data.indexed_writer import IndexedWriter
from seqtk.data.loader import load_updates
from seqtk.data.plan import Position, epoch_batches, updates
from seqtk.data.vocabulary import PAD, UNK
from seqtk.training.config import TrainConfig
from seqtk.training.parallel import start_engine
from seqtk.training.trainer import Trainer

PARTS = ("speed", "memory", "loading", "plain")
LAYERS = (
    *("softmax", "synthesizer_random", "random+dot", "synthesizer_dense", "dynamic_conv", "linear", "performer"),
    *("linformer", "nystrom", "sliding_window", "bigbird", "reformer", "sinkhorn", "luna"),
)
REVIEW_MEAN, REVIEW_DEVIATION, REVIEW_LIMIT = 6.9, 0.72, 1024
"""Mean and standard deviation of the logarithm of the lengths of movie reviews in bytes, and the maximum length."""
CLIP_NORM, ADAM = 1.0, {"lr": 5e-4, "betas": (0.9, 0.98), "eps": 1e-8}
WARM_UP = 2
"""The number of updates before the timing starts."""


@dataclass(frozen=True)
class Cell:
    """The measurement of one layer at one length."""

    layer: str
    length: int
    rate: float
    """Updates per second."""
    speed: float
    """The rate relative to softmax."""
    gib: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run; default: all")
    parser.add_argument("--layers", nargs="+", default=list(LAYERS), help="softmax is always measured")
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 2048, 3072, 4096])
    parser.add_argument("--long", nargs="+", type=int, default=[1024, 2048, 4096, 8192, 16384], help="for `memory`")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--ffn-dim", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--positions", type=int, default=4096, help="bytes in an update")
    parser.add_argument("--rows", type=int, help="examples in an update, at every length")
    parser.add_argument("--attention-dropout", type=float, default=0.0, help="for all parts except `plain`")
    parser.add_argument("--rounds", type=int, default=5, help="number of timed updates of each layer")
    parser.add_argument("--examples", type=int, default=2000, help="examples in the data of `loading` and `plain`")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="for all parts except `plain`")
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=["ours", "plain", "losses"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.worker:
        {"ours": _serve_ours, "plain": _serve_plain, "losses": _losses}[arguments.worker](arguments)
        return
    with tempfile.TemporaryDirectory(prefix="bench-lra-") as folder:
        arguments.data = Path(folder)
        for part in arguments.only:
            {"speed": _speed, "memory": _memory, "loading": _loading, "plain": _plain}[part](arguments)


# --- the model and its data ---


def make_data(folder: Path, lengths_N: np.ndarray) -> Path:
    """Makes a labeled data-bin of random bytes, with texts of the given lengths in two classes. Returns its folder."""
    random = np.random.default_rng(1)
    vocabulary = byte_vocabulary()
    folder.mkdir(parents=True)
    vocabulary.save(folder / "dict.txt")
    (folder / "classes.txt").write_text("neg\npos\n")
    labels_N = np.arange(len(lengths_N), dtype=np.int32) % 2
    sizes_N = lengths_N + 1
    flat = random.integers(UNK + 1, len(vocabulary), int(sizes_N.sum()))
    flat[np.cumsum(sizes_N) - 1] = 2  # EOS ends each item
    for split in ("train", "valid"):
        np.save(folder / f"{split}.labels.npy", labels_N)
        with IndexedWriter(folder / split, vocabulary_size=len(vocabulary)) as writer:
            writer.extend_arrays(flat, sizes_N)
    return folder


def make_reviews(arguments: argparse.Namespace, name: str) -> Path:
    """Makes a labeled data-bin of random texts that are as long as movie reviews. Returns its folder."""
    length_N = np.random.default_rng(2).lognormal(REVIEW_MEAN, REVIEW_DEVIATION, arguments.examples)
    longest = min(REVIEW_LIMIT, arguments.positions)
    return make_data(arguments.data / name, length_N.round().clip(16, longest).astype(np.int64))


def trainer(
    arguments: argparse.Namespace,
    layer: str,
    data: Path,
    *,
    length: int,
    dropout: float = 0.1,
    attention_dropout: float | None = None,
    **batching: Any,
) -> Trainer:
    """Returns a Trainer, whose updates the caller runs one by one. `batching` are settings of `batch`."""
    dropped = arguments.attention_dropout if attention_dropout is None else attention_dropout
    sizes = {"heads": arguments.heads, "max_length": length, "dropout": dropped}
    tree = {
        "device": arguments.device,
        "precision": arguments.precision,
        "save_dir": str(data / "no-run"),  # nothing is saved
        "max_updates": 1_000_000,
        "clip_norm": CLIP_NORM,
        "batch": {"max_tokens": arguments.positions, **batching},
        "task": {"kind": "classification", "data": str(data)},
        "model": {
            "kind": "transformer_classifier",
            "dim": arguments.dim,
            "ffn_dim": arguments.ffn_dim,
            "heads": arguments.heads,
            "dropout": dropout,
            "activation_dropout": dropout,
            "max_source_length": length,
            "encoder": {
                "layers": arguments.blocks,
                "self_attention": {"kind": kind_of(layer), **settings_of(layer, **sizes)},
            },
        },
        "criterion": "cross_entropy",
        "optimizer": {"kind": "adam", **ADAM},
        "schedule": {"kind": "constant"},
    }
    return Trainer(schema.from_dict(TrainConfig, tree), engine=start_engine(device=arguments.device))


def batches_of(run: Trainer) -> Iterator[ClassBatch]:
    """Yields the batches of the training data in training order, epoch after epoch."""
    epoch = 0
    while epoch := epoch + 1:
        order = epoch_batches(run.train_set.sizes_ND, run.config.batch, seed=1, epoch=epoch)
        plan = updates(order, position=Position(epoch=epoch))
        for _, loaded in load_updates(plan, run.train_set, run.task.collate, device=run.engine.device):
            yield loaded[0]  # type: ignore[misc]


# --- speed and memory of layers ---


def _speed(arguments: argparse.Namespace) -> None:
    cells: dict[str, list[Cell]] = {}
    for layer in dict.fromkeys(["softmax", *arguments.layers]):
        cells[layer], exit_code = in_a_process(lambda layer=layer: _cells(arguments, layer))  # type: ignore[misc]
        print(f"{layer:20} " + " ".join(f"{cell.length}:{cell.rate:.3g}/s ({cell.speed:.2f})" for cell in cells[layer]))
        if exit_code:
            print(f"{layer}: the process failed with exit code {exit_code}", file=sys.stderr)
    reference = {cell.length: cell.gib for cell in cells["softmax"]}
    speeds, sizes = (
        {f"`{name}`": {f"{cell.length:,}": text(cell) for cell in row} for name, row in cells.items()}
        for text in (
            lambda cell: f"{cell.rate:.3g} ({cell.speed:.2f})",
            lambda cell: f"{cell.gib:.3g} ({cell.gib / max(reference.get(cell.length, 0), 1e-9):.2f})",
        )
    )
    rows = f"{arguments.rows} examples" if arguments.rows else f"{arguments.positions:,} bytes"
    about = f"{rows} an update, {arguments.precision}, {arguments.device}, {arguments.threads} threads"
    print(f"\nUpdates per second by length (relative to softmax); {about}\n{table('layer', speeds)}")
    print(f"\nGiB at the peak of an update (relative to softmax)\n{table('layer', sizes)}", flush=True)


def _cells(arguments: argparse.Namespace, layer: str) -> Iterator[Cell]:
    """Yields the measurement of a layer at each length. Its updates alternate with updates of softmax."""
    torch.set_num_threads(arguments.threads)
    gib = {length: _peak(arguments, layer, length) for length in arguments.lengths}
    keep_freed_memory()
    for length in arguments.lengths:
        data = _data_of_length(arguments, layer, length)
        steps = [_step(arguments, name, data, length) for name in dict.fromkeys([layer, "softmax"])]
        for step in steps:
            for _ in range(WARM_UP):
                step()
        turns = [[seconds(step, arguments.device) for step in steps] for _ in range(arguments.rounds)]
        speed = statistics.median(turn[-1] / turn[0] for turn in turns)
        yield Cell(layer, length, 1 / statistics.median(turn[0] for turn in turns), speed, gib[length])


def _peak(arguments: argparse.Namespace, layer: str, length: int) -> float:
    """Returns the peak memory of an update in GiB. Must be called before `keep_freed_memory`."""
    return_freed_memory()
    step = _step(arguments, layer, _data_of_length(arguments, layer, length), length)
    step()  # the optimizer allocates its state
    return memory(step, arguments.device)


def _data_of_length(arguments: argparse.Namespace, layer: str, length: int) -> Path:
    """Returns a data-bin with the examples of one update, all of the same length."""
    folder: Path = arguments.data / f"{layer}-{length}"
    rows = arguments.rows or max(1, arguments.positions // length)
    return folder if folder.is_dir() else make_data(folder, np.full(max(rows, 2), length))


def _step(arguments: argparse.Namespace, layer: str, data: Path, length: int) -> Callable[[], None]:
    """Returns a function that performs one update, always with the same batch."""
    rows = arguments.rows or max(1, arguments.positions // length)
    run = trainer(arguments, layer, data, length=length, max_tokens=None, max_sentences=rows)
    batch = next(batches_of(run))
    return lambda: run.update([batch])


def _memory(arguments: argparse.Namespace) -> None:
    arguments.rows = 1

    def measure() -> Iterator[tuple[int, float]]:
        torch.set_num_threads(arguments.threads)
        for length in arguments.long:
            yield length, _peak(arguments, "linear", length)

    peaks, _ = in_a_process(measure)
    row = {f"{length:,}": f"{gib:.3g} ({gib * 2**30 / length:,.0f})" for length, gib in peaks}
    print("\nGiB at the peak of an update with one example, by length in tokens (memory per token in bytes)")
    print(table("layer", {"`linear`": row}), flush=True)
    arguments.rows = None


# --- loading ---


def _loading(arguments: argparse.Namespace) -> None:
    data = make_reviews(arguments, "loading")

    def measure() -> Iterator[tuple[str, float]]:
        torch.set_num_threads(arguments.threads)
        keep_freed_memory()
        for layer in ("softmax", "linear"):
            run = trainer(arguments, layer, data, length=REVIEW_LIMIT)
            batches = batches_of(run)
            for _ in range(WARM_UP):
                run.update([next(batches)])
            read: list[ClassBatch] = []
            some = max(1, arguments.rounds * 10)
            taken = seconds(lambda: read.extend(next(batches) for _ in range(some)), "cpu")  # noqa: B023
            if layer == "softmax":
                yield "loader", sum(len(batch.ids_B) for batch in read) / taken
            few = read[: arguments.rounds]
            taken = seconds(lambda: [run.update([batch]) for batch in few], arguments.device)  # noqa: B023
            yield layer, sum(len(batch.ids_B) for batch in few) / taken

    rates, _ = in_a_process(measure)
    found = dict(rates)
    print("\nExamples per second, for texts of up to 1,024 bytes")
    rows = {"loaded in the training process": {"examples/s": f"{found['loader']:,.0f}", "loading / training": ""}}
    for layer in ("softmax", "linear"):
        ratio = found["loader"] / found[layer]
        rows[f"trained, `{layer}`"] = {"examples/s": f"{found[layer]:,.1f}", "loading / training": f"{ratio:,.0f}"}
    print(table("", rows), flush=True)


# --- against a plain loop ---


def _plain(arguments: argparse.Namespace) -> None:
    data = make_reviews(arguments, "plain")
    keys = ("dim", "ffn_dim", "heads", "blocks", "positions", "threads", "device", "rounds")
    given = [f"--{key.replace('_', '-')}={getattr(arguments, key)}" for key in keys]

    def worker(name: str, precision: str) -> Worker:
        return Worker(
            [sys.executable, __file__, "--worker", name, f"--data={data}", f"--precision={precision}", *given]
        )

    with worker("losses", "fp32") as checked:
        worst = max(abs(ours - plain) / plain for ours, plain in checked.ready)
    print(f"\nLargest relative difference of the losses of seqtk and plain torch (fp32, no dropout): {worst:.1e}")
    if not worst <= 1e-4:
        raise SystemExit("The losses differ, so the speeds cannot be compared.")
    precisions = ["fp32", *(["bf16"] if arguments.device == "cuda" or has_bf16() else [])]
    kinds = [(name, precision) for precision in precisions for name in ("plain", "ours")]
    rates: dict[tuple[str, str], list[float]] = {kind: [] for kind in kinds}
    with contextlib.ExitStack() as stack:
        workers = {kind: stack.enter_context(worker(*kind)) for kind in kinds}
        for _ in range(4 * arguments.rounds):
            for kind, each in workers.items():
                rates[kind].append(each())
    rows = {}
    for (name, precision), values in rates.items():
        ratios = {
            f"relative to plain {other}": f"{statistics.median(a / b for a, b in zip(values, base, strict=True)):.2f}"
            for other in precisions
            if (base := rates["plain", other]) is not values
        }
        rows[f"{name} {precision}"] = {"examples/s": f"{statistics.median(values):,.1f}", **ratios}
    print(f"\nTraining: softmax (ours) and torch.nn.TransformerEncoder (plain)\n{table('loop', rows)}", flush=True)


class PlainClassifier(nn.Module):
    """The same model as in seqtk, built from torch's nn.TransformerEncoder. `forward` returns logits."""

    positions_SD: Tensor

    def __init__(self, arguments: argparse.Namespace, *, vocabulary: int, dropout: float) -> None:
        super().__init__()
        dim = arguments.dim
        self.tokens = nn.Embedding(vocabulary, dim, padding_idx=PAD)
        nn.init.normal_(self.tokens.weight, std=dim**-0.5)
        layer = nn.TransformerEncoderLayer(
            dim, arguments.heads, arguments.ffn_dim, dropout=dropout, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, arguments.blocks, norm=nn.LayerNorm(dim), enable_nested_tensor=False
        )
        self.linear = nn.Linear(dim, 2)
        self.dropout = nn.Dropout(dropout)
        rate = torch.exp(torch.arange(dim // 2).double() * (-math.log(10_000) / (dim // 2 - 1)))
        angle_SE = torch.arange(2, REVIEW_LIMIT + 2).double()[:, None] * rate
        self.register_buffer("positions_SD", torch.cat([angle_SE.sin(), angle_SE.cos()], 1).float(), persistent=False)

    def forward(self, source_BS: Tensor) -> Tensor:
        pad_BS = source_BS == PAD
        x_BSD = math.sqrt(self.tokens.embedding_dim) * self.tokens(source_BS) + self.positions_SD[: source_BS.shape[1]]
        y_BSD = self.encoder(self.dropout(x_BSD), src_key_padding_mask=pad_BS)
        vector_BD = y_BSD.masked_fill(pad_BS[..., None], 0).sum(1) / (~pad_BS).sum(1, keepdim=True)
        return self.linear(vector_BD)  # type: ignore[no-any-return]


class PlainLoop:
    """A training loop in plain torch."""

    def __init__(self, arguments: argparse.Namespace, *, vocabulary: int, dropout: float) -> None:
        self.model = PlainClassifier(arguments, vocabulary=vocabulary, dropout=dropout).to(arguments.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), **ADAM)  # type: ignore[arg-type]
        self.device, self.bf16 = arguments.device, arguments.precision == "bf16"

    def update(self, batch: ClassBatch) -> Tensor:
        """Performs one update. Returns its mean loss."""
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16):
            loss = functional.cross_entropy(self.model(batch.source_BS), batch.target_B)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def _compared(arguments: argparse.Namespace, *, dropout: float) -> tuple[Trainer, Iterator[ClassBatch]]:
    """Returns seqtk's Trainer, which is compared with the plain loop, and an iterator over its batches."""
    data = arguments.data
    run = trainer(arguments, "softmax", data, length=REVIEW_LIMIT, dropout=dropout, attention_dropout=dropout)
    return run, batches_of(run)


def _serve_ours(arguments: argparse.Namespace) -> None:
    from seqtk.utils.memory import keep_freed_memory as as_in_training

    as_in_training()
    run, batches = _compared(arguments, dropout=0.1)

    def update() -> float:
        batch = next(batches)
        run.update([batch])
        _wait(arguments)
        return len(batch.ids_B)

    serve(update, warm_up=WARM_UP)


def _serve_plain(arguments: argparse.Namespace) -> None:
    run, batches = _compared(arguments, dropout=0.1)
    loop = PlainLoop(arguments, vocabulary=len(run.task.vocabulary), dropout=0.1)
    ready = iter([next(batches) for _ in range(4 * arguments.rounds + WARM_UP)])

    def update() -> float:
        batch = next(ready)
        loop.update(batch)
        _wait(arguments)
        return len(batch.ids_B)

    serve(update, warm_up=WARM_UP)


def _wait(arguments: argparse.Namespace) -> None:
    if arguments.device == "cuda":
        torch.cuda.synchronize()


def _losses(arguments: argparse.Namespace) -> None:
    """Prints the losses of seqtk and of the plain loop. Both start from the same weights and have no dropout."""
    run, batches = _compared(arguments, dropout=0.0)
    loop = PlainLoop(arguments, vocabulary=len(run.task.vocabulary), dropout=0.0)
    loop.model.load_state_dict(_plain_weights(tensors_of(run.model), blocks=arguments.blocks))
    losses = []
    for _ in range(3):
        batch = next(batches)
        before = run.state.interval.get("loss", 0.0)
        run.update([batch])
        run.read_sums()
        losses.append([(run.state.interval["loss"] - before) / len(batch.ids_B), float(loop.update(batch))])
    print(losses, flush=True)


def _plain_weights(ours: dict[str, Tensor], *, blocks: int) -> dict[str, Tensor]:
    """Returns seqtk's weights with the names that they have in PlainClassifier."""
    found = {"tokens.weight": ours["embedding.tokens.weight"]}
    for kind in ("weight", "bias"):
        found |= {
            f"linear.{kind}": ours[f"head.linear.{kind}"],
            f"encoder.norm.{kind}": ours[f"encoder.norm.{kind}"],
        }
        for block in range(blocks):
            own, other = f"encoder.blocks.{block}", f"encoder.layers.{block}"
            parts = [ours[f"{own}.self_attention.{name}.{kind}"] for name in ("query", "key", "value")]
            found |= {
                f"{other}.self_attn.in_proj_{kind}": torch.cat(parts),
                f"{other}.self_attn.out_proj.{kind}": ours[f"{own}.self_attention.out.{kind}"],
                f"{other}.linear1.{kind}": ours[f"{own}.feed_forward.expand.{kind}"],
                f"{other}.linear2.{kind}": ours[f"{own}.feed_forward.contract.{kind}"],
                f"{other}.norm1.{kind}": ours[f"{own}.self_residual.norm.{kind}"],
                f"{other}.norm2.{kind}": ours[f"{own}.ffn_residual.norm.{kind}"],
            }
    return found


if __name__ == "__main__":
    main()
