"""Reads the options in a checkpoint of any version of fairseq. Checks values, because the file is not trusted."""

from collections.abc import Mapping
from typing import Any, TypeVar

from seqtk.interop.unpickle import plain
from seqtk.utils.errors import UserError
from seqtk.utils.suggestions import nearest

T = TypeVar("T")

SIDES = (("source", "encoder"), ("target", "decoder"))

REFUSED = {
    "base_layers": "BASE layers",
    "decoder_layers_to_keep": "a pruned decoder",
    "scale_attn": "NormFormer's norms",
    "scale_fc": "NormFormer's norms",
    "scale_heads": "NormFormer's scales",
    "scale_resids": "NormFormer's scales",
}
"""Option of fairseq that no decoder of seqtk supports → description. Unset or false options are accepted."""


class Options:
    """The options that a model was trained with, under the names of fairseq's command-line options."""

    def __init__(self, values: Mapping[str, Any], *, where: str) -> None:
        self.values, self.where = values, where

    def get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def number(self, name: str, default: float | None = None) -> float:
        """Returns a numeric option, or `default`. Raises UserError if it is missing or not a number."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{self.where}: the option '{name}' is {value!r}, not a number.")
        return value

    def size(self, name: str) -> int:
        return int(self.number(name))

    def known(self, name: str, known: Mapping[str, T], default: str) -> T:
        """Returns the entry of `known` for the value of an option. Raises UserError if there is none."""
        value = str(self.get(name, default))
        if value not in known:
            raise UserError(
                f"{self.where} was trained with {name}={value}, which is not supported.", nearest(value, known)
            )
        return known[value]

    def refuse(self, refused: Mapping[str, str], *, model: str) -> None:
        """Raises UserError if an option in `refused` or REFUSED is set, or the decoder projects its input or output."""
        for option, words in {**REFUSED, **refused}.items():
            if self.get(option, False):
                raise UserError(
                    f"{self.where} was trained with {option}={self.get(option, None)}: {words}.",
                    f"seqtk's {model} does not support it, so this model cannot be imported.",
                )
        dim = self.size("decoder_embed_dim")
        for option in ("decoder_input_dim", "decoder_output_dim"):
            if self.get(option, dim) != dim:
                raise UserError(
                    f"{self.where} has {option}={self.size(option)}, but decoder_embed_dim={dim}.",
                    f"seqtk's {model} has no projection between these widths, so this model cannot be imported.",
                )

    def both(self, ending: str) -> bool:
        """Returns an option that fairseq has for encoder and decoder. Raises UserError if the two values differ."""
        encoder, decoder = (bool(self.get(f"{stack}_{ending}", False)) for _, stack in SIDES)
        if encoder != decoder:
            raise UserError(
                f"{self.where}: encoder_{ending}={encoder} and decoder_{ending}={decoder} differ.",
                "seqtk's Transformer has one setting for encoder and decoder, so this model cannot be imported.",
            )
        return encoder


def flat_options(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all options in one dict.

    Options come from `args` (fairseq before 0.10) or from the groups of `cfg`. The group `model` overrides all others.
    """
    cfg = plain(content.get("cfg"))
    if not cfg:
        return dict(plain(content["args"]))
    flat: dict[str, Any] = {}
    for group in ("criterion", "task", "model"):
        for name, value in (cfg.get(group) or {}).items():
            if isinstance(value, dict):  # the encoder and decoder of a model configured by dataclass
                flat |= {f"{name}_{inner}": item for inner, item in value.items()}
            elif name != "_name":
                flat[name] = value
        flat[group] = (cfg.get(group) or {}).get("_name") or flat.get(group)
    return flat
