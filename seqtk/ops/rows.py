"""Rows with padding anywhere, brought to start at their first real position, for layers that cut rows into pieces.

B batch, T length, D width.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows whose real positions come first, and the way back; blocks, segments and windows are counted on these."""

    x_BTD: Tensor
    pad_BT: Tensor | None
    place_BT: Tensor | None = None
    """Where each aligned position stood, None if rows were aligned already."""

    def restore(self, y_BTD: Tensor) -> Tensor:
        """Outputs at aligned positions, put back to where the positions stood."""
        if self.place_BT is None:
            return y_BTD
        return y_BTD.new_zeros(y_BTD.shape).scatter(1, self.place_BT[..., None].expand_as(y_BTD), y_BTD)


def align(x_BTD: Tensor, pad_BT: Tensor | None, *, right_padded: bool) -> Rows:
    """The rows aligned. `right_padded` (known on the host, e.g. `positions_BT is None`) makes it free.

    Only rows that are not known to be padded on the right are moved: one stable sort of `pad_BT`, and a gather.
    """
    if pad_BT is None or right_padded:
        return Rows(x_BTD, pad_BT)
    place_BT = pad_BT.byte().argsort(dim=1, stable=True)
    return Rows(x_BTD.take_along_dim(place_BT[..., None], 1), pad_BT.take_along_dim(place_BT, 1), place_BT)
