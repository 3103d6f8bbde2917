"""Collects the tensors of a checkpoint or a best model from all processes.

The first process writes the tensors. If the optimizer's state is sharded, each process writes its part of this state. A
thread writes them while training continues.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

from seqtk.checkpoint.model_file import Tensors, first_bad, tensors_of
from seqtk.checkpoint.run_state import optimizer_tensors
from seqtk.metrics import metrics
from seqtk.training.failures import advice
from seqtk.training.non_finite import NotFiniteError
from seqtk.training.parallel import local_part

if TYPE_CHECKING:
    from seqtk.training.trainer import Trainer


class Writer:
    """Runs functions that write files, one at a time, either in a thread or in the caller.

    Use it as a context manager. `run`, `wait` and leaving the context wait for the previous function and raise its
    exception. If the code in the context also raises an exception, that exception is raised, and the function's
    exception is reported.

    Args:
        asynchronous: True to run functions in a thread. The data that they write must then not change.
        report: Prints a line for the user.
    """

    def __init__(self, *, asynchronous: bool, report: Callable[[str], None] = print) -> None:
        self.asynchronous, self.report = asynchronous, report
        self._thread = ThreadPoolExecutor(1, "checkpoint")  # the thread starts with the first function
        self._task: Future[object] | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            self.report(f"Warning: the last checkpoint was not written. {failure}")

    def run(self, function: Callable[[], object]) -> None:
        """Waits for the previous function, then runs `function`, or starts it in the thread."""
        self.wait()
        if self.asynchronous:
            self._task = self._thread.submit(function)
        else:
            function()

    def wait(self) -> None:
        """Waits until everything is written. An interrupt (Ctrl-C) stops the waiting, but not the writing."""
        if self._task is not None:
            self._task.exception()  # after an interrupt here, the next call waits again
            task, self._task = self._task, None
            task.result()


def save_checkpoint(run: "Trainer") -> None:
    """Saves a checkpoint of the run's state. Collective.

    Raises:
        NotFiniteError: If a weight is not finite.
        UserError: If this checkpoint or the previous one cannot be written.
    """
    run.writer.wait()
    weights = tensors_of(run.model)
    found = run.engine.gather(first_bad({name: local_part(weight) for name, weight in weights.items()}))
    bad = next(filter(None, found), None)
    if bad is not None:
        raise NotFiniteError(f"The weight {bad} is not finite after update {run.state.update:,}.", advice(run))
    streams = run.streams and run.streams.gather()
    model = _gathered(run, weights)
    pieces = run.engine.pieces(optimizer_tensors(run.model, run.optimizer), copies=run.writer.asynchronous)
    average = model | _gathered(run, run.average.tensors) if run.average else None
    together = run.engine.together
    if run.engine.is_first:
        archive = run.checkpoints.archive_newer(run.saved_at)
        if archive is not None:
            run.log.info(f"Moved checkpoints after update {run.saved_at:,}, from an abandoned session, to {archive}.")
        save = partial(run.checkpoints.save, model, pieces, run.state, streams=streams, average=average)
        run.writer.run(partial(save, together=together))
    elif run.engine.shards:
        run.writer.run(partial(run.checkpoints.save_pieces, pieces, run.state.update, together=together))


def save_validated(run: "Trainer", results: Mapping[str, float] | None) -> None:
    """Saves the state after a validation, and the model if it is among the best. Collective.

    Args:
        run: The run.
        results: The metrics of the validation, or None if they are not finite.
    """
    is_saved = results is not None and run.checkpoints.keep_best > 0
    model = _gathered(run, tensors_of(run.model)) if is_saved else {}
    state, higher = run.state, metrics[run.config.validation.metric].higher_is_better

    def write() -> None:
        if results is not None:
            run.checkpoints.save_best(model, state, results, higher=higher)
        run.checkpoints.save_state(state)

    if run.engine.is_first:
        run.writer.run(write)


def _gathered(run: "Trainer", tensors: Tensors) -> Tensors:
    return run.engine.collect(tensors, copies=run.writer.asynchronous)
