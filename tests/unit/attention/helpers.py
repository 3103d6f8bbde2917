"""Helpers shared by the tests of attention layers."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from seqtk.attention import Attention, StepState


@torch.no_grad()
def steps_and_state_sizes(layer: Attention, x_BTD: Tensor, state: StepState) -> tuple[Tensor, set[int]]:
    """Returns the outputs of one step per position, and the set of the state's sizes after each step."""
    outputs, sizes = [], set()
    for x_B1D in x_BTD.split(1, dim=1):
        y_B1D, state = layer.step(x_B1D, state)
        outputs.append(y_B1D)
        sizes.add(sum(leaf.numel() for leaf in tree_leaves(state) if leaf is not None))
    return torch.cat(outputs, 1), sizes
