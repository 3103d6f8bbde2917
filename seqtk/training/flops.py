"""Counts the floating-point operations (FLOPs) of an update, and lists the peak FLOP/s of devices, to compute MFU.

MFU (model FLOPs utilization; Chowdhery et al. 2022, arXiv:2204.02311, appendix B) is the number of FLOPs that the model
needs for an update, divided by the number that the device could compute at peak speed in the same time. A position that
is multiplied by matrices with W weights in total needs 6 W FLOPs: 2 W in the forward pass and 4 W in the backward pass.
An attention layer of width D with T queries and S keys needs another 12 T S D for its two matrix products. Padding,
recomputed activations, norms and elementwise operations do not count.
"""

import re

import numpy as np
from torch import Tensor, nn

from seqtk.attention import Role
from seqtk.data.plan import SizeArray
from seqtk.models import Model
from seqtk.modules.adaptive import AdaptiveHead

GPUS: dict[str, tuple[float, float, float]] = {
    "B200": (2250, 2250, 75),
    "H200 NVL": (835, 835, 60),
    "H200": (989.4, 989.4, 66.9),
    "H100 PCIe": (756, 756, 51),
    "H100 NVL": (835, 835, 60),
    "H100": (989.4, 989.4, 66.9),
    "GH200": (989.4, 989.4, 66.9),
    "A100": (312, 312, 19.5),
    "A800": (312, 312, 19.5),
    "A40": (149.7, 149.7, 37.4),
    "A30": (165, 165, 10.3),
    "A10": (125, 125, 31.2),
    "L40S": (362.05, 362.05, 91.6),
    "L40": (181.05, 181.05, 90.5),
    "L4": (121, 121, 30.3),
    "RTX A6000": (154.8, 154.8, 38.7),
    "RTX 4090": (165.2, 165.2, 82.6),
    "RTX 3090": (71, 71, 35.6),
    "T4": (0, 65, 8.1),
    "V100": (0, 125, 15.7),
    "MI300X": (1307.4, 1307.4, 163.4),
    "MI250X": (383, 383, 95.7),
}
"""GPU → peak TFLOP/s of matrix products in bf16, fp16 and fp32. 0: the hardware does not support this precision.

The values are from the manufacturers' data sheets, without sparsity; for GeForce GPUs, from NVIDIA's white papers, with
fp32 accumulation. fp32 is full precision without TF32, as by default in torch.
"""


def peak_tflops(gpu: str, precision: str) -> float | None:
    """Returns the peak TFLOP/s of a GPU in `fp32`, `bf16` or `fp16`, or None if it is unknown."""
    for name, figures in GPUS.items():
        if re.search(rf"\b{re.escape(name)}\b", gpu):
            return figures[("bf16", "fp16", "fp32").index(precision)] or None
    return None


class ModelFlops:
    """Counts the FLOPs of an update from the model's weights and the lengths of the examples.

    Counts the weights of linear layers, convolutions and the output layer. In a model with an encoder and a decoder,
    source positions pass through the encoder and through the key and value projections of cross-attention, and target
    positions through all other weights. In any other model, all positions pass through all weights. Heads that pool a
    sequence are not counted. For an adaptive softmax, only the band of the most frequent tokens is counted. Layers that
    declare `subquadratic` compute no products of all queries and keys.

    Args:
        model: The model, before its weights are sharded.
    """

    def __init__(self, model: Model) -> None:
        self.is_pair = hasattr(model, "encoder") and hasattr(model, "decoder")
        self.source = self.target = 0
        """The number of weights that a source position, and a target position, is multiplied by."""
        self.pairs = dict.fromkeys((Role.ENCODER, Role.CAUSAL, Role.CROSS), 0)
        """Role → total width of the layers in this role that compare every query with every key."""
        of_memory: set[nn.Module] = set()
        for _, layer in model.attention_layers():
            self.pairs[layer.role] += 0 if layer.subquadratic else layer.dim
            if layer.role is Role.CROSS:
                of_memory |= {part for name, part in layer.named_children() if name in ("key", "value", "key_value")}
        in_encoder = set(getattr(model, "encoder", nn.Module()).modules())
        in_head = set(model.head.modules())
        for module in model.modules():
            if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) or module in in_head:
                continue
            count = module.weight.numel()
            if module in in_encoder or module in of_memory:
                self.source += count
            else:
                self.target += count
        self.target += _head_weights(model.head)

    def of_update(self, sizes_ND: SizeArray) -> float:
        """Returns the number of FLOPs of a forward and backward pass over examples.

        Args:
            sizes_ND: The lengths of the examples, of shape (examples,) or (examples, 2) for source and target.
        """
        lengths_ND = sizes_ND.reshape(len(sizes_ND), -1).astype(np.float64)
        source_N, target_N = lengths_ND[:, 0], lengths_ND[:, -1]
        if self.is_pair:
            weights = self.source * source_N.sum() + self.target * target_N.sum()
            squares = {
                Role.ENCODER: source_N @ source_N,
                Role.CAUSAL: target_N @ target_N,
                Role.CROSS: source_N @ target_N,
            }
        else:
            weights = (self.source + self.target) * lengths_ND.sum()
            squares = dict.fromkeys(self.pairs, (lengths_ND**2).sum())
        return float(6 * weights + 12 * sum(width * squares[role] for role, width in self.pairs.items()))


def _head_weights(head: nn.Module) -> int:
    """Returns the number of the head's weights that each position is multiplied by."""
    weight = head.bands[0] if isinstance(head, AdaptiveHead) else getattr(head, "weight", None)
    return weight.numel() if isinstance(weight, Tensor) else 0
