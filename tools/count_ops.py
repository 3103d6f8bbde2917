"""Counts the torch operators of one training update: a measure of the host's work that needs no GPU.

    python tools/count_ops.py [--size SIZE] [--data DATA-BIN] [--tokens N] [--bf16] [--graph-breaks] [KEY=VALUE ...]

The host needs time for each operator. If a GPU computes faster than the host launches operators, it waits.

The tool uses the model and the data of tools/bench_training.py. KEY=VALUE changes settings, for example
`attention=luna`. For comparison, it also counts the operators of a plain torch loop with a model of the same size.
Views launch no kernel and are counted separately. With --graph-breaks, it also prints where torch.compile would break
the graph of the forward pass.

    python tools/count_ops.py --layers [--against CHECKOUT] [--size SIZE] [--bf16] [KEY=VALUE ...]

Prints a table with a row for each attention layer, used as self-attention. The columns are the numbers of operators
that are not views, of casts, and of reads by the host, in one update. With --against, the table also has the numbers of
another checkout, which needs its own .venv.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
CHECKOUT = Path(os.environ.get("COUNTED_CHECKOUT", HERE))  # the checkout to measure
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tools")]

import bench_training as bench  # noqa: E402
import torch  # noqa: E402
from torch import _dynamo as dynamo  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from seqtk.attention import Role, attentions  # noqa: E402

VIEWS = (
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "diagonal", "expand", "permute",
    "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze",
    "view",
)  # fmt: skip
READ = "_local_scalar_dense"


class Counter(TorchDispatchMode):
    """Counts the operators that run inside the context, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()
        self.casts = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.counts[func.overloadpacket.__name__] += 1
        if func.overloadpacket.__name__ in ("_to_copy", "copy_"):
            self.casts += isinstance(args[0], torch.Tensor) and len({t.dtype for t in (result, *args[:2])}) > 1
        return result

    @property
    def kernels(self) -> int:
        """The number of operators that are not views."""
        return sum(count for operator, count in self.counts.items() if operator not in VIEWS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the training to change")
    parser.add_argument("--data", type=Path, help="a data-bin of one language pair; default: a generated one")
    parser.add_argument(
        "--size", choices=["small", "base"], default="small", help="3 + 3 blocks of 256, or 6 + 6 of 512"
    )
    parser.add_argument("--tokens", type=int, default=4096, help="batch.max_tokens")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--graph-breaks", action="store_true")
    parser.add_argument("--layers", action="store_true", help="print a table of all attention layers")
    parser.add_argument("--against", type=Path, help="with --layers: another checkout, with its own .venv")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.precision = "bf16" if arguments.bf16 else "fp32"
    if arguments.size == "base":
        bench.DIM, bench.FFN_DIM, bench.HEADS, bench.LAYERS = 512, 2048, 8, 6
    with tempfile.TemporaryDirectory(prefix="count-ops-") as folder:
        arguments.data = arguments.data or bench._make_corpus(Path(folder) / "data-bin")
        if arguments.worker:
            for layer in self_attention_layers():
                print(json.dumps({layer: counts_of(arguments, layer)}), flush=True)
        elif arguments.layers:
            print_layers(arguments)
        else:
            compare_with_plain(arguments)


def compare_with_plain(arguments: argparse.Namespace) -> None:
    trainer = trainer_of(arguments, arguments.settings)
    first, second = islice(bench._batches(trainer), 2)
    vocabulary = len(trainer.task.target_vocabulary)
    plain = bench.PlainLoop(vocabulary, dropout=0.1, precision=arguments.precision)
    plain.optimizer = torch.optim.Adam(plain.model.parameters(), fused=True, **bench.ADAM)
    trainer.update([first])
    plain.update(first)
    ours = report("ours", lambda: trainer.update([second]))
    print(f"ours / plain: {ours / report('plain', lambda: plain.update(second)):.2f}")
    if arguments.graph_breaks:
        print_graph_breaks(trainer, second)


def trainer_of(arguments: argparse.Namespace, settings: list[str]) -> Any:
    """Returns the trainer that tools/bench_training.py builds, with `settings` (a list of KEY=VALUE)."""
    build = bench.Trainer

    def with_settings(config: Any, **others: Any) -> Any:
        for setting in [f"batch.max_tokens={arguments.tokens}", *settings]:
            key, _, text = setting.partition("=")
            try:
                value = json.loads(text)
            except json.JSONDecodeError:
                value = text
            config = bench.schema.update(config, key, value)
        return build(config, **others)

    bench.Trainer = with_settings  # type: ignore[assignment, misc]
    try:
        return bench._trainer(arguments, dropout=0.1)
    finally:
        bench.Trainer = build  # type: ignore[misc]


def report(name: str, update: Callable[[], object]) -> int:
    """Prints the operators of an update. Returns the number of operators that are not views."""
    with Counter() as counter:
        update()
    counts = counter.counts
    most = [f"{operator} {count}" for operator, count in counts.most_common(20) if operator not in VIEWS]
    print(
        f"{name}: {sum(counts.values()):,} operators, {counter.kernels:,} of them not views; {counter.casts} casts; ",
        end="",
    )
    print(f"{counts[READ]} host reads; most frequent: {', '.join(most[:10])}")
    return counter.kernels


def self_attention_layers() -> dict[str, str]:
    """Returns layer → key that selects it as self-attention of encoder and decoder, or of the one that supports it."""
    layers = {}
    for name in attentions:
        roles = attentions.class_of(attentions.config_type(name)).roles
        sides = [side for side, role in (("encoder", Role.ENCODER), ("decoder", Role.CAUSAL)) if role in roles]
        layers[name] = "attention" if len(sides) == 2 else f"model.{sides[0]}.self_attention"
    return layers


def counts_of(arguments: argparse.Namespace, layer: str) -> list[int]:
    """Returns three counts for an update with `layer`: operators that are not views, casts, and host reads."""
    trainer = trainer_of(arguments, [f"{self_attention_layers()[layer]}={layer}", *arguments.settings])
    first, second = islice(bench._batches(trainer), 2)
    trainer.update([first])
    with Counter() as counter:
        trainer.update([second])
    return [counter.kernels, counter.casts, counter.counts[READ]]


def print_layers(arguments: argparse.Namespace) -> None:
    """Prints a table with a row of counts for each layer. With `--against`, a cell is "other → this checkout"."""
    found = [_in_checkout(arguments, checkout) for checkout in (arguments.against, HERE) if checkout]
    print("| self-attention | operators | casts | host reads |\n|---|---|---|---|")
    for layer, now in found[-1].items():
        columns = zip(
            *(counts.get(layer, ["–"] * 3) for counts in (found[0], {layer: now})[-len(found) :]), strict=True
        )
        print(
            f"| {layer} | {' | '.join(' → '.join(f'{n:,}' if isinstance(n, int) else n for n in c) for c in columns)} |"
        )


def _in_checkout(arguments: argparse.Namespace, checkout: Path) -> dict[str, list[int]]:
    """Runs this tool with the code of a checkout. Returns layer → its counts (see `counts_of`)."""
    checkout = checkout.absolute()
    command = [str(checkout / ".venv/bin/python"), __file__, "--worker", f"--data={arguments.data}"]
    command += [f"--size={arguments.size}", f"--tokens={arguments.tokens}", *(["--bf16"] if arguments.bf16 else [])]
    environment = os.environ | {"COUNTED_CHECKOUT": str(checkout)}
    done = subprocess.run(
        [*command, *arguments.settings], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return {name: counts for line in done.stdout.splitlines() for name, counts in json.loads(line).items()}


def print_graph_breaks(trainer: Any, batch: Any) -> None:
    """Prints the number of graph breaks of the forward pass, and their reasons."""
    explained = dynamo.explain(trainer.step)(batch)
    print(f"{explained.graph_count} graphs, {explained.graph_break_count} graph breaks")
    for reason in sorted({str(each.reason).splitlines()[0] for each in explained.break_reasons}):
        print(f"  {reason}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
