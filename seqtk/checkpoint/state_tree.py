"""Reads and writes recurrent states of models, which are trees of tensors, as safetensors files."""

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from seqtk.attention import State
from seqtk.checkpoint.model_file import Tensors, load_tensors, save_tensors
from seqtk.utils.errors import UserError


def pack_tree(tree: State, tensors: Tensors) -> Any:
    """Adds the tensors of a tree to `tensors`, and returns the tree with a name in place of each tensor."""

    def name(leaf: Tensor | None) -> str | None:
        if leaf is None:
            return None
        tensors[str(len(tensors))] = leaf
        return str(len(tensors) - 1)

    return tree_map(name, tree)


def unpack_tree(names: Any, tensors: Tensors) -> State:
    """Reverses `pack_tree`: returns the tree with its tensors."""
    return tree_map(lambda name: None if name is None else tensors[name], names)


def save_tree(path: Path, tree: State) -> None:
    """Writes a tree of tensors. The header records the path of each tensor in the tree."""
    tensors: Tensors = {}
    names = pack_tree(tree, tensors)
    save_tensors(path, tensors, {"tree": names})


def load_tree(path: Path) -> State:
    """Reads a tree that `save_tree` wrote. Raises UserError if the file is missing or damaged."""
    tensors, metadata = load_tensors(path)
    try:
        return unpack_tree(metadata["tree"], tensors)
    except KeyError as error:
        raise UserError(f"{path} does not contain the recurrent state of streams: {error} is missing.") from error
