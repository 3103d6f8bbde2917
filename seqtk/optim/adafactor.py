"""Adafactor, based on torch's: the second moments of a matrix are stored per row and per column only."""

from dataclasses import dataclass

import torch
from torch import nn

from seqtk.config.fields import setting
from seqtk.optim.base import OptimizerConfig, as_user_error, optimizers, parameter_groups, trainable_parameters
from seqtk.utils.errors import UserError

MIN_EPS = 1e-18
"""torch's first eps: its square, under the root of v, must be a float32 above zero, or gradients of 0 give NaN.

torch's default, 1e-7, is also its lower bound for the mean of v, and gradients of a mean over many tokens have smaller
squares than that: v̂ would be too small, and every update would be cut to the threshold.
"""


@dataclass(frozen=True)
class AdafactorConfig(OptimizerConfig):
    """Adafactor: steps in proportion to the size of the weights, with little memory."""

    lr: float = setting(
        1e-2, above=0, help="The peak of the schedule, relative to the root mean square of each tensor."
    )
    beta2_decay: float = setting(
        -0.8, below=0, help="After t updates, the running mean of squared gradients decays by t to this power."
    )
    clip_threshold: float = setting(
        1.0, above=0, help="An update, before lr, is scaled down to at most this root mean square."
    )
    min_scale: float = setting(1e-3, above=0, help="A tensor of smaller root mean square moves as if it had this one.")


@optimizers.register("adafactor", AdafactorConfig)
class Adafactor(torch.optim.Adafactor):
    """Adafactor without momentum (Shazeer and Stern 2018, algorithm 4), its relative step set by the schedule.

    After t updates, with β = 1 − t^beta2_decay and v the running mean of g² under β: of a matrix only the means of v
    over its rows R and over its columns C are kept, and v̂ = R C / mean(R); of a vector v̂ = v.
    u = g / √v̂;  w ← w − lr · decay · w − α · u / max(1, rms(u) / clip_threshold), α = min(lr, 1 / √t) · max(min_scale,
    rms(w)). The 1 / √t is the paper's own schedule: a rate above it (0.01 from update 10,000 on) is cut to it.
    A tensor of more than two dimensions is a stack of matrices, one per head.

    State per weight: `row_var` and `col_var`, or `variance`, and `step`. torch has no fused kernel for it.
    """

    def __init__(self, config: AdafactorConfig, model: nn.Module) -> None:
        parameters = trainable_parameters(model)
        if any(hasattr(parameter, "to_local") for parameter in parameters):
            raise UserError(
                "optimizer=adafactor needs whole matrices, of which parallel=fsdp2 gives each process a part.",
                "Set parallel=ddp, or another optimizer.",
            )
        try:
            super().__init__(
                parameter_groups(config, parameters),
                lr=config.lr,
                beta2_decay=config.beta2_decay,
                eps=(MIN_EPS, config.min_scale),
                d=config.clip_threshold,
            )
        except ValueError as refusal:
            raise as_user_error(refusal) from None
