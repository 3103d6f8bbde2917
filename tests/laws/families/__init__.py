"""The oracles and the variants of every family: each module here defines ORACLES and VARIANTS, and is found unasked."""

import importlib
import pkgutil
from typing import Any

from tests.laws.naive import ORACLES

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {}
"""Kind → name of the variant → the fields it sets; for kinds whose defaults do not fit, or deserve several cases.

Beside fields, "roles": the only roles that the variant can have, where it has options that others refuse.
"""

for _found in pkgutil.iter_modules(__path__):
    _family = importlib.import_module(f"{__name__}.{_found.name}")
    ORACLES.update(_family.ORACLES)
    VARIANTS.update(_family.VARIANTS)
