"""Every layer goes through torch.compile as one graph, and computes the same.

With the backend that traces and differentiates but generates no code (aot_eager): what the layer is written in is what
is tested, not the code generator; one kind goes all the way.
"""

import dataclasses

import pytest
import torch

from seqtk.attention import Role
from tests.laws.cases import Case, cases
from tests.laws.laws import close, inputs_for

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PLAIN = [case for case in cases() if not case.variant]


@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.name)
def test_it_compiles_to_one_graph_that_computes_the_same(case: Case, device: torch.device) -> None:
    torch.compiler.reset()
    layer = case.make(device, dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    right = inputs_for(layer, device)
    for inputs in (dataclasses.replace(right, pad_BS=None), right):
        actual, _ = compiled(inputs.x_BTD, inputs.memory_BSM, pad_BS=inputs.pad_BS)
        close(actual[inputs.real], inputs.run(layer)[inputs.real], 1e-5)


@pytest.mark.parametrize("kind", ["softmax", "synthesizer_mixture", "linear"])
def test_generated_code_computes_the_same_and_has_the_same_gradients(kind: str, device: torch.device) -> None:
    torch.compiler.reset()
    case = next(case for case in PLAIN if case.kind == kind and case.role is Role.ENCODER)
    layer = case.make(device, dtype=torch.float32)
    x_BTD = inputs_for(layer, device).x_BTD
    gradients = []
    for run in (layer, torch.compile(layer, fullgraph=True)):
        run(x_BTD)[0].square().sum().backward()
        gradients.append([parameter.grad for parameter in layer.parameters()])
        layer.zero_grad()
    for eager, generated in zip(*gradients, strict=True):
        torch.testing.assert_close(generated, eager, atol=1e-4, rtol=1e-4)
