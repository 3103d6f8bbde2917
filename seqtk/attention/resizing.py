"""Changes the `max_length` of a trained attention layer.

Weights stay at their positions: elements whose index exists in both sizes are kept, and the other elements are newly
initialized. So inputs that fit both sizes give the same outputs.
"""

import dataclasses
from typing import Any, TypeVar

from torch import Tensor

from seqtk.attention.base import attentions
from seqtk.utils.errors import UserError

C = TypeVar("C")


class Resizable:
    """Mixin for attention layers whose `max_length` can be changed after training.

    Their outputs for inputs that fit both lengths must depend only on elements of weights that exist in both sizes.
    """

    @classmethod
    def resized(cls, config: Any, *, max_length: int) -> Any:
        """Returns a copy of `config` with this `max_length`, for the resized layer."""
        return dataclasses.replace(config, max_length=max_length)


def resize_configs(tree: C, *, max_length: int) -> C:
    """Returns a copy of a config, or of a tuple of configs, with `max_length` set in every attention layer.

    Raises:
        UserError: A layer has weights whose meaning depends on its `max_length`.
    """
    if isinstance(tree, tuple):
        return tuple(resize_configs(item, max_length=max_length) for item in tree)  # type: ignore[return-value]
    if not dataclasses.is_dataclass(tree) or isinstance(tree, type):
        return tree
    fields = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    changed = {name: resize_configs(value, max_length=max_length) for name, value in fields.items()}
    config: C = dataclasses.replace(tree, **changed)
    if not attentions.knows(type(tree)) or fields.get("max_length", max_length) == max_length:
        return config
    layer = attentions.class_of(type(tree))
    if not issubclass(layer, Resizable):
        able = [name for name in attentions if issubclass(attentions.class_of(attentions.config_type(name)), Resizable)]
        raise UserError(
            f"Attention '{attentions.name_of(type(tree))}' of max_length={fields['max_length']} cannot be resized: "
            "its outputs may depend on max_length.",
            f"These layers can be resized: {', '.join(able)}.",
        )
    return layer.resized(config, max_length=max_length)  # type: ignore[no-any-return]


def resize_tensor(old: Tensor, *, new: Tensor) -> Tensor:
    """Returns a copy of `new` in the dtype of `old`. Elements whose index exists in both tensors come from `old`."""
    corner = tuple(slice(min(sizes)) for sizes in zip(old.shape, new.shape, strict=True))
    resized = new.to(old.dtype, copy=True)
    resized[corner] = old[corner]
    return resized
