"""Imports the options and tensors of adaptive input and softmax of fairseq's language models."""

import re
from collections.abc import Mapping

from torch import Tensor

from seqtk.interop.fairseq_file import rows
from seqtk.interop.fairseq_options import Options
from seqtk.modules.adaptive import AdaptiveConfig
from seqtk.utils.errors import UserError

TABLE = re.compile(r"decoder\.embed_tokens\.embeddings\.\d+\.0\.weight")
HEAD = "decoder.adaptive_softmax.head"
TAIL_PROJECTION = re.compile(r"decoder\.adaptive_softmax\.tail\.\d+\.0\.weight")


def vocabulary_size(state: Mapping[str, Tensor], *, where: str) -> int:
    """Returns the vocabulary size of a language model: the number of rows in all its embedding tables."""
    tables = [len(tensor) for name, tensor in state.items() if TABLE.fullmatch(name)]
    return sum(tables) or rows(state, "decoder", where=where)


def adaptive_config(options: Options, *, vocabulary: int) -> AdaptiveConfig | None:
    """Returns the config of the adaptive input and softmax that the options specify, or None."""
    cutoffs = {
        part: _cutoffs(options, f"adaptive_{part}_cutoff", vocabulary)
        for part, there in (
            ("input", bool(options.get("adaptive_input", False))),
            ("softmax", bool(options.get("adaptive_softmax_cutoff", None))),
        )
        if there
    }
    if not cutoffs:
        return None
    if len(set(cutoffs.values())) > 1:
        raise UserError(
            f"{options.where}: adaptive_input_cutoff={list(cutoffs['input'])} and "
            f"adaptive_softmax_cutoff={list(cutoffs['softmax'])} differ.",
            "seqtk's language model has the same clusters in both, so this model cannot be imported.",
        )
    factors = {f"{part}_factor": options.number(f"adaptive_{part}_factor", 4.0) for part in cutoffs}
    return AdaptiveConfig(
        cutoffs=next(iter(cutoffs.values())),
        input_factor=factors.get("input_factor"),
        softmax_factor=factors.get("softmax_factor"),
        tie_projections=bool(options.get("tie_adaptive_proj", False)),
        dropout=options.number("adaptive_softmax_dropout", 0.0),
    )


def seqtk_layout(state: Mapping[str, Tensor], *, adaptive: AdaptiveConfig | None, tied: bool) -> dict[str, Tensor]:
    """Converts the tensors of an adaptive softmax to seqtk's layout, and returns them with all other tensors.

    The first matrix is split into rows of words and rows of clusters. Projections of the other matrices are transposed,
    unless they are tied to the adaptive input.
    """
    shared_projections = tied and adaptive is not None and adaptive.tie_projections
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == f"{HEAD}.weight" and adaptive is not None:
            ours[f"{HEAD}.word_proj.weight"] = tensor[: adaptive.cutoffs[0]]
            ours[f"{HEAD}.class_proj.weight"] = tensor[adaptive.cutoffs[0] :]
        elif TAIL_PROJECTION.fullmatch(name) and not shared_projections:
            ours[name] = tensor.T
        else:
            ours[name] = tensor
    return ours


def _cutoffs(options: Options, name: str, vocabulary: int) -> tuple[int, ...]:
    """Parses cutoffs, an option that is a list or a string. Omits a last cutoff that equals the vocabulary size."""
    value = options.get(name, "")
    parts = re.findall(r"[^\s,()\[\]]+", value) if isinstance(value, str) else value
    try:
        found = tuple(int(part) for part in parts)
    except (TypeError, ValueError):
        found = ()
    if not found:
        raise UserError(f"{options.where}: the option '{name}' is {value!r}, not a list of numbers.")
    return found[:-1] if found[-1] == vocabulary else found
