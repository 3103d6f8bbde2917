"""Dynamic loss scaling for float16, computed on the device."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

INITIAL, LARGEST, SMALLEST, GROWTH_EVERY = 2.0**15, 2.0**24, 2.0**-10, 2000
"""The scale starts at INITIAL, halves with each overflow, and doubles after GROWTH_EVERY updates without one."""


class LossScale:
    """Dynamic loss scaling (Micikevicius et al. 2018, section 3.2), without synchronizing host and device.

    Args:
        device: The device of the state.
        saved: The result of `state` in a checkpoint. None or empty: a new run.
    """

    names = ("scale", "updates")

    def __init__(self, *, device: torch.device, saved: Mapping[str, float] | None = None) -> None:
        start = {"scale": INITIAL, "updates": 0.0, **(saved or {})}
        self.values = torch.tensor([start[name] for name in self.names], dtype=torch.float64, device=device)
        """[the scale, the number of updates since it last changed]."""

    @property
    def scale(self) -> Tensor:
        return self.values[0]

    def state(self, values: Sequence[float]) -> dict[str, float]:
        """Returns the state to save in a checkpoint, from the elements of `self.values` on the host."""
        return dict(zip(self.names, values, strict=True))

    def is_overflow(self, *, loss: Tensor, gradient: Tensor) -> Tensor:
        """Returns a boolean tensor: True if an update has an overflow and the scale can be halved.

        An update has an overflow if its loss is finite and its gradient is not.

        Args:
            loss, gradient: Boolean tensors: True if the loss, or the gradient, is finite.
        """
        return loss & ~gradient & (self.scale > SMALLEST)

    def update(self, *, made: Tensor, overflow: Tensor) -> None:
        """Adapts the scale after an update that was `made` or had an overflow. Any other failure changes nothing."""
        scale, updates = self.values.unbind()
        updates = updates + made
        grows = updates >= GROWTH_EVERY
        scale = torch.where(overflow, scale / 2, torch.where(grows, (scale * 2).clamp(max=LARGEST), scale))
        self.values = torch.stack([scale, torch.where(overflow | grows, 0.0, updates)])
