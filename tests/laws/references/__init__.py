"""The reference implementation and the tested settings of every registered kind, one module per family of layers.

Each module defines REFERENCES (kind → reference) and VARIANTS (kind → variant → settings). Besides settings, a variant
may have "roles": the only roles that accept it.
"""

import importlib
import pkgutil
from typing import Any

from seqtk.attention import Role
from seqtk.testing.laws import LawCase, law_cases
from seqtk.testing.reference import Reference
from seqtk.testing.subject import Variant

REFERENCES: dict[str, Reference] = {}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {}
for _found in pkgutil.iter_modules(__path__):
    _family = importlib.import_module(f"{__name__}.{_found.name}")
    REFERENCES.update(_family.REFERENCES)
    VARIANTS.update(_family.VARIANTS)

ALSO_LONG: dict[str, tuple[str, ...]] = {
    "aft_local": ("all",),
    "softmax": ("rotary", "t5", "grouped-normed-alibi"),
    "synthesizer_factorized_dense": ("fine",),
    "synthesizer_mixture": ("all",),
    "mega": ("long-chunks",),
    "nystrom": ("no-convolution",),
    "transformer_xl": ("short",),
    "feedforward_kernel": ("aoglu-2",),
    "local_block": ("back",),
    "lightweight_conv": ("longer-than-rows",),
    "convluna": ("strided",),
    "bigbird": ("two",),
    "longformer": ("odd",),
    "pooled": ("overlapping-max",),
}
"""The variants that are checked at the long size besides the first one: those with other blocks or other code."""


def variants(kind: str) -> dict[str, Variant]:
    """The tested settings of a kind; its defaults if no reference module names any."""
    found = {}
    for number, (name, settings) in enumerate(VARIANTS.get(kind, {"": {}}).items()):
        plain = {key: value for key, value in settings.items() if key != "roles"}
        sizes = ("short", "long") if number == 0 or name in ALSO_LONG.get(kind, ()) else ("short",)
        found[name] = Variant(plain, settings.get("roles", Role.ENCODER | Role.CAUSAL | Role.CROSS), sizes)
    return found


def cases(kind: str, *, slow: bool = False) -> list[LawCase]:
    """All law cases of a kind."""
    return law_cases(kind, oracle=REFERENCES.get(kind), variants=variants(kind), slow=slow)
