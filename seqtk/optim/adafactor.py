"""Adafactor, based on torch's implementation. It stores second moments only per row and per column of a matrix."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seqtk.config.fields import setting
from seqtk.optim.base import OptimizerConfig, optimizers, parameter_groups, trainable_parameters

MIN_EPS = 1e-18
"""The first value of torch's `eps`. Its square must be a positive float32, or gradients of 0 give NaN.

It is also the lower bound of the mean of v. torch's default, 1e-7, is larger than typical squared gradients of a
mean over many tokens. It would make v̂ too small, and every update as large as the clipping threshold.
"""


@dataclass(frozen=True)
class AdafactorConfig(OptimizerConfig):
    """Adafactor: little memory, and steps proportional to the root mean square of the weights."""

    lr: float = setting(1e-2, above=0, help="Peak learning rate, relative to the root mean square of each tensor.")
    beta2_decay: float = setting(
        -0.8, below=0, help="c: at update t the decay of the running mean of squared gradients is 1 - t^c."
    )
    clip_threshold: float = setting(
        1.0, at_least=1, help="Maximum root mean square of an update, before multiplication by lr."
    )
    min_scale: float = setting(
        1e-3, above=0, help="lr is multiplied by the root mean square of the tensor, or by this value if it is larger."
    )


@optimizers.register("adafactor", AdafactorConfig)
class Adafactor(torch.optim.Adafactor):
    """Adafactor without momentum (Shazeer and Stern 2018, algorithm 4), with relative step sizes.

    Update t of a weight w with gradient g is w ← w − lr · decay · w − α · u / max(1, rms(u) / clip_threshold), with
    u = g / √v̂ and α = min(lr, 1 / √t) · max(min_scale, rms(w)).

    v is the running mean of g² with decay β = 1 − t^beta2_decay. For a vector v̂ = v. For a matrix, only the means R of
    v over each row and C over each column are stored, and v̂ = R C / mean(R). A tensor of more than two dimensions is a
    stack of matrices, one per head. 1 / √t is the paper's schedule and the upper bound of the learning rate (an lr of
    0.01 is reduced from update 10,000 on).

    State per weight: `step`, and `variance` for a vector, or `row_var` and `col_var` for a matrix. torch has no fused
    kernel for Adafactor.

    Means over columns and root mean squares require whole matrices. So sharded weights are gathered one at a time, each
    with its gradient. Every process computes the same update and keeps its part of the result.
    """

    def __init__(self, config: AdafactorConfig, model: nn.Module) -> None:
        parameters = trainable_parameters(model)
        super().__init__(
            parameter_groups(config, parameters),
            lr=config.lr,
            beta2_decay=config.beta2_decay,
            eps=(MIN_EPS, config.min_scale),
            d=config.clip_threshold,
        )
        self._whole: torch.optim.Adafactor | None = None
        """Updates one weight that is gathered from all processes."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one update."""
        groups = self.param_groups
        sharded = [(group, weight) for group in groups for weight in group["params"] if hasattr(weight, "full_tensor")]
        for group, weight in sharded:
            if weight.grad is not None:
                self._step_gathered(group, weight)
        return None if sharded else super().step(closure)  # type: ignore[no-untyped-call]

    def _step_gathered(self, group: dict[str, Any], weight: Any) -> None:
        from torch.distributed.tensor import distribute_tensor

        def part(tensor: Tensor) -> Tensor:
            return distribute_tensor(tensor, weight.device_mesh, weight.placements, src_data_rank=None)

        full = nn.Parameter(weight.full_tensor())
        full.grad = weight.grad.full_tensor()
        if self._whole is None:
            self._whole = torch.optim.Adafactor([full])
        self._whole.param_groups = [{**group, "params": [full]}]
        self._whole.state.clear()
        self._whole.state[full] = {
            name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            for name, tensor in self.state[weight].items()
        }
        self._whole.step()  # type: ignore[no-untyped-call]
        for name, tensor in self._whole.state[full].items():
            self.state[weight][name] = part(tensor) if name == "variance" else tensor
        weight.copy_(part(full.detach()))
