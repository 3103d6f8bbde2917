"""A training step of every model and attention layer compiles into one graph, with the results of eager mode."""

import pytest
import torch

from seqtk.testing.laws import LawCase, law_cases
from tests.laws.graphs import MORE, Case, cases, outcome, with_weight_tensor

pytestmark = pytest.mark.filterwarnings("ignore")
CASES = list(cases())
DRAWING = [
    case
    for kind in ("reformer", "sinkhorn")
    for case in law_cases(kind, sizes=("short",), slow=True)
    if case.law.name == "graphs_draw_new_random_numbers"
]
"""Layers that draw random numbers other than dropout in each call, with their default settings."""


def assert_equals_eager_mode(case: Case) -> None:
    """Checks that loss, statistics and gradients equal eager mode, with the same dropout masks."""
    torch.compiler.reset()
    # A graph also draws dropout masks for blocks that LayerDrop skips. Its masks then differ from eager mode.
    step, batch = case.step(dropout=0.0 if "layer_drop" in case.settings else 0.1), case.batch()
    compiled = torch.compile(step.compute, backend="aot_eager", fullgraph=True)
    actual = outcome(step, compiled, with_weight_tensor(batch))
    expected = outcome(step, step.compute, batch)
    for one, other in zip(actual, expected, strict=True):
        if one is None or other is None:
            assert not any(tensor is not None and tensor.any() for tensor in (one, other))
        else:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", [MORE[0]], ids=str)
def test_training_step_compiles_into_one_graph(case: Case) -> None:
    assert_equals_eager_mode(case)


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layer_trains_in_one_graph(case: Case) -> None:
    assert_equals_eager_mode(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", DRAWING, ids=str)
def test_default_layer_draws_new_numbers_in_graphs(case: LawCase) -> None:
    """The laws are checked with settings in which these layers draw no random numbers."""
    case.check()


def test_graph_does_not_depend_on_the_number_of_targets() -> None:
    """Batches with different numbers of targets use the same graph."""
    torch.compiler.reset()
    case = Case("transformer_classifier", "softmax", {"encoder": {"layers": 1}})
    step, graphs = case.step(dropout=0.0), []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(step.compute, backend=count, fullgraph=True)
    batch = case.batch((9, 9, 9))
    for weight in (3.0, 2.0, 2.5):
        _, stats, _ = compiled(with_weight_tensor(type(batch)(**{**vars(batch), "weight": weight})), None)
        assert stats["loss"][1] == weight
    assert len(graphs) == 1
