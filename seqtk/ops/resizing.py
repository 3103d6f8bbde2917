"""Layers whose weights for one `max_length` serve another, and the rule by which they do.

The rule: position i stays position i. A tensor of the new size keeps what its leading corner shares with the old one;
what is beyond that is as a new layer of the new size draws it. So inputs that fit both sizes give the same outputs.
"""

import dataclasses
from typing import Any, TypeVar

from torch import Tensor

from seqtk.attention.base import attentions
from seqtk.utils.errors import UserError

C = TypeVar("C")


class Resizable:
    """Mixed into an attention layer for which the rule is right."""

    @classmethod
    def resized(cls, config: Any, *, max_length: int) -> Any:
        """The config of the layer of `config` after resizing."""
        return dataclasses.replace(config, max_length=max_length)


def resize_configs(tree: C, *, max_length: int) -> C:
    """A copy of a config, or of a tuple of them, in which every attention layer with a longest input has this one.

    Raises UserError for a layer whose weights for one length mean nothing at another.
    """
    if isinstance(tree, tuple):
        return tuple(resize_configs(item, max_length=max_length) for item in tree)  # type: ignore[return-value]
    if not dataclasses.is_dataclass(tree) or isinstance(tree, type):
        return tree
    inside = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    changed = {name: resize_configs(value, max_length=max_length) for name, value in inside.items()}
    config: C = dataclasses.replace(tree, **changed)
    if not attentions.knows(type(tree)) or inside.get("max_length", max_length) == max_length:
        return config
    kind = attentions.class_of(type(tree))
    if not issubclass(kind, Resizable):
        able = [name for name in attentions if issubclass(attentions.class_of(attentions.config_type(name)), Resizable)]
        raise UserError(
            f"Attention '{attentions.name_of(type(tree))}' of max_length={inside['max_length']} cannot be resized: "
            "it would compute something else.",
            f"These can: {', '.join(able)}.",
        )
    return kind.resized(config, max_length=max_length)  # type: ignore[no-any-return]


def resize_tensor(old: Tensor, *, new: Tensor) -> Tensor:
    """`new`, drawn afresh, with the leading corner that it shares with `old`; of the type of `old`."""
    corner = tuple(slice(min(sizes)) for sizes in zip(old.shape, new.shape, strict=True))
    resized = new.to(old.dtype, copy=True)
    resized[corner] = old[corner]
    return resized
