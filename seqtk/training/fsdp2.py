"""Fully sharded data parallelism: each process keeps a part of every weight, gradient and optimizer tensor."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from seqtk.attention import Attention
from seqtk.models import Model
from seqtk.training.ddp import DDP, DDPConfig
from seqtk.training.parallel import EngineConfig, TrainStep, engines
from seqtk.utils.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


@dataclass(frozen=True)
class FSDP2Config(DDPConfig):
    """Each process holds a part of the model, and gathers the weights of a block while it computes it."""


@engines.register("fsdp2", FSDP2Config)
class FSDP2(DDP):
    """torch's `fully_shard` over blocks, then over everything else (Zhao et al. 2023, arXiv 2304.11277).

    Weights, gradients and the optimizer's state are DTensors in float32, split along their first axis.
    """

    compiles = "blocks"

    def __init__(self, config: EngineConfig, *, device: str) -> None:
        super().__init__(config, device=device)
        self._releases: dict[FSDPModule, bool] = {}
        """Every sharded module, and whether it releases its full weights after the forward pass."""

    def wrap(self, step: nn.Module) -> nn.Module:
        if self.size == 1:
            return step
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # half a second that other engines save

        mesh = init_device_mesh(self.device.type, (self.size,))
        if isinstance(step, TrainStep):
            step.copies = None  # they would be of all weights
        # Weights are gathered in float32, and autocast casts them where it has to: norms need theirs in float32.
        policy = MixedPrecisionPolicy(cast_forward_inputs=False)
        blocks = [block for module in step.modules() if isinstance(module, Model) for block in module.separate_blocks()]
        check_shared(step, blocks)
        for module in (*blocks, step):
            releases = module is not step and not _has_penalty(module)
            sharded: FSDPModule = fully_shard(module, mesh=mesh, reshard_after_forward=releases, mp_policy=policy)
            sharded.set_force_sum_reduction_for_comms(self.device.type == "cpu")  # gloo has no average
            self._releases[sharded] = releases
        step._get_fsdp_state()._lazy_init()  # type: ignore[operator]  # a validation may come before any forward pass
        return step

    @contextmanager
    def gradient_sync(self, wrapped: nn.Module, *, enabled: bool) -> Iterator[None]:
        for module in self._releases:
            module.set_requires_gradient_sync(enabled, recurse=False)
        yield

    @contextmanager
    def unsharded(self, wrapped: nn.Module) -> Iterator[None]:
        for module in self._releases:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module, releases in self._releases.items():
                module.reshard()
                module.set_reshard_after_forward(releases, recurse=False)

    def full(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

    def local(self, full: Tensor, like: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(like, DTensor):
            return full.to(like.device)
        return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def _has_penalty(module: nn.Module) -> bool:
    """Returns whether a layer adds a penalty on its weights to the loss, which reads them after the forward pass."""
    layers = (layer for layer in module.modules() if isinstance(layer, Attention))
    return any(type(layer).aux_loss is not Attention.aux_loss for layer in layers)


def check_shared(step: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Raises UserError if a block shares a weight with another module."""
    owners: dict[nn.Parameter, set[int]] = defaultdict(set)
    inside = {module for block in blocks for module in block.modules()}
    rest = [parameter for module in step.modules() if module not in inside for parameter in module.parameters(False)]
    for number, parameters in enumerate((rest, *(block.parameters() for block in blocks))):
        for parameter in parameters:
            owners[parameter].add(number)
    shared = next((name for name, parameter in step.named_parameters() if len(owners[parameter]) > 1), None)
    if shared is not None:
        raise UserError(
            f"parallel=fsdp2 cannot split the model: a block shares the weight {shared.removeprefix('model.')}.",
            "Set parallel=ddp.",
        )
