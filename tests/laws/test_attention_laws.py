"""Every law, over every registered attention layer, in every role it declares."""

import collections
import re
from pathlib import Path

import pytest
import torch

from seqtk.attention import Role, attentions
from seqtk.utils.errors import UserError
from tests.laws.cases import VARIANTS, Case, cases, configs, roles_of, sizes
from tests.laws.laws import LAWS
from tests.laws.naive import ORACLES


@pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(name, case, id=f"{case.name}-{name}") for name, (_, roles) in LAWS.items() for case in cases(*roles)],
)
def test_law(name: str, case: Case, device: torch.device) -> None:
    LAWS[name][0](case.make, device)


@pytest.mark.parametrize("kind", list(attentions))
@pytest.mark.parametrize("role", list(Role))
def test_role_is_declared_or_refused_naming_those_that_can(kind: str, role: Role) -> None:
    _, config = next(configs(kind))
    if role in attentions.class_of(type(config)).roles:
        assert attentions.build(config, **sizes(role)).role is role
        return
    with pytest.raises(UserError) as refused:
        attentions.build(config, **sizes(role))
    able = [other for other in attentions if role in attentions.class_of(attentions.config_type(other)).roles]
    assert able
    assert kind in str(refused.value)
    assert all(other in str(refused.value) for other in able)


@pytest.mark.parametrize("kind", list(attentions))
def test_roles_that_a_variant_leaves_out_are_refused(kind: str) -> None:
    for variant, config in configs(kind):
        for role in attentions.class_of(type(config)).roles & ~roles_of(kind, variant):
            with pytest.raises(UserError):
                attentions.build(config, **sizes(role))


def test_every_kind_has_an_oracle() -> None:
    assert set(ORACLES) == set(attentions)


def test_the_page_of_the_laws_counts_every_case() -> None:
    """Else `python tools/law_matrix.py` has to be run again."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "laws.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `(\w+)` .*\| (\d+) \|$", page, re.MULTILINE))
    counted = collections.Counter(case.name.partition("-")[0] for _, roles in LAWS.values() for case in cases(*roles))
    assert {kind: stated.get(kind) for kind in attentions} == {kind: str(counted[kind]) for kind in attentions}


def test_variants_are_of_registered_kinds() -> None:
    assert set(VARIANTS) <= set(attentions)
