"""Checks before the first update, and the start-up banner."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from seqtk.corpora import demo
from seqtk.data.batch import Dataset
from seqtk.data.mixing import MixedExamples
from seqtk.data.plan import IndexArray, Update, is_auto, padding_share, usable
from seqtk.data.prefetch import check_picklable
from seqtk.metrics import metrics
from seqtk.metrics.base import OUTPUTS, TEXT_SIZE
from seqtk.training.compiling import undoing_changes
from seqtk.training.config import TrainConfig
from seqtk.training.parallel import Engine, lost_process_errors, start_engine
from seqtk.training.validation import reading_set, validation_sets
from seqtk.utils.errors import UserError, how_many
from seqtk.utils.memory import keep_freed_memory, out_of_memory_errors

if TYPE_CHECKING:
    from seqtk.training.trainer import Trainer


def check_run(run: "Trainer") -> None:
    """Checks the settings of streams and workers, the lengths of examples, and the validation metrics.

    Raises:
        UserError: If a check fails. The error names the key to change.
    """
    config, train_set = run.config, run.train_set
    if config.batch.streams is not None:
        _check_streams(run, config.batch.streams)
    validated = validation_sets(run.task, config)
    for name, dataset in validated.items():
        if not len(dataset):
            raise UserError(
                f"The validation set '{name}' has no examples.",
                "Set validation.split to a different split, or to null for no validation."
                if name == config.validation.split
                else "Remove it from validation.sets.",
            )
    if config.validation.split is not None:
        targets = int(validated[config.validation.split].sizes_ND[:, -1].sum())
        with reading_set(run.task, config, config.validation.split) as split:
            _check_metrics(run, split, targets=targets)
    for dataset in (train_set, *validated.values()) if config.batch.workers else ():
        check_picklable(dataset, run.task.collate, workers=config.batch.workers or 0)
    for name, corpus in _corpora(run):
        _check_training_examples(run, name, corpus)
    for name, dataset in validated.items():
        _check_lengths(run, name, dataset, np.arange(len(dataset)), advice="remove them from the validation text")
    for name, dataset in (("training", train_set), *validated.items()):
        _check_truncation(run, name, dataset)


def _check_streams(run: "Trainer", streams: int) -> None:
    """Raises UserError if the training samples cannot be read in this number of streams."""
    samples, parts = min(map(len, run.train_sets)), run.engine.size * run.config.update_freq
    if run.config.task.mix:
        raise UserError(
            "batch.streams requires one contiguous text, but task.mix has several corpora.",
            "Set batch.streams=null, or task.mix=[].",
        )
    if not run.task.continuous:
        raise UserError(
            "batch.streams requires contiguous samples.", "Set task=language_modeling and task.break_mode=none."
        )
    if samples <= streams:
        raise UserError(
            f"batch.streams={streams} is too large for {how_many(samples, 'training sample')}: "
            "each stream must have at least two samples.",
            f"Set batch.streams to {max(samples // 2, 1)} or less, or lower task.tokens_per_sample.",
        )
    if run.config.batch.shapes == 1 and streams % parts:
        raise UserError(
            f"batch.shapes=1 is too small: batch.streams={streams} in {parts} micro-batches gives two shapes.",
            f"Set batch.shapes=2, or batch.streams to a multiple of {parts}.",
        )
    run.model.check_supports_recurrent_state()


def _corpora(run: "Trainer") -> Iterator[tuple[str, Dataset]]:
    """Yields (name, examples) of each corpus of `task.mix`, or of each shard."""
    for number, examples in enumerate(run.train_sets, start=1):
        if isinstance(examples, MixedExamples):
            yield from zip(examples.names, examples.corpora, strict=True)
        elif len(run.train_sets) > 1:
            yield f"shard {number} of {run.config.task.data}", examples
        else:
            yield run.config.task.data, examples


def _check_training_examples(run: "Trainer", name: str, corpus: Dataset) -> None:
    """Raises UserError if a corpus has no example that is not skipped, or one that is longer than the model allows."""
    config = run.config.batch
    kept, _ = usable(corpus.sizes_ND, config)
    if not len(corpus):
        raise UserError(f"There are no training examples in {name}.")
    if not len(kept):
        limits = {"max_tokens": config.max_tokens, "max_length": config.max_length}
        named = " and ".join(f"batch.{key}={limit}" for key, limit in limits.items() if limit is not None)
        raise UserError(
            f"All training examples in {name} are longer than {named}.",
            f"The shortest example has {how_many(int(corpus.sizes_ND.max(axis=1).min()), 'token')}. Raise the limit.",
        )
    _check_lengths(run, "training", corpus, kept, of=f" of {name}")


def _check_lengths(
    run: "Trainer", split: str, dataset: Dataset, numbers: IndexArray, *, of: str = "", advice: str | None = None
) -> None:
    """Raises UserError if one of the examples `numbers` is longer than the model allows.

    `of` names the corpus. `advice` is an alternative to a larger limit. If it is None, the error advises to skip long
    examples.
    """
    config, task, model = run.config, run.task, run.model
    for longer in task.too_long(dataset.sizes_ND[numbers], model):
        side, limit = longer.side, longer.limit
        model_key = next(
            (key for key in (f"max_{side}_length", "max_length") if hasattr(config.model, key)), "max_length"
        )
        key, needed = f"model.{model_key}", int(longer.sizes.max())
        narrowest = model.most_restrictive_layer(side)
        if narrowest is not None and limit != getattr(config.model, model_key, None):
            needed += (narrowest.max_length or 0) - limit  # memory tokens also occupy positions
            key = config.length_key(narrowest.slot)
        number = numbers[longer.examples[0]]
        other = task.shortening(training=True) or advice or f"batch.max_length={limit} to skip them"
        examples = how_many(len(longer.sizes), f"{split} example") + of
        raise UserError(
            f"{examples} {'is' if len(longer.sizes) == 1 else 'are'} too long: the model allows {limit} {side} tokens.",
            f"The longest has {longer.sizes.max()} tokens. The first is example {number + 1:,}.",
            f"Set {key} to {needed}, or {other}.",
        )


def _check_truncation(run: "Trainer", split: str, dataset: Dataset) -> None:
    """Raises UserError if examples are truncated more than `model.max_source_length` requires, because of a layer."""
    config, model = run.config, run.model
    wanted, limit = getattr(config.model, "max_source_length", None), model.length_limit("source")
    narrowest = model.most_restrictive_layer("source")
    if dataset.truncated and wanted is not None and limit is not None and limit < wanted and narrowest is not None:
        key = config.length_key(narrowest.slot)
        raise UserError(
            f"{key}={narrowest.max_length} would truncate {how_many(dataset.truncated, f'{split} example')} to {limit} "
            f"tokens, less than model.max_source_length={wanted}.",
            f"Set {key} to {wanted + (narrowest.max_length or 0) - limit}, or model.max_source_length to {limit}.",
        )


_NEEDS = {
    OUTPUTS: "outputs, which this task does not have",
    TEXT_SIZE: "the text size in preprocess.json (from seqtk-preprocess), and all tokens of the split",
}


def _check_metrics(run: "Trainer", split: str, *, targets: int) -> None:
    """Raises UserError if a metric is not available for the split. The error lists the available metrics."""
    config, stats = run.config, run.step.criterion.stats_of(run.model)
    provided = run.task.provides(split, stats=stats, targets=targets, outputs=config.validation.decode)
    for key, name in config.validation.named_metrics():
        missing = [need for need in metrics[name].needs if need not in provided]
        if missing:
            needs = ", ".join(_NEEDS.get(need, f"a criterion that returns '{need}'") for need in missing)
            raise UserError(
                f"{key}={name} cannot be computed for split '{split}' of {config.task.data}.",
                f"It requires {needs}.",
                f"Available metrics: {', '.join(metrics.available(provided))}.",
            )


def banner(run: "Trainer", plan: Sequence[Update]) -> Iterator[str]:
    """Yields lines that describe a run: the model, the data, truncated and skipped examples, and the padding."""
    config, engine, task, model, train_set = run.config, run.engine, run.task, run.model, run.train_set
    kept, too_long = usable(train_set.sizes_ND, config.batch)
    count = sum(parameter.numel() for parameter in model.parameters())
    processes = f"{engine.size} × " if engine.size > 1 else ""
    yield f"{count:,} parameters on {processes}{engine.device.type}, {config.precision}."
    frozen = [parameter.numel() for parameter in model.parameters() if not parameter.requires_grad]
    if frozen:
        yield f"{sum(frozen):,} parameters in {how_many(len(frozen), 'tensor')} are frozen."
    if isinstance(train_set, MixedExamples):
        yield f"{how_many(len(kept), 'training example')} per epoch, from these corpora:"
        yield from train_set.lines()
    else:
        yield f"{how_many(len(kept), 'training example')} in {config.task.data}."
    for split, dataset in (
        ("training", train_set),
        *validation_sets(task, config).items(),
    ):
        if dataset.truncated:
            yield f"Truncated to the model's maximum length: {how_many(dataset.truncated, f'{split} example')}."
    if len(too_long):
        named = ", ".join(map(str, too_long[:10] + 1))
        more = ", …" if len(too_long) > 10 else ""
        are = "is" if len(too_long) == 1 else "are"
        yield f"{how_many(len(too_long), 'example')} {are} too long and skipped: {named}{more}."
    padding = f"{padding_share(plan, train_set.sizes_ND, joined=task.joins_sides):.1%} of the positions"
    limit, used = config.batch.shapes, len(run.shapes or {shape for update in plan for shape in update.shapes})
    if limit is None:
        yield f"Padding: {padding}."
    else:
        fewer = f" (fewer than batch.shapes={limit}, because the examples do not require more)" if used < limit else ""
        yield f"{how_many(used, 'shape')}{fewer}, padding {padding}."
    yield from run.speed.lines()


@contextmanager
def prepared(config: TrainConfig) -> Iterator[Engine]:
    """Context manager that checks `config`, and starts and yields its engine.

    At the end, it closes the engine, and restores the settings of this process that a run changes: the number of
    threads, the state of the random generators, and the settings of deterministic operators and of torch.compile.
    """
    config.check()
    keep_freed_memory()
    with _threads(config.threads), undoing_changes(), _engine(config) as engine:
        yield engine


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Context manager that sets the number of CPU threads, unless `count` is 0."""
    if not count:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _engine(config: TrainConfig) -> Iterator[Engine]:
    """Context manager that starts and yields the engine of `config`, and closes it at the end."""
    engine = start_engine(config.parallel, device=config.device)
    try:
        if config.task.data == demo.DESTINATION and not any(Path(demo.DESTINATION).glob("dict*.txt")):
            demo.ensure()
        with (
            lost_process_errors(engine),
            out_of_memory_errors(engine.device, *_smaller_batch(config)),
            _deterministic(config.deterministic),
            torch.random.fork_rng([engine.device] if engine.device.type == "cuda" else []),
        ):
            yield engine
    finally:
        engine.close()


@contextmanager
def _deterministic(enabled: bool) -> Iterator[None]:
    """Context manager that allows only deterministic operators if enabled. Other operators raise UserError."""
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = "CUBLAS_WORKSPACE_CONFIG"
    sets_workspace = enabled and workspace not in os.environ
    if sets_workspace:
        os.environ[workspace] = ":4096:8"  # required by cuBLAS
    if enabled:
        torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if not enabled or "deterministic implementation" not in str(error):
            raise
        problem = str(error).partition(", but")[0]
        raise UserError(
            f"deterministic=true: {problem}.", "Set deterministic=false, or choose a different layer."
        ) from error
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        if sets_workspace:
            del os.environ[workspace]


def _smaller_batch(config: TrainConfig) -> tuple[str, str]:
    """Returns two lines of advice for a run that does not fit into memory."""
    recomputes = getattr(config.model, "recompute_blocks", None) != 0
    or_recompute = "" if recomputes else ", or model.recompute_blocks=all"
    if is_auto(config.batch.max_tokens):
        return (
            "Less memory is free now than when batch.max_tokens=auto was measured.",
            f"Stop other programs on this device, set batch.max_tokens to a number{or_recompute}.",
        )
    key, value = "batch.max_tokens", config.batch.max_tokens
    if value is None:
        key, value = "batch.max_sentences", config.batch.max_sentences
    if config.batch.streams is not None or value is None:
        key, value = "task.tokens_per_sample", getattr(config.task, "tokens_per_sample", None) or 1024
    again = " in a new save_dir" if (Path(config.save_dir) / "latest").exists() else ""
    freq = "" if is_auto(config.update_freq) else f" and update_freq={2 * config.update_freq}"
    return (
        f"The memory of activations is proportional to {key}={value}.",
        f"Set {key}={max(value // 2, 1)}{freq}{again} (the size of an update stays the same){or_recompute}.",
    )
