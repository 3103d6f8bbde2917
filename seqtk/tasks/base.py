"""The base class of tasks. A task defines the data, the head of the model, and the metrics."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from seqtk.attention import State
from seqtk.config.fields import setting
from seqtk.config.registry import Registry
from seqtk.criterions import Criterion, criterions
from seqtk.criterions.base import Stats
from seqtk.criterions.cross_entropy import CrossEntropyConfig
from seqtk.data.batch import Batch, Dataset
from seqtk.data.loader import load_batches
from seqtk.data.mixing import CorpusConfig
from seqtk.data.plan import BatchingConfig, IndexArray, SizeArray, ordered_batches
from seqtk.data.report import TextCount
from seqtk.data.sources import DataBinSourceConfig, SourceConfig
from seqtk.data.streams import stream_rows
from seqtk.generation.scoring import check_not_nan
from seqtk.generation.search import SearchConfig
from seqtk.metrics import Evaluation, Output, Score, metrics
from seqtk.metrics.base import OUTPUTS, TEXT_SIZE
from seqtk.models import Model, ModelConfig
from seqtk.models.base import Side, rows_of
from seqtk.tasks.report import Report
from seqtk.utils.errors import UserError, how_many
from seqtk.utils.memory import trimming
from seqtk.utils.progress import Reporter

Assets = dict[str, str]
"""Name → text of each part of a task that model files store: vocabularies, tokenizers and classes."""


@dataclass(frozen=True)
class TaskConfig:
    """Base class of the configs of tasks."""

    data: str = setting("", help="Location of the data; for the default source, a data-bin folder.")
    source: SourceConfig = DataBinSourceConfig()
    made_by: str = setting("", help="Command that makes the data. The error for missing data shows it.")
    mix: tuple[CorpusConfig, ...] = setting(
        (),
        help="Corpora to train on: [{data: A, weight: 2}, {data: B}]. They must have the vocabulary of task.data; "
        "validation and test still use task.data. []: train on task.data.",
    )
    temperature: float = setting(
        1.0,
        at_least=1,
        help="With task.mix: a corpus has a share of the examples proportional to (weight × size)^(1 / temperature).",
    )


tasks: Registry["Task"] = Registry(
    "task",
    TaskConfig,
    renamed={"demo_translation": "translation"},
    replaced=dict.fromkeys(("figures", "figure_names", "scores", "score_names"), "registered metrics"),
)


@dataclass(frozen=True)
class TooLong:
    """The examples whose source (or target) is longer than the model allows."""

    side: Side
    limit: int
    examples: IndexArray
    """The indices of these examples."""
    sizes: SizeArray
    """The lengths of these examples."""


class Task:
    """A task connects data, model, criterion and metrics.

    `tasks.build(config)` builds a task from its data, `tasks.build(config, assets=…)` from a model file.
    """

    metrics: ClassVar[tuple[str, ...]] = ("loss", "nll", "ppl")
    """The default metrics of validation and reports. Metrics that are not available are omitted."""
    unit: ClassVar[str] = "tokens"
    """The plural noun for targets in names such as `tokens_per_second`."""
    sides: ClassVar[tuple[Side, ...]] = ("source", "target")
    """For each column of `sizes_ND`, the side of the model ("source" or "target") whose maximum length applies."""

    def __init__(self, config: Any, *, assets: Mapping[str, str] | None = None) -> None:
        self.config = config

    @property
    def joins_sides(self) -> bool:
        """True if one encoder reads all sides of the examples, so that a batch pads all sides to the same length."""
        return len({*self.sides}) < len(self.sides)

    @property
    def continuous(self) -> bool:
        """True if each example starts where the previous one ends, which `batch.streams` requires."""
        return False

    @property
    def epochs(self) -> int:
        """The number of epochs after which the training data repeat: the number of shards. With `task.mix`, it is 1."""
        return 1

    def assets(self) -> Assets:
        """Returns the assets to store in model files. From them, the constructor builds the task without its data."""
        raise NotImplementedError

    def dataset(self, split: str) -> Dataset:
        """Returns the examples of a split."""
        raise NotImplementedError

    def training_set(self, epoch: int) -> Dataset:
        """Returns the training examples of an epoch, counted from 1."""
        return self.dataset("train")

    @contextmanager
    def reading(self, data: Any) -> Iterator[None]:
        """Context manager in which the task reads `data` instead of its current data.

        Raises UserError if the task cannot read them.
        """
        raise UserError("This task can read only the data in task.data.", f"Remove {data}.")
        yield

    def epoch_examples(self, epoch: int, *, seed: int) -> Dataset:
        """Returns the examples of an epoch: the training set or, with `task.mix`, a sample of several corpora.

        Raises UserError if the corpora of `task.mix` do not match.
        """
        if self.config.mix:
            raise UserError("task.mix has no effect on this task.", "Remove it.")
        return self.training_set(epoch)

    def collate(self, examples: Sequence[Any]) -> Batch:
        """Collates examples into a batch."""
        raise NotImplementedError

    def model(self, config: ModelConfig) -> Model:
        """Builds a model with the head for this task, usually by `build_model(config, BatchType, **sizes)`."""
        raise NotImplementedError

    def text_size(self, split: str, targets: float) -> TextCount | None:
        """Returns the size of a split's original text, or None if it is unknown.

        Also returns None if `targets`, the number of scored targets, is not the number of all tokens of the split.
        """
        return None

    def outputs(self, model: Model, batch: Batch, dataset: Any, search: SearchConfig) -> list[Output]:
        """Returns the model's output for each example of a batch.

        A subclass may implement this method; see `has_outputs`. `dataset` contains the examples of the batch.
        """
        raise NotImplementedError

    @classmethod
    def has_outputs(cls) -> bool:
        """Returns True if this task implements `outputs`, for metrics that need the model's outputs."""
        return cls.outputs is not Task.outputs

    def provides(self, split: str, *, stats: Sequence[str], targets: float, outputs: bool = True) -> set[str]:
        """Returns the entries of `Metric.needs` that are available for a split.

        Args:
            split: The split that is read.
            stats: The names of the criterion's statistics.
            targets: The number of targets that are scored.
            outputs: True if the model's outputs are computed.
        """
        provided = {*stats}
        if outputs and self.has_outputs():
            provided.add(OUTPUTS)
        if self.text_size(split, targets) is not None:
            provided.add(TEXT_SIZE)
        return provided

    def too_long(self, sizes_ND: SizeArray, model: Model) -> Iterator["TooLong"]:
        """Yields, for each side, the examples that exceed the model's maximum length."""
        for sizes_N, side in zip(sizes_ND.T, self.sides, strict=False):
            limit = model.length_limit(side)
            if limit is not None and (sizes_N > limit).any():
                longer_N = np.flatnonzero(sizes_N > limit)
                yield TooLong(side, limit, examples=longer_N, sizes=sizes_N[longer_N])

    def shortening(self, *, training: bool) -> str | None:
        """Returns the words after "set" in errors about long examples, or None if no setting shortens examples."""
        return None

    def report(
        self, scores: dict[str, Score], *, dataset: Dataset, targets: float, outputs: Sequence[Output]
    ) -> Report:
        """Returns the report of an evaluation, which is the result of `evaluate`."""
        return Report(scores, {"examples": len(dataset), "targets": int(targets)}, list(outputs))

    @torch.no_grad()
    def totals(
        self,
        step: Callable[[Batch, State], tuple[Stats, State]],
        dataset: Dataset,
        batches: Sequence[IndexArray],
        *,
        model: Model,
        search: SearchConfig | None,
        device: torch.device,
        workers: int | None = 0,
        continuous: bool = False,
        before_each: Callable[[], None] = lambda: None,
    ) -> tuple[Stats, float, list[Output]]:
        """Adds up the statistics of the criterion over batches, and collects the model's outputs.

        Args:
            step: A function of a batch and the recurrent state before it, which returns the statistics of the batch
                and the recurrent state after it.
            batches: The indices of the examples of each batch. Empty batches are skipped.
            search: The settings of the search for outputs. If it is None, no outputs are computed.
            continuous: True if the rows of a batch continue the rows of the previous batch.
            before_each: Called before each batch, including empty ones.

        Returns:
            (sums of the statistics, in float64 on the device; the number of targets; the outputs in the order of the
            batches).
        """
        stats: Stats = {}
        outputs: list[Output] = []
        targets, state = 0.0, None
        filled = [indices for indices in batches if len(indices)]
        loaded = trimming(load_batches(filled, dataset, self.collate, device=device, workers=workers))
        for indices in batches:
            before_each()
            if not len(indices):
                continue
            batch = next(loaded)
            reported, after = step(batch, rows_of(state, slice(len(batch.ids_B))))
            state = after if continuous else None
            targets += batch.targets
            for name, (value, weight) in reported.items():
                before = stats.get(name, (0.0, 0.0))
                stats[name] = before[0] + value.double(), before[1] + weight.double()
            if search is not None and self.has_outputs():
                outputs += self.outputs(model, batch, dataset, search)
        return stats, targets, outputs

    @torch.no_grad()
    def evaluate(
        self,
        model: Model,
        split: str = "test",
        *,
        criterion: Criterion | None = None,
        names: Sequence[str] | None = None,
        decode: bool = True,
        search: SearchConfig | None = None,
        references: Sequence[Sequence[str]] = (),
        batching: BatchingConfig | None = None,
        bf16: bool = False,
        resamples: int = 1000,
        progress: bool = False,
    ) -> Report:
        """Computes the metrics of a split.

        Args:
            model: The model, in evaluation mode.
            split: The split of the task's data.
            criterion: The criterion, which computes the statistics. If it is None, it is cross entropy.
            names: The metrics. If it is None, these are all available metrics of the task.
            decode: True to compute the model's outputs, for metrics that need them.
            search: The settings of the search for outputs. If it is None, they have their defaults.
            references: Sets of references, line by line, in addition to those in the data.
            batching: The maximum size of a batch. With `streams`, the text is split into this number of streams, each
                with a recurrent state.
            bf16: True to compute matrix products in bfloat16.
            resamples: The number of bootstrap samples for confidence intervals of classifiers, or 0 for no intervals.
            progress: True to show a progress bar on a terminal.

        Raises:
            UserError: If a metric is not available, the split is empty, an example is too long for the model, or a
                log-probability is NaN.
        """
        criterion = criterion or criterions.build(CrossEntropyConfig())
        search, batching = search or SearchConfig(), batching or BatchingConfig()
        dataset, device = self.dataset(split), next(model.parameters()).device
        if not len(dataset):
            raise UserError(f"Split '{split}' has no examples.", "Choose a split that has examples.")
        for longer in self.too_long(dataset.sizes_ND, model):
            setting = self.shortening(training=False)
            raise UserError(
                f"Split '{split}' has {how_many(len(longer.examples), 'example')} with more than {longer.limit} "
                f"{longer.side} tokens, the model's maximum.",
                f"The first is example {longer.examples[0] + 1:,} with {longer.sizes[0]:,} tokens.",
                f"Remove or shorten these examples{f', or set {setting}' if setting else ''}.",
            )
        streams = batching.streams
        batches = ordered_batches(dataset.sizes_ND, batching) if streams is None else stream_rows(len(dataset), streams)
        with Reporter(progress=progress).bar(len(dataset), f"{split}", unit=" examples") as bar:

            def step(batch: Batch, state: State) -> tuple[Stats, State]:
                loss = criterion(model, batch, state)
                bar.update(len(batch.ids_B))
                return loss.stats, loss.state

            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                stats, targets, outputs = self.totals(
                    step,
                    dataset,
                    batches,
                    model=model,
                    search=search if decode else None,
                    device=device,
                    continuous=streams is not None,
                )
        outputs.sort(key=lambda output: output.index)
        outputs = [
            replace(output, references=(*output.references, *(lines[output.index] for lines in references)))
            for output in outputs
        ]
        sums = {name: (float(value), float(weight)) for name, (value, weight) in stats.items()}
        for name, (value, _) in sums.items():
            check_not_nan(torch.tensor(value), name=f"values of '{name}'")
        evaluation = Evaluation(sums, outputs, self.text_size(split, targets), resamples)
        for name in names or ():
            if name not in metrics.available(evaluation.provides):
                raise UserError(
                    f"metrics={name} cannot be computed for split '{split}'.",
                    f"Available metrics: {', '.join(metrics.available(evaluation.provides))}.",
                )
        scores = metrics.compute(self.metrics if names is None else names, evaluation)
        return self.report(scores, dataset=dataset, targets=targets, outputs=outputs)
