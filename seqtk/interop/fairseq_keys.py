"""The names under which fairseq keeps a Transformer's parameters, of every age, and how they become ours."""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from seqtk.interop.fairseq_file import lacking
from seqtk.utils.errors import UserError

FIRST_POSITION = 2
"""fairseq numbers positions from padding_idx + 1; the two rows of a learned table before it belong to no token."""

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
"""Ours → today's fairseq's, outside the blocks; a language model's embedding has no side in its name."""

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
"""Ours → today's fairseq's, inside a block."""

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
"""Ours → today's fairseq's, inside a block of a lightconv model, where that has names of its own."""

NUMBERED_NORMS = {
    "encoder": ("self_attn_layer_norm", "final_layer_norm"),
    "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
}
NUMBERED_LIGHTCONV_NORMS = {"encoder": ("layer_norm1", "layer_norm2"), "decoder": ()}
"""What `layer_norms.N` of the releases before 0.7 are called today."""

ADAPTIVE_NAMES = (
    (r"embedding\.tokens\.bands\.(\d+)\.weight", "decoder.embed_tokens.embeddings.{}.0.weight", 0),
    (r"embedding\.tokens\.projections\.(\d+)\.weight", "decoder.embed_tokens.embeddings.{}.1.weight", 0),
    (r"head\.bands\.(0)", "decoder.adaptive_softmax.head.word_proj.weight", 0),
    (r"head\.(classes)", "decoder.adaptive_softmax.head.class_proj.weight", 0),
    (r"head\.bands\.(\d+)", "decoder.adaptive_softmax.tail.{}.2.weight", 1),  # band 1 is tail 0
    (r"head\.projections\.(\d+)", "decoder.adaptive_softmax.tail.{}.0.weight", 0),
)
"""Ours → today's fairseq's, of adaptive input and softmax, and which band of ours is number 0 there."""

EMPTY = re.compile(
    r"(encoder|decoder)\.(version|embed_positions\._float_tensor|layers\.\d+\.conv\.conv_bias"
    r"|embed_tokens\._float_tensor|adaptive_softmax\.version|adaptive_softmax\.head\._float_tensor)"
)
"""Keys that hold a format's number, a device, or memory that was never initialised, and nothing of the model."""


def fairseq_name(name: str, *, lightconv: bool = False) -> str:
    """What today's fairseq calls our parameter `name`, of a Transformer or of a lightconv model."""
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


def todays_names(state: Mapping[str, Tensor], *, lightconv: bool = False) -> dict[str, Tensor]:
    """The same tensors under the names that today's fairseq gives them; stacked projections are taken apart."""
    norms = NUMBERED_LIGHTCONV_NORMS if lightconv else NUMBERED_NORMS
    return dict(pair for name, tensor in state.items() for pair in _today(name, tensor, numbered_norms=norms))


def _today(name: str, tensor: Tensor, *, numbered_norms: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, Tensor]]:
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


def our_state(
    state: Mapping[str, Tensor], model: nn.Module, *, where: str, lightconv: bool = False
) -> dict[str, Tensor]:
    """The float32 tensors of fairseq's `state` under our names, as many and of such shapes as `model` has.

    Of tensors that are one in `model` all but one may be left out. Raises UserError naming a key that is missing or
    unknown, whose shape is not what the options promise, or that differs from one that they say is the same.
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
            raise lacking(theirs, where=where)
        unused.discard(theirs)
        tensor = state[theirs].float()
        if name.endswith("positions.table.weight"):
            tensor = tensor[FIRST_POSITION:].clone()
        elif theirs.endswith(".conv.weight") and tensor.dim() == 3:  # heads × 1 × taps
            tensor = tensor.squeeze(1)
        if tensor.shape != wanted.shape:
            raise UserError(
                f"{where}: '{theirs}' is {_shape(tensor)}, but the options it was saved with ask for {_shape(wanted)}."
            )
        first = tied.get(name, (name,))[0]
        if first in ours and not torch.equal(tensor, ours[first]):
            raise UserError(
                f"{where}: '{theirs}' and '{fairseq_name(first, lightconv=lightconv)}' differ.",
                "Its options say that they are shared, so it is damaged, or another model than they say.",
            )
        ours[name] = tensor
    if unused:
        raise UserError(
            f"{where} holds {len(unused)} keys that our Transformer has nothing for: "
            f"{', '.join(sorted(unused)[:3])}{', …' if len(unused) > 3 else ''}",
            "It is another model than its options say, so it cannot be imported.",
        )
    return ours


def tied_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """For each parameter that has several names in `model` all of them, in the order of its tensors."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: tuple(group) for group in names.values() if len(group) > 1 for name in group}


def _shape(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape))
