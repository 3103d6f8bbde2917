"""Handles NaN and infinite numbers in an update or a validation: finds the cause, writes a replay file, stops or skips.

Nothing in this file runs before a failure.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from seqtk.checkpoint.model_file import first_bad, tensors_of
from seqtk.checkpoint.run_state import TrainState
from seqtk.config import schema
from seqtk.data.loader import CPU, load_updates
from seqtk.data.plan import Update
from seqtk.training.compiling import uncompiled
from seqtk.training.non_finite import NotFiniteError, Origin, Stage, origin_of, probing
from seqtk.training.replay import Failure, MicroBatch, to_device, write_replay
from seqtk.training.validation import validate
from seqtk.utils.errors import how_many

if TYPE_CHECKING:
    from seqtk.training.trainer import Trainer


def skip_update(run: "Trainer", update: Update) -> None:
    """Handles an update whose loss or gradient is not finite: finds the cause and writes a replay file.

    Args:
        run: The run, in the state before the update.
        update: The update.

    Raises:
        NotFiniteError: If the update must not be skipped. Before that, the state before the update is saved.
    """
    ((_, micro_batches),) = load_updates([update], run.train_set, run.task.collate, device=run.engine.device)
    run.optimizer.zero_grad(set_to_none=True)
    streams = list(run.streams.states) if run.streams else []
    with uncompiled(), probing(run.step) as probe:
        run.backward(micro_batches)
        origin = origin_of(probe, run.step, engine=run.engine)
    if run.streams:
        run.streams.states = streams
    run.optimizer.zero_grad(set_to_none=True)
    problem = f"The loss or gradient of update {run.state.update + 1:,} is not finite, {origin}."
    replay = _write_replay(run, origin, probe.inputs, training=True)
    follows = run.skips[-1:] == [run.state.update - 1]
    run.skips = [*(run.skips if follows else ()), run.state.update]
    limit = run.config.max_skips
    if run.config.non_finite == "skip" and origin.stage > Stage.WEIGHT:
        if len(run.skips) <= limit:
            run.log.info(f"Skipped: {problem} {replay}")
            return
        problem = f"Skipped {how_many(limit, 'consecutive update')}, the maximum (max_skips={limit}). {problem}"
    if first_bad(run.full_weights()) is None and run.state.update != run.saved_at:
        run.save()
    raise NotFiniteError(problem, replay, advice(run))


def skip_validation(run: "Trainer", split: str, name: str, *, value: float, after: TrainState) -> None:
    """Handles a validation whose metric is not finite: finds the cause and writes a replay file.

    Args:
        run: The run.
        split: The name of the validation set.
        name, value: The name and the value of the metric.
        after: The state of the run after this validation, if it is ignored.

    Raises:
        NotFiniteError: If the validation must not be ignored. The last validation of a run is never ignored.
    """
    config = replace(run.config, validation=replace(run.config.validation, decode=False))
    with uncompiled(), probing(run.step) as probe:
        validate(run.step, run.task, config, name=split, engine=run.engine)
        origin = origin_of(probe, run.step, engine=run.engine)
    problem = f"The validation of update {run.state.update:,} has {name}={value}, {origin}."
    replay = _write_replay(run, origin, probe.inputs[probe.at : probe.at + 1], training=False)
    if config.non_finite == "skip" and origin.stage > Stage.WEIGHT and not config.is_over(after):
        run.log.info(f"{problem} {replay}")
        return
    latest = run.checkpoints.directory / "latest"
    raise NotFiniteError(
        problem,
        replay,
        f"Lower optimizer.lr or set clip_norm. To resume from an earlier checkpoint, write its name into {latest}.",
    )


def _write_replay(run: "Trainer", origin: Origin, inputs: Sequence[MicroBatch], *, training: bool) -> str:
    """Writes a replay file with the inputs of all processes. Returns a line for the log that describes the file."""
    every = run.engine.gather([(batch.to(CPU), to_device(state, CPU)) for batch, state in inputs])
    scale = 1.0 if run.loss_scale is None else float(run.loss_scale.scale)
    failure = Failure(run.state.update, training, scale, every)
    weights, path = run.engine.collect(tensors_of(run.model)), run.checkpoints.directory / "replay.safetensors"
    if run.engine.is_first:
        write_replay(path, failure, weights, config=schema.to_dict(run.config), assets=run.task.assets())
    return (
        f"{'Training examples' if training else 'Examples'} in the batch: {origin.examples}. "
        f"To repeat it: seqtk-train replay={path}"
    )


def advice(run: "Trainer") -> str:
    """Returns the last line of an error about an update that is not finite."""
    saved = f"The last checkpoint is from update {run.saved_at:,}" if run.saved_at else "There is no checkpoint"
    return f"{saved}. Lower optimizer.lr or set clip_norm."
