"""The reference implementation and the tested settings of every registered kind, one module per family of layers.

Each module defines REFERENCES (kind → reference) and VARIANTS (kind → variant → settings). Besides settings, a variant
may have "roles": the only roles that accept it.
"""

import importlib
import pkgutil
from typing import Any

import torch

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
"""The variants that, like the first one, are also checked at the long size. They use different blocks or code."""

ONLY_LONG: dict[str, dict[str, dict[str, Any]]] = {
    "aft_local": {"wide-long": {"rank": 3, "window": 32}},
    "sliding_window": {"wide": {"window": 64}, "odd-long": {"window": 5}},
    "longformer": {"wide": {"window": 64, "global_tokens": 5}},
    "local_block": {"wide": {"block": 32, "back": True}},
    "strided_sparse": {"wide": {"stride": 16}},
    "fixed_sparse": {"wide": {"block": 16, "summary": 4}},
    "bigbird": {"wide": {"block": 16}},
    "reformer": {"wide": {"buckets": 8, "chunk": 16, "rounds": 2, "redraw": False}},
    "sinkhorn": {"wide": {"block": 16, "gumbel": False}},
    "nystrom": {"wide": {"landmarks": 32}},
    "mega": {"wide": {"averages": 4, "chunk": 64}},
}
"""Settings that have an effect on long inputs only: kind → variant → settings."""

BFLOAT16_ERROR: dict[str, float] = {
    **dict.fromkeys(("aft_full", "aft_local", "aft_simple"), 0.004),  # the gate
    **dict.fromkeys(("dynamic_conv", "lightweight_conv"), 0.004),  # values and taps
    **dict.fromkeys(("luna", "memory_compressed", "pooled", "linformer", "nystrom"), 0.01),  # their averages
    **dict.fromkeys(("softmax", "transformer_xl", "sinkhorn"), 0.006),  # rotated or shifted queries, sorted keys
    "convluna": 0.015,  # the convolution
    "feedforward_kernel": 0.003,  # the feature map
    "fnet": 0.002,  # no linear map: the input
    "gmlp": 0.006,  # the norm and the gate
    "mega": 0.003,  # gates
    "simpletron": 0.002,  # no output projection: the output
    **dict.fromkeys(("synthesizer_dense", "synthesizer_factorized_dense"), 0.01),  # the perceptron
    **dict.fromkeys(("synthesizer_mixture", "synthesizer_factorized_random"), 0.004),  # logits
}
"""`Variant.bfloat16_error` of the kinds that round values between their linear maps to bfloat16, named in comments."""


def variants(kind: str) -> dict[str, Variant]:
    """Returns the tested variants of a kind, by name. Without variants in a module, only the defaults are tested."""
    error = BFLOAT16_ERROR.get(kind, 0.0005)
    found = {}
    for number, (name, settings) in enumerate(VARIANTS.get(kind, {"": {}}).items()):
        plain = {key: value for key, value in settings.items() if key != "roles"}
        sizes = ("short", "long") if number == 0 or name in ALSO_LONG.get(kind, ()) else ("short",)
        roles = settings.get("roles", Role.ENCODER | Role.CAUSAL | Role.CROSS)
        found[name] = Variant(plain, roles, sizes, error)
    for name, settings in ONLY_LONG.get(kind, {}).items():
        found[name] = Variant(settings, sizes=("long",), bfloat16_error=error)
    return found


def cases(kind: str, *, slow: bool = False, device: str | torch.device = "cpu") -> list[LawCase]:
    """Returns all law cases of a kind."""
    return law_cases(kind, oracle=REFERENCES.get(kind), variants=variants(kind), slow=slow, device=device)
