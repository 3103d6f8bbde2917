"""Checks every law for every registered attention layer, in every role that it declares, at both sizes."""

import pytest
import torch

from seqtk.attention import Role, attentions
from seqtk.ops.dispatch import naive_ops
from seqtk.testing.laws import LawCase
from seqtk.testing.subject import Subject, subjects
from seqtk.utils.errors import UserError
from tests.laws.references import ALSO_LONG, REFERENCES, VARIANTS, cases, variants

CASES = [case for kind in attentions for case in cases(kind)]
COMPILED = [case for kind in attentions for case in cases(kind, slow=True) if case.law.slow]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer_obeys_the_law(case: LawCase, device: torch.device) -> None:
    case.check(device)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_layer_obeys_the_slow_law(case: LawCase, device: torch.device) -> None:
    case.check(device)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["softmax", "synthesizer_mixture", "linear"])
def test_compiled_layer_has_the_gradients_of_eager_mode(kind: str, device: torch.device) -> None:
    """Runs the code that torch generates. `compiles_to_one_graph` only traces."""
    torch.compiler.reset()
    layer = first_subject(kind).make(dtype=torch.float32).to(device)
    x_BTD = torch.randn(2, 6, layer.dim, device=device)
    gradients = []
    for form in (layer, torch.compile(layer, fullgraph=True)):
        form(x_BTD)[0].square().sum().backward()
        gradients.append([parameter.grad for parameter in layer.parameters()])
        layer.zero_grad()
    for eager, generated in zip(*gradients, strict=True):
        torch.testing.assert_close(generated, eager, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(attentions))
def test_layer_obeys_the_laws_with_naive_operations(kind: str) -> None:
    with naive_ops():
        short_cases = [case for case in cases(kind) if case.subject.size.name == "short"]
        assert short_cases
        for case in short_cases:
            case.check()


class TestRoles:
    @pytest.mark.parametrize("kind", list(attentions))
    def test_undeclared_roles_are_refused(self, kind: str) -> None:
        subject = first_subject(kind)
        for role in Role:
            if role in subject.layer.roles:
                assert subject.layer(subject.config, dim=8, role=role).role is role
                continue
            with pytest.raises(UserError) as refused:
                subject.layer(subject.config, dim=8, role=role)
            able = [other for other in attentions if role in attentions.class_of(attentions.config_type(other)).roles]
            assert all(name in str(refused.value) for name in [kind, *able])

    @pytest.mark.parametrize("kind", list(attentions))
    def test_roles_excluded_by_a_variant_are_refused(self, kind: str) -> None:
        for name, subject in subjects(kind, variants=variants(kind)):
            for role in subject.layer.roles & ~variants(kind)[name].roles:
                with pytest.raises(UserError):
                    subject.layer(subject.config, dim=8, role=role, memory_dim=6)


def test_results_on_cuda_equal_results_on_cpu(device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("runs with --device cuda")
    for kind in attentions:
        for case in cases(kind, device=device):
            if case.law.name == "devices_give_the_same":
                case.check()


def test_every_attention_layer_has_a_reference() -> None:
    assert set(REFERENCES) == set(attentions)


def test_tested_variants_are_of_registered_layers() -> None:
    assert set(VARIANTS) <= set(attentions)
    assert all(set(names) <= set(VARIANTS[kind]) for kind, names in ALSO_LONG.items())


def first_subject(kind: str) -> Subject:
    """Returns the first variant of a kind in its first role, at the short size."""
    return next(subject for _, subject in subjects(kind, variants=variants(kind)))
