"""Every registered attention layer at a tiny size, in every role it declares: what the laws run over.

A new kind is enrolled by being registered. Only one whose defaults do not fit, or whose options deserve more than one
case, needs a line in the VARIANTS of its family (`tests/laws/families`).
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from seqtk.attention import Attention, AttentionConfig, Role, attentions
from seqtk.config.schema import from_dict
from tests.laws.families import VARIANTS

DIM, MEMORY_DIM = 8, 6

SMALL: dict[str, Any] = {"heads": 2, "max_length": 12}
"""Set in every config that has the field."""


class Make(Protocol):
    """Makes the same layer each time, in eval mode, every weight random so that no zero hides a mistake."""

    def __call__(
        self, device: torch.device, *, dtype: torch.dtype = torch.float64, seed: int = 0, **fields: Any
    ) -> Attention: ...


@dataclass(frozen=True)
class Case:
    """One layer that the laws must hold for."""

    kind: str
    variant: str
    config: AttentionConfig
    role: Role

    @property
    def name(self) -> str:
        return "-".join(filter(None, [self.kind, self.variant, str(self.role.name).lower()]))

    def make(
        self, device: torch.device, *, dtype: torch.dtype = torch.float64, seed: int = 0, **fields: Any
    ) -> Attention:
        config = dataclasses.replace(self.config, **fields)
        return prepare(lambda: attentions.build(config, **sizes(self.role)), device, dtype=dtype, seed=seed)


def sizes(role: Role) -> dict[str, Any]:
    """What a parent gives to a layer besides its config."""
    return {"dim": DIM, "role": role, "memory_dim": MEMORY_DIM if role is Role.CROSS else None}


def prepare(build: Any, device: torch.device, *, dtype: torch.dtype, seed: int) -> Attention:
    """The layer that `build` makes, its weights drawn from `seed`; the same on all devices."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer: Attention = build()
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.6)
    return layer.to(device, dtype).eval()


def configs(kind: str) -> Iterator[tuple[str, AttentionConfig]]:
    """Every variant of a kind, by name."""
    config_type = attentions.config_type(kind)
    fields = {field.name for field in dataclasses.fields(config_type)}
    small = {name: value for name, value in SMALL.items() if name in fields}
    for variant, settings in VARIANTS.get(kind, {"": {}}).items():
        fields_set = {name: value for name, value in settings.items() if name != "roles"}
        yield variant, from_dict(config_type, small | fields_set)


def roles_of(kind: str, variant: str) -> Role:
    """What a variant can be: all that its kind can, or those that it names; the others it must refuse."""
    roles: Role = attentions.class_of(attentions.config_type(kind)).roles
    return roles & VARIANTS.get(kind, {}).get(variant, {}).get("roles", roles)


def cases(*roles: Role) -> list[Case]:
    """All cases in one of `roles`, or in any."""
    found = []
    for kind in attentions:
        for variant, config in configs(kind):
            for role in roles or tuple(Role):
                if role in roles_of(kind, variant):
                    found.append(Case(kind, variant, config, role))
    return found
