"""Compiles the training step with torch.compile.

`compile=step` compiles the forward pass, the loss and the backward pass into one graph; `compile=blocks` compiles each
block of a stack. With `batch.shapes`, each shape is compiled once; otherwise, one graph with dynamic shapes is used.
Only training uses compiled code. Validation, decoding and the search for the cause of non-finite numbers run eagerly.
Compiled code is cached on disk, so that later runs of the same model start faster.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from seqtk.attention import State, attentions
from seqtk.criterions.base import Stats
from seqtk.data.batch import Batch
from seqtk.models.stacks import DecoderBlock, EncoderBlock
from seqtk.modules.adaptive import AdaptiveHead
from seqtk.training.parallel import TrainStep
from seqtk.utils.errors import UserError, how_many

if TYPE_CHECKING:
    from seqtk.training.trainer import Trainer

MAX_GRAPHS = 32
"""Maximum number of graphs of a function if `batch.shapes` is not set. A layer that is recompiled for more lengths than
this runs eagerly."""


_changes = ExitStack()
"""Undoes changes to the settings of this process. Each `undoing_changes` replaces it by a new one."""


@contextmanager
def undoing_changes() -> Iterator[None]:
    """Context manager that restores the settings of this process that a `Compilation` changes.

    These are the settings of torch.compile, and a callback that logs that compilation has started.
    """
    global _changes
    before, _changes = _changes, ExitStack()
    try:
        with _changes:
            yield
    finally:
        _changes = before


def uncompiled() -> AbstractContextManager[None]:
    """Returns a context manager in which all code runs eagerly, so that hooks are called for every module."""
    context: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return context


class Compilation:
    """Compiles a train step in place, for training mode only. The names of modules and parameters do not change.

    Args:
        run: The run, before the engine wraps its train step.
        mode: "blocks": compile each block. "step": compile the whole step.

    Raises:
        UserError: If the mode is "step" and the engine does not support it.
    """

    def __init__(self, run: "Trainer", mode: Literal["blocks", "step"]) -> None:
        self.run, self.step, self.shapes = run, run.step, run.config.batch.shapes
        self.mode: Literal["off", "blocks", "step"] = mode
        if mode == "step" and run.engine.compiles != "step":
            raise UserError(
                "compile=step: this engine communicates between blocks, so it cannot compile the step into one graph.",
                f"Set compile={run.engine.compiles}, or parallel=ddp.",
            )
        self._compute: Callable[..., tuple[Tensor, Stats, State]] = self.step.compute
        self._blocks = [module for module in self.step.modules() if isinstance(module, EncoderBlock | DecoderBlock)]
        self._reported = 0
        self._start()

    def _start(self) -> None:
        _set_cache_folder()
        self._watch, self._before = _watch(), _watch().graphs
        _changes.callback(setattr, self._watch, "started", self._watch.started)
        self._watch.started = self._announce
        self._watch.listen()
        torch_config: Any = torch._dynamo.config
        _changes.callback(setattr, torch_config, "recompile_limit", torch_config.recompile_limit)
        torch_config.recompile_limit = max(torch_config.recompile_limit, 2 * self.shapes if self.shapes else MAX_GRAPHS)
        options: dict[str, Any] = {"fullgraph": True, "dynamic": self.shapes is None}
        if self.run.engine.device.type == "cpu":
            # torch's generator is several times faster than inductor's, and draws the same masks as without compile.
            options["options"] = {"fallback_random": True}
        elif self.mode == "step" and self._may_record():
            options["mode"] = "reduce-overhead"
        try:
            if self.mode == "step":
                self._compute = torch.compile(self._compute, **options)
            for block in self._blocks if self.mode == "blocks" else []:
                block.forward = _in_training(block, torch.compile(block.forward, **options))  # type: ignore[method-assign]
        except RuntimeError as error:  # torch.compile does not support this Python or operating system
            self._stop(error)
        self.step.compute = self._run  # type: ignore[method-assign]

    def _may_record(self) -> bool:
        """Returns True if the step can be recorded in CUDA graphs.

        A replay of a graph overwrites the outputs of the previous replay, but gradient accumulation and recurrent
        states still need them. An adaptive softmax synchronizes with the host, to read the number of rare words.
        """
        config = self.run.config
        reads = any(isinstance(module, AdaptiveHead) for module in self.step.modules())
        return bool(self.shapes and config.update_freq == 1 and config.batch.streams is None and not reads)

    def _run(self, batch: Batch, state: State) -> tuple[Tensor, Stats, State]:
        """Replaces `TrainStep.compute`. Runs compiled code in training, unless compilation has failed."""
        if self.mode == "off" or not self.step.training:
            return TrainStep.compute(self.step, batch, state)
        weight: Any = batch.weight
        if self.mode == "step":  # a float would become a constant of the graph
            weight = torch.full((), weight, dtype=torch.float64, device=batch.ids_B.device)
        try:
            return self._compute(replace(batch, weight=weight), state)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            failure = error
        with uncompiled():
            result = TrainStep.compute(self.step, batch, state)  # raises errors that the compiler did not cause
        self._stop(failure)
        return result

    def _stop(self, error: Exception) -> None:
        """Falls back to eager execution, and logs a warning.

        Raises:
            UserError: If the config sets `compile`, and a layer of the model cannot be compiled.
        """
        mode, self.mode = self.mode, "off"
        for block in self._blocks:
            vars(block).pop("forward", None)
        name = type(error).__name__
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), name)
        failed, line = self._failed_layers(error)
        if isinstance(error, torch._dynamo.exc.FailOnRecompileLimitHit):
            why, fix = "is recompiled for every length", "Set batch.shapes=16"
        elif isinstance(error, torch._dynamo.exc.BackendCompilerFailed) or not isinstance(
            error, torch._dynamo.exc.TorchDynamoException
        ):
            self.run.log.info(
                f"Warning: compile={mode} is not possible on this machine; training runs eagerly. {reason}"
            )
            return
        else:
            why, fix = f"cannot be compiled{line}: {reason}", "Set compile=off"
        message = f"compile={mode}: {failed} {why}."
        if self.run.config.compile is not None:
            raise UserError(message, f"{fix}, or choose a different layer.")
        self.run.log.info(f"Warning: {message} Training runs eagerly.")

    def _failed_layers(self, error: Exception) -> tuple[str, str]:
        """Returns, as text, the attention layers in whose file the compiler failed, and the line.

        Returns ("the model", "") if it did not fail in the file of an attention layer.
        """
        for path, line in reversed(re.findall(r'File "([^"]+)", line (\d+)', str(error))):
            layers = [layer for _, layer in self.step.model.attention_layers() if _file_of(type(layer)) == path]
            if layers:
                names = " or ".join(dict.fromkeys(f"'{attentions.name_of(type(layer.config))}'" for layer in layers))
                slots = ", ".join(dict.fromkeys(layer.slot for layer in layers))
                return f"attention {names} ({slots})", f" at {path}:{line}"
        return "the model", ""

    def _announce(self) -> None:
        """Logs that compilation has started."""
        if self.graphs == 1:
            which = f"first update of each shape (up to {self.shapes})" if self.shapes else "first updates"
            self.run.log.info(f"Compiling ({self.mode}), which slows down the {which}.")
        self.run.log.status("compiling")

    @property
    def graphs(self) -> int:
        """The number of graphs that have been compiled since the run was built."""
        return 0 if self.mode == "off" else self._watch.graphs - self._before

    def report(self) -> None:
        """Logs the number of compiled graphs, if it has increased since the last call."""
        graphs = self.graphs
        if graphs > self._reported:
            self._reported = graphs
            unit = "shape" if self.mode == "step" and self.shapes else "graph"
            self.run.log.info(f"Compiled {how_many(graphs, unit)} in {self._watch.seconds:.0f} s.")
        self.run.log.status("")


def _file_of(layer: type) -> str | None:
    """Returns the path of the file that defines a class, or None if the class is defined interactively."""
    return getattr(sys.modules.get(layer.__module__), "__file__", None)


def _in_training(block: EncoderBlock | DecoderBlock, compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a forward method that runs `compiled` in training mode, and the original method in evaluation mode."""
    original = block.forward

    def forward(*arguments: Any, **options: Any) -> Any:
        return (compiled if block.training else original)(*arguments, **options)

    return forward


class _Watch:
    """Counts the graphs that this process compiles, and the seconds that compilation takes."""

    def __init__(self) -> None:
        self.graphs, self.seconds, self._since = 0, 0.0, 0.0
        self.started: Callable[[], None] = lambda: None

    def listen(self) -> None:
        """Registers callbacks with torch, unless they are registered. (`torch.compiler.reset` removes them.)"""
        from torch._dynamo.callback import callback_handler  # imported here, because it takes a second

        if self._start not in callback_handler.start_callbacks:
            callback_handler.register_start_callback(self._start)
            callback_handler.register_end_callback(self._end)

    def _start(self, arguments: Any) -> None:
        self._since = time.monotonic()
        if arguments.callback_trigger.name == "DYNAMO":  # not a backward pass or a CUDA graph
            self.graphs += 1
            self.started()

    def _end(self, *_: Any) -> None:
        self.seconds += time.monotonic() - self._since


_watch = cache(_Watch)


def _set_cache_folder() -> None:
    """Caches compiled code in the user's cache folder, unless an environment variable sets a different folder."""
    variable = "TORCHINDUCTOR_CACHE_DIR"
    named = os.environ.get(variable)
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # importing it sets the variable

    if named in (None, default_cache_dir()):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        os.environ[variable] = str(home / "seqtk" / "compiled")
        _changes.callback(lambda: os.environ.pop(variable) if named is None else os.environ.update({variable: named}))
