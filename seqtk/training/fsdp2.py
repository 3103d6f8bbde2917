"""Fully sharded data parallelism: each process stores a shard of every weight, gradient and optimizer tensor."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from seqtk.checkpoint.model_file import Tensors
from seqtk.checkpoint.run_state import Pieces
from seqtk.models import Model
from seqtk.modules.linear import Linear
from seqtk.training.ddp import DDP, DDPConfig
from seqtk.training.parallel import EngineConfig, LostProcessError, TrainStep, engines, penalized_layers
from seqtk.utils.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule

T = TypeVar("T")


@dataclass(frozen=True)
class FSDP2Config(DDPConfig):
    """Fully sharded data parallelism: each process stores a shard of the model, and gathers one block at a time."""


@engines.register("fsdp2", FSDP2Config)
class FSDP2(DDP):
    """Applies torch's `fully_shard` to each block, then to all other modules (Zhao et al. 2023, arXiv 2304.11277).

    Weights, gradients and the optimizer's state are DTensors in float32, split along their first axis. Under autocast,
    the weights of blocks are gathered in autocast's dtype. Gradients are summed over processes in float32.
    """

    compiles = "blocks"
    shards = True

    def __init__(self, config: EngineConfig, *, device: str) -> None:
        super().__init__(config, device=device)
        self._releases: dict[FSDPModule, bool] = {}
        """Sharded module → True if it releases its full weights after the forward pass."""
        self._rounded: list[nn.Module] = []
        """The sharded modules that gather their weights in autocast's dtype."""
        self._is_unsharded = False
        self._mesh: DeviceMesh | None = None
        self._writers: dist.ProcessGroup | None = None
        """The process group for threads that write checkpoints."""

    def wrap(self, step: nn.Module) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh

        # Only this engine needs this import, which takes 0.5 s.
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        if self._writers is None:
            self._writers = dist.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout))
        mesh = self._mesh = init_device_mesh(self.device.type, (self.size,))
        dtype = step.autocast if isinstance(step, TrainStep) else None
        if isinstance(step, TrainStep):
            step.copies = None  # these copies would need all full weights
        precise = MixedPrecisionPolicy(cast_forward_inputs=False)
        rounded = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        blocks = [block for module in step.modules() if isinstance(module, Model) for block in module.separate_blocks()]
        check_shared(step, blocks)
        for module in (*blocks, step):
            # The weights outside the blocks are embedding tables, which autocast does not round, and the last norms.
            # Auxiliary losses read the weights of their layers after the forward pass.
            releases = module is not step and not penalized_layers(module)
            policy = rounded if releases and dtype is not None else precise
            sharded: FSDPModule = fully_shard(module, mesh=mesh, reshard_after_forward=releases, mp_policy=policy)
            sharded.set_force_sum_reduction_for_comms(self.device.type == "cpu")  # gloo does not support averages
            self._releases[sharded] = releases
            if policy is rounded:
                self._rounded.append(module)
                module.register_forward_pre_hook(self._widen)
                module.register_forward_hook(self._narrow, always_call=True)
        step._get_fsdp_state()._lazy_init()  # type: ignore[operator]  # a validation may come before any forward pass
        return step

    def _widen(self, block: nn.Module, *_: Any) -> None:
        """Converts weights that autocast does not cast, such as the weights of norms, to float32 for the forward pass.

        The converted weight is an attribute, which hides the parameter of the module. The parameter gets the gradient.
        """
        if not self._is_unsharded:
            for module in block.modules():
                if type(module) is not Linear:
                    module.__dict__ |= {name: parameter.float() for name, parameter in _own_parameters(module)}

    def _narrow(self, block: nn.Module, *_: Any) -> None:
        if not self._is_unsharded:
            for module in block.modules():
                for name, _weight in _own_parameters(module):
                    module.__dict__.pop(name, None)

    @contextmanager
    def gradient_sync(self, wrapped: nn.Module, *, enabled: bool) -> Iterator[None]:
        for module in self._releases:
            module.set_requires_gradient_sync(enabled, recurse=False)
        yield

    @contextmanager
    def unsharded(self, wrapped: nn.Module) -> Iterator[None]:
        for block in self._rounded:  # decoding does not run under autocast
            for module in block.modules():
                module.__dict__ |= {name: self.full(parameter.detach()) for name, parameter in _own_parameters(module)}
        for each in self._releases:
            each.set_reshard_after_forward(False, recurse=False)
            each.unshard()
        self._is_unsharded = True
        try:
            yield
        finally:
            self._is_unsharded = False
            for sharded, releases in self._releases.items():
                sharded.reshard()
                sharded.set_reshard_after_forward(releases, recurse=False)
            for block in self._rounded:
                self._narrow(block)

    def full(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

    def local(self, full: Tensor, like: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, distribute_tensor

        if isinstance(full, DTensor):  # as `empty` returns it
            return full
        if not isinstance(like, DTensor):
            return full.to(like.device)
        return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)

    def pieces(self, tensors: Tensors, *, copies: bool = False) -> Pieces:
        from seqtk.checkpoint.shards import stage

        pieces = stage(tensors, rank=self.rank, copies=copies)
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return pieces

    def empty(self, full: Tensor, like: Tensor) -> Tensor:
        return torch.empty_like(like, dtype=full.dtype, requires_grad=False)

    def together(self, step: Callable[[], T]) -> T:
        failure: Exception | None = None
        try:
            result = step()
        except Exception as error:
            failure = error
        # The problem of each process: (True if it is a UserError, the message).
        problems: list[tuple[bool, str] | None] = [None] * self.size
        mine = None if failure is None else (isinstance(failure, UserError), str(failure))
        dist.all_gather_object(problems, mine, group=self._writers)
        if failure is not None:
            raise failure
        for rank, problem in enumerate(problems):
            if problem is not None:
                is_users, text = problem
                raise UserError(text) if is_users else LostProcessError(f"Process {rank} failed to save a checkpoint.")
        return result

    def close(self) -> None:
        self._writers = None
        # As in DDP, the last references to the group must be deleted. torch caches tensor layouts, which refer to the
        # mesh. Other releases of torch may name these attributes differently; then only the threads of the group
        # remain.
        for module in self._releases:
            group = getattr(module._get_fsdp_state(), "_fsdp_param_group", None)
            if group is not None:
                vars(group.mesh_info).pop("shard_process_group", None)
        getattr(self._mesh, "_pg_registry", {}).clear()
        super().close()


def _own_parameters(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Returns a list of (name, parameter) of a module, without the parameters of its submodules."""
    return list(module.named_parameters(recurse=False))


def check_shared(step: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Raises UserError if a block shares a weight with a module outside the block."""
    owners: dict[nn.Parameter, set[int]] = defaultdict(set)
    inside = {module for block in blocks for module in block.modules()}
    rest = [parameter for module in step.modules() if module not in inside for parameter in module.parameters(False)]
    for number, parameters in enumerate((rest, *(block.parameters() for block in blocks))):
        for parameter in parameters:
            owners[parameter].add(number)
    shared = next((name for name, parameter in step.named_parameters() if len(owners[parameter]) > 1), None)
    if shared is not None:
        raise UserError(
            f"parallel=fsdp2 cannot shard the model: {shared.removeprefix('model.')} is shared with other modules.",
            "Set parallel=ddp.",
        )
