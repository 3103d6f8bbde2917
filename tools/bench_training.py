"""Measures the speed of training, relative to a plain torch loop and, with --against, also to another checkout.

    python tools/bench_training.py [--against CHECKOUT] [--data DATA-BIN] [--threads N] [--updates N] [--rounds N]
    python tools/bench_training.py --processes N [--data DATA-BIN] [--threads N] [--updates N] [--rounds N]

Three training loops are compared:

`ours`     `Trainer.update` of this checkout. The time includes reading and collating each batch.
`plain`    The loop below, written with torch alone. Its batches are in memory.
`against`  `ours` of the other checkout, run with the .venv and tools/bench_training.py of that checkout.

The model is the small model of the Multi30k recipes: 3 + 3 blocks of width 256, with 1024 hidden units and 4 heads, one
vocabulary of about 8,000 tokens, and 4,096 tokens per batch. Without --data, a corpus is generated: its sentences are
as long as those of Multi30k, and its word frequencies follow Zipf's law.

Each loop trains in a separate process, because the settings of the memory allocator apply to a whole process. The
processes alternate, one update each of the same batch, so that other load on the machine slows all of them. Before the
timing, `ours` and `plain` train a few updates from the same weights without dropout, and their losses are compared.

With --processes N, `ddp` (that is `ours` in N processes with parallel=ddp) is compared with `ours` in one process. Both
use the same total number of threads, and train on the same N batches in each update. The machine must be idle: if other
jobs use the cores, the threads of one process wait for each other many times longer than they compute.

B batch, S source length, T target length, D width, H heads, V vocabulary.
"""

import argparse
import contextlib
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Worker, has_bf16, serve
from torch import Tensor, nn
from torch.nn import functional

from seqtk.checkpoint.model_file import tensors_of
from seqtk.config import schema
from seqtk.data.batch import TranslationBatch
from seqtk.data.indexed_writer import IndexedWriter
from seqtk.data.loader import load_updates
from seqtk.data.plan import Position, epoch_batches, updates
from seqtk.data.vocabulary import EOS, PAD, UNK, Vocabulary
from seqtk.training.config import TrainConfig
from seqtk.training.parallel import start_engine
from seqtk.training.trainer import Trainer
from seqtk.utils.memory import keep_freed_memory

DIM, FFN_DIM, HEADS, LAYERS = 256, 1024, 4, 3
LABEL_SMOOTHING, CLIP_NORM = 0.1, 1.0
ADAM: dict[str, Any] = {"lr": 5e-4, "betas": (0.9, 0.98), "eps": 1e-8}
VOCABULARY, PAIRS = 8000, 29_000
WARM_UP = 2
"""The number of updates before the timing starts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a data-bin of one language pair; default: a generated one")
    parser.add_argument("--against", type=Path, help="another checkout, with its own .venv, to compare with")
    parser.add_argument("--bf16", action="store_true", help="also measure bf16 autocast, on a CPU that supports it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processes", type=int, default=1, help="compare one process with this number under ddp")
    parser.add_argument("--updates", type=int, default=8, help="updates timed in each round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, each with new processes")
    parser.add_argument("--checked", type=int, default=5, help="updates whose losses are compared")
    parser.add_argument("--worker", choices=["ours", "ddp", "plain", "losses"], help=argparse.SUPPRESS)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        torch.set_num_threads(arguments.threads)
        serving = {"ours": _serve_ours, "ddp": _serve_ours, "plain": _serve_plain, "losses": _losses}
        serving[arguments.worker](arguments)
        return
    if arguments.threads % arguments.processes or (arguments.processes > 1 and arguments.against):
        parser.error("--threads must be a multiple of --processes, and --against is not possible with --processes")
    with tempfile.TemporaryDirectory(prefix="bench-training-") as folder:
        arguments.data = arguments.data or _make_corpus(Path(folder) / "data-bin")
        _check_losses(arguments)
        precisions = ["fp32"]
        if arguments.bf16 and has_bf16():
            precisions.append("bf16")
        elif arguments.bf16:
            print("bf16 is not measured: this CPU has no units for it (avx512_bf16, amx_bf16) and would emulate it.")
        names = ["plain", "ours", *(["against"] if arguments.against else [])]
        if arguments.processes > 1:
            names = ["ours", "ddp"]
        _compare(arguments, [(name, precision) for precision in precisions for name in names])


def _compare(arguments: argparse.Namespace, kinds: list[tuple[str, str]]) -> None:
    """Measures the loops alternately, one update each. Prints their speeds, and the ratios of the speeds.

    Each of `kinds` is (name of a loop, precision).
    """
    rates: dict[tuple[str, str], list[float]] = {kind: [] for kind in kinds}
    for _ in range(arguments.rounds):
        with contextlib.ExitStack() as stack:
            workers = {kind: stack.enter_context(_worker(arguments, kind[0], precision=kind[1])) for kind in kinds}
            for _ in range(arguments.updates):
                for kind, worker in workers.items():
                    rates[kind].append(worker())
    print(f"target tokens/s of an update, {arguments.threads} threads: min, median, max")
    for (name, precision), values in rates.items():
        figures = "".join(f"{figure:9,.0f}" for figure in (min(values), statistics.median(values), max(values)))
        print(f"  {name:7} {precision} {figures}")
    print("ratios of the speeds on the same batch: median of all rounds (median of each round)")
    pairs = [(kind, ("plain", "fp32")) for kind in kinds if kind != ("plain", "fp32") and arguments.processes == 1]
    pairs += [(kind, ("against", kind[1])) for kind in kinds if kind[0] == "ours" and arguments.against]
    pairs += [(kind, ("ours", kind[1])) for kind in kinds if kind[0] == "ddp"]
    for kind, baseline in pairs:
        ratios = [value / base for value, base in zip(rates[kind], rates[baseline], strict=True)]
        rounds = [f"{statistics.median(part):.2f}" for part in _parts(ratios, arguments.updates)]
        names = f"{' '.join(kind)} / {' '.join(baseline)}"
        print(f"  {names:27} {statistics.median(ratios):.2f} ({', '.join(rounds)})")


def _parts(values: list[float], size: int) -> Iterator[list[float]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _worker(arguments: argparse.Namespace, name: str, *, precision: str) -> Worker:
    """Returns a worker process that trains with one of the loops, and performs one update per call."""
    python, script = sys.executable, Path(__file__)
    if name == "against":
        name, other = "ours", arguments.against.absolute()
        python, script = str(other / ".venv/bin/python"), other / "tools/bench_training.py"
    processes = arguments.processes if name == "ddp" else 1
    command = [python, str(script), "--worker", name, "--precision", precision]
    command += [f"--{key}={getattr(arguments, key)}" for key in ("data", "checked")]
    command.append(f"--threads={arguments.threads // processes}")
    if name == "ours" and arguments.processes > 1:
        command.append(f"--processes={arguments.processes}")
    return Worker(command, processes=processes)


def _check_losses(arguments: argparse.Namespace) -> None:
    """Compares the losses of `ours` and `plain`. Raises SystemExit if they differ."""
    with _worker(arguments, "losses", precision="fp32") as worker:
        pairs = worker.ready
    worst = max(abs(ours - plain) / plain for ours, plain in pairs)
    print(f"losses of ours, plain (fp32, no dropout): {'; '.join(f'{a:.6f}, {b:.6f}' for a, b in pairs)}")
    print(f"  largest relative difference {worst:.1e}")
    if not worst <= 1e-4:
        raise SystemExit("The losses differ, so the speeds cannot be compared.")


# --- ours ---


def _trainer(arguments: argparse.Namespace, *, dropout: float, update_freq: int = 1) -> Trainer:
    keep_freed_memory()
    tree = {
        "device": "cpu",
        "precision": arguments.precision,
        "save_dir": str(arguments.data / "no-run"),  # nothing is saved
        "validation": {"split": "train"},  # nothing is validated
        "max_updates": 1_000_000,
        "update_freq": update_freq,
        "clip_norm": CLIP_NORM,
        "batch": {"max_tokens": 4096},
        "task": {"data": str(arguments.data)},
        "model": {
            "dim": DIM, "ffn_dim": FFN_DIM, "heads": HEADS, "dropout": dropout,
            "encoder": {"layers": LAYERS}, "decoder": {"layers": LAYERS},
        },
        "criterion": {"kind": "label_smoothed_cross_entropy", "label_smoothing": LABEL_SMOOTHING},
        "optimizer": {"kind": "adam", **ADAM},
        "schedule": {"kind": "constant"},
    }  # fmt: skip
    return Trainer(schema.from_dict(TrainConfig, tree), engine=start_engine(device="cpu"))


def _batches(trainer: Trainer) -> Iterator[TranslationBatch]:
    """Returns the batches of the first epoch in training order, for one process and update_freq=1."""
    return (batch for (batch,) in _updates(trainer))


def _updates(trainer: Trainer) -> Iterator[list[TranslationBatch]]:
    """Returns the micro-batches of each update of the first epoch in this process, in training order."""
    config, engine = trainer.config, trainer.engine
    order = epoch_batches(trainer.train_set.sizes_ND, config.batch, seed=1, epoch=1)
    plan = updates(order, position=Position(), world=engine.size, rank=engine.rank, update_freq=config.update_freq)
    return (loaded for _, loaded in load_updates(plan, trainer.train_set, trainer.task.collate))  # type: ignore[misc]


def _serve_ours(arguments: argparse.Namespace) -> None:
    trainer = _trainer(arguments, dropout=0.1, update_freq=arguments.processes)
    batches = _updates(trainer)

    def update() -> float:
        micro_batches = next(batches)
        trainer.update(micro_batches)
        return sum(batch.weight for batch in micro_batches)

    serve(update, warm_up=WARM_UP)


# --- the plain loop ---


class PlainAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(DIM, DIM) for _ in range(4))

    def forward(self, x_BTD: Tensor, memory_BSD: Tensor, *, seen: Tensor | None = None, causal: bool = False) -> Tensor:
        query, key, value = (
            projected.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for projected in (self.query(x_BTD), self.key(memory_BSD), self.value(memory_BSD))
        )
        y_BHTE = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, is_causal=causal)
        return self.out(y_BHTE.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class PlainBlock(nn.Module):
    """A block of the encoder or, with `cross`, of the decoder, with normalization after each sublayer."""

    def __init__(self, *, dropout: float, cross: bool) -> None:
        super().__init__()
        self.self_attention, self.self_norm = PlainAttention(), nn.LayerNorm(DIM)
        if cross:
            self.cross_attention, self.cross_norm = PlainAttention(), nn.LayerNorm(DIM)
        self.expand, self.contract, self.ffn_norm = nn.Linear(DIM, FFN_DIM), nn.Linear(FFN_DIM, DIM), nn.LayerNorm(DIM)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_BTD: Tensor, memory_BSD: Tensor | None, *, seen: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        drop = self.dropout
        if memory_BSD is None:
            x_BTD = self.self_norm(x_BTD + drop(self.self_attention(x_BTD, x_BTD, seen=seen, causal=causal)))
        else:
            x_BTD = self.self_norm(x_BTD + drop(self.self_attention(x_BTD, x_BTD, causal=True)))
            x_BTD = self.cross_norm(x_BTD + drop(self.cross_attention(x_BTD, memory_BSD, seen=seen)))
        return self.ffn_norm(x_BTD + drop(self.contract(self.expand(x_BTD).relu())))  # type: ignore[no-any-return]


class PlainTransformer(nn.Module):
    """The same model as in seqtk, built from nn.Embedding, SDPA, nn.Linear, nn.LayerNorm and nn.Dropout."""

    positions_TD: Tensor

    def __init__(self, vocabulary: int, *, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, DIM, padding_idx=PAD)
        nn.init.normal_(self.tokens.weight, std=DIM**-0.5)
        self.encoder = nn.ModuleList(PlainBlock(dropout=dropout, cross=False) for _ in range(LAYERS))
        self.decoder = nn.ModuleList(PlainBlock(dropout=dropout, cross=True) for _ in range(LAYERS))
        self.dropout = nn.Dropout(dropout)
        rate = torch.exp(torch.arange(DIM // 2).double() * (-math.log(10_000) / (DIM // 2 - 1)))
        angle_TE = torch.arange(2, 1026).double()[:, None] * rate
        self.register_buffer("positions_TD", torch.cat([angle_TE.sin(), angle_TE.cos()], 1).float(), persistent=False)

    def forward(self, batch: TranslationBatch) -> Tensor:
        seen_B11S = (batch.source_BS != PAD)[:, None, None]
        memory_BSD, x_BTD = self._embed(batch.source_BS), self._embed(batch.previous_BT)
        for block in self.encoder:
            memory_BSD = block(memory_BSD, None, seen=seen_B11S)
        for block in self.decoder:
            x_BTD = block(x_BTD, memory_BSD, seen=seen_B11S)
        return functional.linear(x_BTD, self.tokens.weight)

    def _embed(self, tokens_BT: Tensor) -> Tensor:
        return self.dropout(math.sqrt(DIM) * self.tokens(tokens_BT) + self.positions_TD[: tokens_BT.shape[1]])  # type: ignore[no-any-return]


class PlainLanguageModel(PlainTransformer):
    """A language model of PlainBlocks without cross-attention."""

    def __init__(self, vocabulary: int, *, dropout: float) -> None:
        super().__init__(vocabulary, dropout=dropout)
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList(PlainBlock(dropout=dropout, cross=False) for _ in range(LAYERS))

    def forward(self, batch: Any) -> Tensor:
        x_BTD = self._embed(batch.previous_BT)
        for block in self.decoder:
            x_BTD = block(x_BTD, None, causal=True)
        return functional.linear(x_BTD, self.tokens.weight)


class PlainLoop:
    """A training loop in plain torch. `model` is the class of the model to train."""

    def __init__(
        self,
        vocabulary: int,
        *,
        dropout: float,
        precision: str,
        model: type[PlainTransformer] = PlainTransformer,
        label_smoothing: float = LABEL_SMOOTHING,
        device: str = "cpu",
    ) -> None:
        self.model = model(vocabulary, dropout=dropout).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), **ADAM)
        # torch spreads label smoothing over all V tokens; fairseq and seqtk spread it over the V - 1 wrong tokens.
        self.label_smoothing = label_smoothing * vocabulary / (vocabulary - 1)
        self.precision, self.device = precision, device

    def loss(self, batch: Any) -> Tensor:
        """Returns the loss per target token."""
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            logits_BTV = self.model(batch)
            return functional.cross_entropy(
                logits_BTV.flatten(0, 1),
                batch.target_BT.flatten(),
                ignore_index=PAD,
                label_smoothing=self.label_smoothing,
            )

    def update(self, batch: Any) -> Tensor:
        """Performs one update. Returns its loss per target token."""
        loss = self.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def _serve_plain(arguments: argparse.Namespace) -> None:
    vocabulary, ready = _plain_data(arguments.data)
    loop = PlainLoop(vocabulary, dropout=0.1, precision=arguments.precision)
    batches = iter(ready)

    def update() -> float:
        batch = next(batches)
        loop.update(batch)
        return batch.weight

    serve(update, warm_up=WARM_UP)


def _plain_data(data: Path) -> tuple[int, list[TranslationBatch]]:
    """Returns (size of the vocabulary, the first batches in memory)."""
    from seqtk.data.plan import BatchingConfig
    from seqtk.tasks.translation import TranslationConfig, TranslationTask

    task = TranslationTask(TranslationConfig(data=str(data)))
    dataset = task.dataset("train")
    order = epoch_batches(dataset.sizes_ND, BatchingConfig(max_tokens=4096), seed=1, epoch=1)
    batches = [task.collate([dataset[index] for index in batch.tolist()]) for batch in order[:500]]
    return len(task.target_vocabulary), batches  # type: ignore[return-value]


def _losses(arguments: argparse.Namespace) -> None:
    """Prints the losses of seqtk and of the plain loop. Both start from the same weights and have no dropout."""
    trainer = _trainer(arguments, dropout=0.0)
    loop = PlainLoop(trainer.model.head.weight.shape[0], dropout=0.0, precision="fp32")
    loop.model.load_state_dict({_plain_name(name): tensor for name, tensor in tensors_of(trainer.model).items()})
    losses = []
    for batch in islice(_batches(trainer), arguments.checked):
        before = trainer.state.interval.get("loss", 0.0)
        trainer.update([batch])
        trainer.read_sums()
        losses.append(((trainer.state.interval["loss"] - before) / batch.weight, float(loop.update(batch))))
    print(json.dumps(losses))


def _plain_name(name: str) -> str:
    """Converts the name of a parameter of seqtk's model to its name in the plain model."""
    for ours, plain in (("source_embedding.", ""), (".blocks", ""), ("_residual.norm", "_norm"), ("feed_forward.", "")):
        name = name.replace(ours, plain)
    return name


# --- the corpus ---


def _make_corpus(directory: Path, *, words: int = VOCABULARY, pairs: int = PAIRS) -> Path:
    """Makes a data-bin with as many pairs as Multi30k, and with sentences of similar lengths. Returns its folder.

    The lengths are those of Multi30k with 8,000 BPE tokens.
    """
    random = np.random.default_rng(1)
    vocabulary = Vocabulary([f"word{rank}" for rank in range(words - UNK - 1)])
    first = UNK + 1
    chance = 1 / np.arange(2, words - first + 2)
    directory.mkdir(parents=True)
    source_N = random.gamma(9.0, 14.5 / 9.0, pairs)
    lengths_N = {"xx": source_N, "yy": source_N * random.lognormal(0.02, 0.16, pairs)}
    for lang, raw_N in lengths_N.items():
        sizes_N = raw_N.round().clip(4, 60).astype(np.int64) + 1
        flat = random.choice(words - first, size=int(sizes_N.sum()), p=chance / chance.sum()) + first
        flat[np.cumsum(sizes_N) - 1] = EOS
        vocabulary.save(directory / f"dict.{lang}.txt")
        with IndexedWriter(directory / f"train.xx-yy.{lang}", vocabulary_size=len(vocabulary)) as writer:
            writer.extend_arrays(flat, sizes_N)
    return directory


if __name__ == "__main__":
    main()
