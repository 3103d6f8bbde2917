"""Finds the module in which NaN or infinite numbers first appear in an update or a validation.

After a failure, the computation is repeated with hooks on all modules. Without a failure, this takes no time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import IntEnum
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from seqtk.attention import State
from seqtk.checkpoint.model_file import first_bad, tensors_of
from seqtk.data.batch import Batch
from seqtk.training.parallel import Engine, TrainStep
from seqtk.utils.errors import UserError

MAX_LISTED_EXAMPLES = 20
"""Maximum number of examples that an error lists."""
LOSS = "the loss"


class NotFiniteError(UserError):
    """Raised if the loss, a gradient, a weight or a metric is not finite: training has diverged."""


class Stage(IntEnum):
    """The stages of a computation, in order. A failure in one stage makes all later stages fail."""

    WEIGHT = 0
    FORWARD = 1
    BACKWARD = 2
    GRADIENT = 3
    NOWHERE = 4


@dataclass(frozen=True)
class Origin:
    """The first tensor that was not finite."""

    stage: Stage
    name: str = ""
    """The name of the module or weight."""
    ids: tuple[int, ...] = ()
    """The indices of the examples in the batch."""

    def __str__(self) -> str:
        return {
            Stage.WEIGHT: f"because the weight {self.name} is not",
            Stage.FORWARD: f"first in the output of {self.name}",
            Stage.BACKWARD: f"first in the gradient of the output of {self.name}",
            Stage.GRADIENT: f"first in the gradient of {self.name}",
            Stage.NOWHERE: "but it was finite when the update was repeated",
        }[self.stage]

    @property
    def examples(self) -> str:
        """The numbers of the examples, from 1, as text."""
        more = ", …" if len(self.ids) > MAX_LISTED_EXAMPLES else ""
        return ", ".join(str(index + 1) for index in self.ids[:MAX_LISTED_EXAMPLES]) + more


@dataclass
class Probe:
    """Records the inputs of a train step, and the first failure in it."""

    inputs: list[tuple[Batch, State]] = field(default_factory=list)
    """All micro-batches, each with its initial recurrent state."""
    found: Origin | None = None
    """The first failure, or None."""
    at: int = 0
    """The index of the micro-batch of `found`."""

    def note(self, stage: Stage, name: str) -> None:
        """Records a failure of the current micro-batch if it is the first."""
        if self.found is None:
            self.at = len(self.inputs) - 1
            self.found = Origin(stage, name, ids=tuple(self.inputs[-1][0].examples))


@contextmanager
def probing(step: TrainStep) -> Iterator[Probe]:
    """Context manager in which hooks on all modules of `step` record failures. Yields the probe with the records."""
    probe = Probe()

    def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        probe.inputs.append((inputs[0], inputs[1] if len(inputs) > 1 else None))

    def leave(name: str, _: nn.Module, __: Any, output: Any) -> None:
        for tensor in _tensors(output):
            # Masks add -inf to logits, so -inf is a failure only in the loss.
            if (tensor.isfinite() if name == LOSS else (tensor.isneginf() | tensor.isfinite())).all():
                if tensor.requires_grad:
                    handles.append(tensor.register_hook(partial(gradient, name)))  # type: ignore[no-untyped-call]
            else:
                probe.note(Stage.FORWARD, name)

    def gradient(name: str, tensor: Tensor) -> None:
        if not tensor.isfinite().all():
            probe.note(Stage.BACKWARD, name)

    handles = [step.register_forward_pre_hook(enter)]
    for name, module in step.named_modules():
        handles.append(module.register_forward_hook(partial(leave, _shown(name))))
    try:
        yield probe
    finally:
        for handle in handles:
            handle.remove()


def _shown(name: str) -> str:
    return {"": LOSS, "model": "the model"}.get(name, name.removeprefix("model."))


def origin_of(probe: Probe, step: TrainStep, *, engine: Engine) -> Origin:
    """Returns the origin of a failure. Collective.

    Of several processes, returns the origin of the earliest stage; of equal stages, the origin of the lowest rank.

    Args:
        probe: The probe of this process, after the computation was repeated.
        step: The train step.
        engine: The engine of the run.
    """
    found = probe.found
    weight = first_bad({name: engine.full(tensor) for name, tensor in tensors_of(step.model).items()})
    if weight is not None:
        found = Origin(Stage.WEIGHT, weight)
    elif found is None:
        gradients = {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}
        bad = first_bad({name: engine.full(gradient) for name, gradient in gradients.items()})
        found = Origin(Stage.NOWHERE) if bad is None else Origin(Stage.GRADIENT, bad)
    if not found.ids:
        ids = tuple(index for batch, _ in probe.inputs for index in batch.examples)
        found = replace(found, ids=ids)
    by_rank: list[Origin] = engine.gather(found)
    return min(by_rank, key=lambda origin: origin.stage)


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yields the floating-point tensors in the output of a module, including those in dataclasses."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            if leaf.is_floating_point():
                yield leaf
        elif is_dataclass(leaf):
            yield from _tensors([getattr(leaf, part.name) for part in fields(leaf)])
