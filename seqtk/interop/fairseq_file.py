"""Reads the options and tensors of a fairseq checkpoint of any model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from seqtk.interop.fairseq_options import Options, flat_options
from seqtk.interop.unpickle import plain, read_checkpoint
from seqtk.modules.block import Activation
from seqtk.utils.errors import UserError

ACTIVATIONS: dict[str, Activation] = {"relu": "relu", "gelu": "gelu"}
"""fairseq's names of the activations that seqtk supports."""


@dataclass(frozen=True)
class FairseqFile:
    """The options and tensors in a checkpoint file of fairseq 0.6 to 0.12."""

    where: str
    options: Options
    tensors: dict[str, Tensor]
    """Name in the file → tensor."""
    updates: int
    """The number of updates that the model was trained for."""

    @property
    def is_language_model(self) -> bool:
        """True if the model has only a decoder."""
        return not any(name.startswith("encoder.") for name in self.tensors)

    @property
    def label_smoothing(self) -> float:
        """The label smoothing of the criterion that the model was trained with."""
        smoothed = "label_smoothed" in str(self.options.get("criterion", ""))
        return self.options.number("label_smoothing") if smoothed else 0.0


def read_fairseq(path: str | Path) -> FairseqFile:
    """Reads the checkpoint at `path` without executing code in it. Raises UserError if fairseq did not write it."""
    content = read_checkpoint(path)
    if not isinstance(content.get("model"), Mapping) or not (content.get("cfg") or content.get("args")):
        names, others = [str(name)[:80] for name in list(content)[:2]], len(content) - 2
        raise UserError(
            f"{path} is not a checkpoint of fairseq: it has no 'model', or neither 'cfg' nor 'args'.",
            f"It contains: {', '.join(names) or 'nothing'}{f' and {others:,} more keys' if others > 0 else ''}.",
        )
    history = plain(content.get("optimizer_history")) or [{}]
    return FairseqFile(
        where=str(path),
        options=Options(flat_options(content), where=str(path)),
        tensors=_tensors(content["model"], where=str(path)),
        updates=int(history[-1].get("num_updates", 0)),
    )


def missing_tensor(name: str, *, where: str) -> UserError:
    """Returns the error for a tensor that the options require but the file does not contain."""
    return UserError(
        f"{where} has no tensor '{name}', which its options require.",
        "The tensors and options in the file do not match, or it is incomplete, so it cannot be imported.",
    )


def rows(state: Mapping[str, Tensor], stack: str, *, where: str) -> int:
    """Returns the vocabulary size of `stack`, encoder or decoder: the number of rows of its embedding table."""
    name = f"{stack}.embed_tokens.weight"
    if name not in state:
        raise missing_tensor(name, where=where)
    return len(state[name])


def _tensors(state: Mapping[Any, Any], *, where: str) -> dict[str, Tensor]:
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{where}: '{name}' in 'model' is not a tensor, so this is not a checkpoint of fairseq.")
    return dict(state)
