"""Compiles the training step with torch.compile.

`compile=step` makes one graph of forward pass, loss and backward pass; `compile=blocks` one of each block of a stack.
With `batch.shapes` each shape is compiled once; without, one graph serves all shapes. Only training runs compiled code:
validation, decoding and the search for a number that is not finite run the model as it is. Compiled code is kept in the
user's cache, so that the next run of the same model starts sooner.
"""

import os
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from inspect import getsourcefile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from seqtk.attention import State, attentions
from seqtk.criterions.base import Stats
from seqtk.data.batch import Batch
from seqtk.models.stacks import DecoderBlock, EncoderBlock
from seqtk.modules.adaptive import AdaptiveHead
from seqtk.training.config import TrainConfig
from seqtk.training.logging import Logger
from seqtk.training.parallel import Engine, TrainStep
from seqtk.utils.errors import UserError, how_many

MOST_GRAPHS = 32
"""The most graphs of a function without `batch.shapes`. A layer that needs more, one for each length, runs eagerly."""


def uncompiled() -> AbstractContextManager[None]:
    """Returns a context in which no compiled code runs, so that hooks see every module."""
    context: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return context


class Compilation:
    """Makes a step run compiled code when it trains. Modules and parameters keep their names.

    Args:
        step: The step.
        config: The run's config.
        mode: What is compiled: each block, or the whole step.
        engine: The engine of the run, which has not wrapped the step yet.
        log: Returns the logger of the run.

    Raises:
        UserError: The engine cannot train a step that is one graph.
    """

    def __init__(
        self,
        step: TrainStep,
        config: TrainConfig,
        *,
        mode: Literal["blocks", "step"],
        engine: Engine,
        log: Callable[[], Logger],
    ) -> None:
        self.step, self.log, self.shapes = step, log, config.batch.shapes
        self.is_required = config.compile is not None
        """Whether the config says what to compile. Then a layer that cannot be compiled is an error."""
        self.mode: Literal["off", "blocks", "step"] = mode
        if mode == "step" and engine.compiles != "step":
            raise UserError(
                "compile=step: this engine works between the blocks, so that the step cannot be one graph.",
                f"Set compile={engine.compiles}, or parallel=ddp.",
            )
        self._compute: Callable[..., tuple[Tensor, Stats, State]] = step.compute
        self._blocks = [module for module in step.modules() if isinstance(module, EncoderBlock | DecoderBlock)]
        self._reported = 0
        self._start(config, device=engine.device.type)

    def _start(self, config: TrainConfig, *, device: str) -> None:
        _keep_code()
        self._watch, self._before = _watch(), _watch().graphs
        self._watch.started = self._announce
        self._watch.listen()
        _allow_graphs(2 * self.shapes if self.shapes else MOST_GRAPHS)
        options: dict[str, Any] = {"fullgraph": True, "dynamic": self.shapes is None}
        if device == "cpu":
            # torch's generator is several times faster than inductor's, and gives the masks of a run without compile.
            options["options"] = {"fallback_random": True}
        elif self.mode == "step" and self._may_record(config):
            options["mode"] = "reduce-overhead"
        try:
            if self.mode == "step":
                self._compute = torch.compile(self._compute, **options)
            for block in self._blocks if self.mode == "blocks" else []:
                block.forward = _in_training(block, torch.compile(block.forward, **options))  # type: ignore[method-assign]
        except RuntimeError as error:  # this Python or operating system has no torch.compile
            self._stop(error)
        self.step.compute = self._run  # type: ignore[method-assign]

    def _may_record(self, config: TrainConfig) -> bool:
        """Returns whether CUDA graphs can replay the step.

        A replay overwrites the outputs of the one before it, but gradients of micro-batches are added up, and recurrent
        states are kept. An adaptive softmax reads on the host how many words are rare.
        """
        reads = any(isinstance(module, AdaptiveHead) for module in self.step.modules())
        return bool(self.shapes and config.update_freq == 1 and config.batch.streams is None and not reads)

    def _run(self, batch: Batch, state: State) -> tuple[Tensor, Stats, State]:
        """Replaces `TrainStep.compute`."""
        if self.mode == "off" or not self.step.training:
            return TrainStep.compute(self.step, batch, state)
        weight: Any = batch.weight
        if self.mode == "step":  # a float would be a constant of the graph
            weight = torch.full((), weight, dtype=torch.float64, device=batch.ids_B.device)
        try:
            return self._compute(replace(batch, weight=weight), state)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            failure = error
        with uncompiled():
            result = TrainStep.compute(self.step, batch, state)  # raises the error if it is not the compiler's
        self._stop(failure)
        return result

    def _stop(self, error: Exception) -> None:
        """Runs the step as it is from now on, and says why.

        Raises:
            UserError: The config requires what cannot be compiled.
        """
        mode, self.mode = self.mode, "off"
        for block in self._blocks:
            vars(block).pop("forward", None)
        name = type(error).__name__
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), name)
        if isinstance(error, torch._dynamo.exc.FailOnRecompileLimitHit):
            why, fix = "needs a graph for each length", "Set batch.shapes=16"
        elif isinstance(error, torch._dynamo.exc.BackendCompilerFailed) or not isinstance(
            error, torch._dynamo.exc.TorchDynamoException
        ):
            self.log().info(f"Warning: compile={mode} is not possible on this machine; training runs eagerly. {reason}")
            return
        else:
            why, fix = f"cannot be compiled: {reason}", "Set compile=off"
        message = f"compile={mode}: {self._culprit(error)} {why}."
        if self.is_required:
            raise UserError(message, f"{fix}, or choose another layer.")
        self.log().info(f"Warning: {message} Training runs eagerly.")

    def _culprit(self, error: Exception) -> str:
        """Returns the attention layer, or else the model, in whose code the compiler failed."""
        layers = {getsourcefile(type(layer)): layer for _, layer in self.step.model.attention_layers()}
        for path in reversed(re.findall(r'File "([^"]+)"', str(error))):
            if path in layers:
                layer = layers[path]
                return f"attention '{attentions.name_of(type(layer.config))}' ({layer.slot})"
        return "the model"

    def _announce(self) -> None:
        """Says that compilation has started."""
        if self.graphs == 1:
            each = f"each of up to {how_many(self.shapes, 'shape')}" if self.shapes else "the first shapes"
            self.log().info(f"Compiling ({self.mode}): {each} takes longer once.")
        self.log().status("compiling")

    @property
    def graphs(self) -> int:
        """The number of graphs that have been compiled since the run was built."""
        return 0 if self.mode == "off" else self._watch.graphs - self._before

    def report(self) -> None:
        """Says how many graphs have been compiled, if there are more than the last time."""
        graphs = self.graphs
        if graphs > self._reported:
            self._reported = graphs
            unit = "shape" if self.mode == "step" and self.shapes else "graph"
            self.log().info(f"Compiled {how_many(graphs, unit)} in {self._watch.seconds:.0f} s.")
        self.log().status("")


def _in_training(block: EncoderBlock | DecoderBlock, compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a method that runs `compiled` in training, and the block's own in evaluation."""
    plain = block.forward

    def forward(*arguments: Any, **options: Any) -> Any:
        return (compiled if block.training else plain)(*arguments, **options)

    return forward


class _Watch:
    """Counts the graphs that this process compiles, and the seconds that it takes."""

    def __init__(self) -> None:
        self.graphs, self.seconds, self._since = 0, 0.0, 0.0
        self.started: Callable[[], None] = lambda: None

    def listen(self) -> None:
        """Asks torch to call this object, unless it does: `torch.compiler.reset` makes it forget."""
        from torch._dynamo.callback import callback_handler  # takes a second, which a run without compile saves

        if self._start not in callback_handler.start_callbacks:
            callback_handler.register_start_callback(self._start)
            callback_handler.register_end_callback(self._end)

    def _start(self, *arguments: Any) -> None:  # torch 2.6 gives none
        self._since = time.monotonic()
        if not arguments or arguments[0].callback_trigger.name == "DYNAMO":  # else a backward pass, or a recording
            self.graphs += 1
            self.started()

    def _end(self, *_: Any) -> None:
        self.seconds += time.monotonic() - self._since


_watch = cache(_Watch)


def _keep_code() -> None:
    """Sets the folder of compiled code to one in the user's cache, unless the environment names another."""
    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # importing it sets the variable

    if named in (None, default_cache_dir()):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(home / "seqtk" / "compiled")


def _allow_graphs(count: int) -> None:
    """Lets torch compile a function at least `count` times."""
    config: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, name, max(getattr(config, name), count))
