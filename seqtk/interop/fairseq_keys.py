"""Converts the names of a Transformer's parameters from fairseq (any version) to seqtk."""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from seqtk.interop.fairseq_file import missing_tensor
from seqtk.utils.errors import UserError

FIRST_POSITION = 2
"""fairseq numbers positions from padding_idx + 1, so the first two rows of a learned table are not used."""

NAMES = {
    "source_embedding.tokens.": "encoder.embed_tokens.",
    "source_embedding.positions.table.": "encoder.embed_positions.",
    "source_embedding.norm.": "encoder.layernorm_embedding.",
    "target_embedding.tokens.": "decoder.embed_tokens.",
    "target_embedding.positions.table.": "decoder.embed_positions.",
    "target_embedding.norm.": "decoder.layernorm_embedding.",
    "embedding.tokens.": "decoder.embed_tokens.",
    "embedding.positions.table.": "decoder.embed_positions.",
    "embedding.norm.": "decoder.layernorm_embedding.",
    "head.": "decoder.output_projection.",
    ".norm.": ".layer_norm.",
}
"""seqtk's name → fairseq's current name, outside the blocks. `embedding` is the embedding of a language model."""

BLOCK_NAMES = {
    "self_attention.": "self_attn.",
    "cross_attention.": "encoder_attn.",
    "self_residual.norm.": "self_attn_layer_norm.",
    "cross_residual.norm.": "encoder_attn_layer_norm.",
    "ffn_residual.norm.": "final_layer_norm.",
    "feed_forward.expand.": "fc1.",
    "feed_forward.contract.": "fc2.",
    "query.": "q_proj.",
    "key.": "k_proj.",
    "value.": "v_proj.",
    ".out.": ".out_proj.",
}
"""seqtk's name → fairseq's current name, inside a block."""

LIGHTCONV_NAMES = {
    "self_attention.kernel.weight": "conv.weight_linear.weight",
    "self_attention.kernel": "conv.weight",
    "self_attention.value.": "linear1.",
    "self_attention.out.": "linear2.",
}
LIGHTCONV_NORMS = {
    "encoder": {"self_residual.norm.": "layer_norm1.", "ffn_residual.norm.": "layer_norm2."},
    "decoder": {"self_residual.norm.": "conv_layer_norm."},
}
"""seqtk's name → fairseq's current name, for names that are different in blocks of a lightconv model."""

NUMBERED_NORMS = {
    "encoder": ("self_attn_layer_norm", "final_layer_norm"),
    "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
}
NUMBERED_LIGHTCONV_NORMS = {"encoder": ("layer_norm1", "layer_norm2"), "decoder": ()}
"""Stack → fairseq's current names of `layer_norms.0`, `layer_norms.1`, … of releases before 0.7."""

ADAPTIVE_NAMES = (
    (r"embedding\.tokens\.bands\.(\d+)\.weight", "decoder.embed_tokens.embeddings.{}.0.weight", 0),
    (r"embedding\.tokens\.projections\.(\d+)\.weight", "decoder.embed_tokens.embeddings.{}.1.weight", 0),
    (r"head\.bands\.(0)", "decoder.adaptive_softmax.head.word_proj.weight", 0),
    (r"head\.(classes)", "decoder.adaptive_softmax.head.class_proj.weight", 0),
    (r"head\.bands\.(\d+)", "decoder.adaptive_softmax.tail.{}.2.weight", 1),  # band 1 is tail 0
    (r"head\.projections\.(\d+)", "decoder.adaptive_softmax.tail.{}.0.weight", 0),
)
"""(seqtk's name, fairseq's current name, seqtk's band number minus fairseq's), for adaptive input and softmax."""

EMPTY = re.compile(
    r"(encoder|decoder)\.(version|embed_positions\._float_tensor|layers\.\d+\.conv\.conv_bias"
    r"|embed_tokens\._float_tensor|adaptive_softmax\.version|adaptive_softmax\.head\._float_tensor)"
)
"""Keys to ignore. Their values are not weights, but a format version, a device, or uninitialized memory."""


def fairseq_name(name: str, *, lightconv: bool = False) -> str:
    """Returns fairseq's current name of the parameter `name` of a Transformer or lightconv model."""
    for ours, theirs, first in ADAPTIVE_NAMES:
        if match := re.fullmatch(ours, name):
            return theirs.format(int(match[1]) - first if match[1].isdigit() else "")
    stack, blocks, inside = name.partition(".blocks.")
    table = BLOCK_NAMES if blocks else NAMES
    if blocks and lightconv:
        table = LIGHTCONV_NAMES | BLOCK_NAMES | LIGHTCONV_NORMS[stack]
    renamed = inside or name
    for ours, theirs in table.items():
        renamed = renamed.replace(ours, theirs)
    return f"{stack}.layers.{renamed}" if blocks else renamed


def current_names(state: Mapping[str, Tensor], *, lightconv: bool = False) -> dict[str, Tensor]:
    """Renames tensors to fairseq's current names, and splits stacked projections of query, key and value."""
    norms = NUMBERED_LIGHTCONV_NORMS if lightconv else NUMBERED_NORMS
    return dict(
        pair for name, tensor in state.items() for pair in _with_current_name(name, tensor, numbered_norms=norms)
    )


def _with_current_name(
    name: str, tensor: Tensor, *, numbered_norms: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, Tensor]]:
    if match := re.fullmatch(r"(.*\.)in_proj_(weight|bias)", name):
        for letter, part in zip("qkv", tensor.chunk(3), strict=True):
            yield f"{match[1]}{letter}_proj.{match[2]}", part
    elif match := re.fullmatch(r"((encoder|decoder)\.layers\.\d+\.)layer_norms\.(\d)\.(weight|bias)", name):
        norms = numbered_norms[match[2]]
        norm = norms[int(match[3])] if int(match[3]) < len(norms) else f"layer_norms.{match[3]}"
        yield f"{match[1]}{norm}.{match[4]}", tensor
    elif name == "decoder.embed_out":
        yield "decoder.output_projection.weight", tensor
    else:
        yield name, tensor


def seqtk_state(
    state: Mapping[str, Tensor], model: nn.Module, *, where: str, lightconv: bool = False
) -> dict[str, Tensor]:
    """Converts fairseq's tensors, `state`, to float32 tensors with seqtk's names and the shapes that `model` requires.

    At least one of several tied tensors must be present. Raises a UserError that names the key if a tensor is missing
    or unknown, does not have the shape that the options require, or differs from a tensor to which it is tied.
    """
    ours: dict[str, Tensor] = {}
    unused = {name for name in state if not EMPTY.fullmatch(name)}
    tied = tied_names(model)
    for name, wanted in model.state_dict().items():
        theirs = fairseq_name(name, lightconv=lightconv)
        if theirs not in state:
            others = (fairseq_name(other, lightconv=lightconv) for other in tied.get(name, ()))
            theirs = next((other for other in others if other in state), theirs)
        if theirs not in state:
            raise missing_tensor(theirs, where=where)
        unused.discard(theirs)
        tensor = state[theirs].float()
        if name.endswith("positions.table.weight"):
            tensor = tensor[FIRST_POSITION:].clone()
        elif theirs.endswith(".conv.weight") and tensor.dim() == 3:  # heads × 1 × taps
            tensor = tensor.squeeze(1)
        if tensor.shape != wanted.shape:
            raise UserError(
                f"{where}: '{theirs}' is {_shape(tensor)}, but the options in the file require {_shape(wanted)}."
            )
        first = tied.get(name, (name,))[0]
        if first in ours and not torch.equal(tensor, ours[first]):
            raise UserError(
                f"{where}: '{theirs}' and '{fairseq_name(first, lightconv=lightconv)}' differ.",
                "The options in the file tie them. The file is damaged, or its options are from a different model.",
            )
        ours[name] = tensor
    if unused:
        raise UserError(
            f"{where} contains {len(unused)} keys that seqtk's Transformer does not have: "
            f"{', '.join(sorted(unused)[:3])}{', …' if len(unused) > 3 else ''}",
            "The tensors and options in the file do not match, so it cannot be imported.",
        )
    return ours


def tied_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Returns name → all names of the same parameter, for the parameters of `model` that have several names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: tuple(group) for group in names.values() if len(group) > 1 for name in group}


def _shape(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape))
