"""Collects the tensors of a checkpoint or a best model from all processes.

The first process writes them, except for the optimizer's state if each process has a part of it.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from seqtk.checkpoint.model_file import Tensors, first_bad, tensors_of
from seqtk.checkpoint.run_state import optimizer_tensors
from seqtk.metrics import metrics
from seqtk.training.failures import refuse_weights
from seqtk.training.parallel import local_part

if TYPE_CHECKING:
    from seqtk.training.trainer import Trainer


def save_checkpoint(run: "Trainer") -> None:
    """Saves a checkpoint of the run's state. Collective.

    Raises:
        NotFiniteError: If a weight is not finite.
        UserError: If this checkpoint or the previous one cannot be written.
    """
    run.writer.wait()
    weights = tensors_of(run.model)
    found = run.engine.gather(first_bad({name: local_part(weight) for name, weight in weights.items()}))
    for bad in filter(None, found):
        refuse_weights(run, bad)
    streams = run.streams and run.streams.gather()
    model = _gathered(run, weights)
    pieces = run.engine.pieces(optimizer_tensors(run.model, run.optimizer), copies=run.writer.asynchronous)
    average = model | _gathered(run, run.average.tensors) if run.average else None
    together = run.engine.together
    if run.engine.is_first:
        archive = run.checkpoints.archive_newer(run.saved_at)
        if archive is not None:
            run.log.info(f"Moved checkpoints after update {run.saved_at:,} of an abandoned run to {archive}.")
        save = partial(run.checkpoints.save, model, pieces, run.state, streams=streams, average=average)
        run.writer.run(partial(save, together=together))
    elif run.engine.shards:
        run.writer.run(partial(run.checkpoints.save_pieces, pieces, run.state.update, together=together))


def save_validated(run: "Trainer", results: Mapping[str, float] | None) -> None:
    """Saves the state after a validation, and the model if it is among the best. Collective.

    Args:
        run: The run.
        results: The metrics of the validation; None if they are not finite.
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
