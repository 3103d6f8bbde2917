"""Counts the torch operators of one training update: the work of the host, which needs no GPU to be measured.

    python tools/count_ops.py [--data DATA-BIN] [--tokens N] [--bf16] [--graph-breaks] [KEY=VALUE ...]

The model and the data are those of tools/bench_training.py, and KEY=VALUE changes settings, for example
`attention=luna`. A GPU that waits for its host is idle in proportion to the number of operators, so the plain torch
loop of the same size is counted beside it. Views launch no kernel and are counted separately.

With --graph-breaks, also prints where torch.compile would break the graph of the forward pass.
"""

import argparse
import collections
import sys
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import _dynamo as dynamo
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from seqtk.config import schema
from seqtk.training.parallel import start_engine
from seqtk.training.trainer import Trainer
from tools import bench_training as bench

VIEWS = (
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "diagonal", "expand", "permute",
    "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze",
    "view",
)  # fmt: skip


class Counter(TorchDispatchMode):
    """Counts the operators that run inside the context, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the training to change")
    parser.add_argument("--data", type=Path, help="a data-bin of one language pair; default: a generated one")
    parser.add_argument("--tokens", type=int, default=4096, help="batch.max_tokens")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--graph-breaks", action="store_true")
    arguments = parser.parse_args()
    arguments.precision = "bf16" if arguments.bf16 else "fp32"
    with tempfile.TemporaryDirectory(prefix="count-ops-") as folder:
        arguments.data = arguments.data or bench._make_corpus(Path(folder) / "data-bin")
        config = schema.update(bench._trainer(arguments, dropout=0.1).config, "batch.max_tokens", arguments.tokens)
        for setting in arguments.settings:
            key, _, value = setting.partition("=")
            config = schema.update(config, key, value)
        trainer = Trainer(config, engine=start_engine(device="cpu"))
        first, second = islice(bench._batches(trainer), 2)
        vocabulary = len(trainer.task.target_vocabulary)  # type: ignore[attr-defined]
        plain = bench.PlainLoop(vocabulary, dropout=0.1, precision=arguments.precision)
        plain.optimizer = torch.optim.Adam(plain.model.parameters(), fused=True, **bench.ADAM)
        trainer.update([first])
        plain.update(first)
        ours = report("ours", lambda: trainer.update([second]))
        print(f"ours / plain: {ours / report('plain', lambda: plain.update(second)):.2f}")
        if arguments.graph_breaks:
            print_graph_breaks(trainer, second)


def report(name: str, update: Callable[[], object]) -> int:
    """Prints the operators of an update. Returns how many are not views."""
    with Counter() as counter:
        update()
    counts = counter.counts
    kernels = sum(count for operator, count in counts.items() if operator not in VIEWS)
    most = [f"{operator} {count}" for operator, count in counts.most_common(20) if operator not in VIEWS]
    print(f"{name}: {sum(counts.values()):,} operators, {kernels:,} of them not views; ", end="")
    print(f"{counts['_local_scalar_dense']} host reads; most frequent: {', '.join(most[:10])}")
    return int(kernels)


def print_graph_breaks(trainer: Trainer, batch: Any) -> None:
    """Prints the number of graph breaks of the forward pass, and their reasons."""
    explained = dynamo.explain(trainer.step)(batch)
    print(f"{explained.graph_count} graphs, {explained.graph_break_count} graph breaks")
    for reason in sorted({str(each.reason).splitlines()[0] for each in explained.break_reasons}):
        print(f"  {reason}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
