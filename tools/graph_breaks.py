"""Prints how often torch.compile has to break the graph of a training step, for every model and attention layer.

    python tools/graph_breaks.py [KIND ...]

The models are tiny. A model uses the layer in every role that both the model and the layer support. A step computes the
features and the loss of a batch, with dropout. tests/laws/test_graphs.py tests that the backward pass is in the same
graph, and that compiled results equal eager results.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import torch
from torch import _dynamo as dynamo

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.laws.graphs import Case, cases, with_weight_tensor


def breaks(case: Case) -> tuple[int, set[str]]:
    """Returns the number of graph breaks in a training step, and their reasons."""
    torch.compiler.reset()
    explained = dynamo.explain(case.step(dropout=0.1).compute)(with_weight_tensor(case.batch()), None)
    return explained.graph_break_count, {str(each.reason).splitlines()[0] for each in explained.break_reasons}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="attention layers; default: all")
    kinds = parser.parse_args().kinds
    if unknown := set(kinds) - {case.kind for case in cases()}:
        parser.error(f"no case has these layers: {', '.join(sorted(unknown))}")
    rows: dict[str, dict[str, int]] = defaultdict(dict)
    reasons: set[str] = set()
    for case in cases():
        if not kinds or case.kind in kinds:
            model = "-".join(filter(None, [case.model, case.detail]))
            rows[case.kind][model], found = breaks(case)
            reasons |= found
    models = list(dict.fromkeys(model for row in rows.values() for model in row))
    print(f"| layer | {' | '.join(models)} |", "|---" * (len(models) + 1) + "|", sep="\n")
    for kind, row in rows.items():
        print(f"| `{kind}` | {' | '.join(str(row.get(model, '')) for model in models)} |")
    for reason in sorted(reasons):
        print(f"- {reason}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
