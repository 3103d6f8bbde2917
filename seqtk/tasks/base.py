"""What a task owes the trainer and the commands; it owns neither the loop nor the loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from seqtk.config.fields import setting
from seqtk.config.registry import Registry
from seqtk.data.batch import Batch
from seqtk.data.report import TextCount
from seqtk.data.sources import DataBinSourceConfig, SourceConfig
from seqtk.generation.search import SearchConfig
from seqtk.metrics.base import OUTPUTS, TEXT_SIZE, Output
from seqtk.models import Model, ModelConfig

Assets = dict[str, str]
"""Text by name: all that a task needs beside its config to work without its corpus (vocabularies, tokenizer)."""


@dataclass(frozen=True)
class TaskConfig:
    """The base of every task's config."""

    data: str = setting("", help="Where the data is: of the default source, a data-bin directory.")
    source: SourceConfig = DataBinSourceConfig()
    made_by: str = setting("", help="The command that makes the data, which the error shows if it is missing.")


tasks: Registry["Task"] = Registry("task", TaskConfig)


class Dataset(Protocol):
    """Examples by index, with their lengths known before any is read."""

    sizes_ND: npt.NDArray[np.int32]
    """The lengths of each example, one column a side (source, target)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Task:
    """Where data, model, criterion and metric meet.

    Built as `tasks.build(config)` from its corpus, or as `tasks.build(config, assets=…)` from what a checkpoint holds.
    """

    metrics: ClassVar[tuple[str, ...]] = ("loss", "nll", "ppl")
    """The metrics that a validation and a report give, as far as criterion and data allow them."""

    @property
    def continuous(self) -> bool:
        """Whether each example goes on where the one before it ends, so that `batch.streams` can read them."""
        return False

    def __init__(self, config: Any, *, assets: Mapping[str, str] | None = None) -> None:
        self.config = config

    @classmethod
    def prepare(cls, config: Any) -> None:
        """Make the corpus if this task can, before anybody opens it; called by one process alone."""

    def assets(self) -> Assets:
        """What `assets=` of the constructor takes."""
        raise NotImplementedError

    def dataset(self, split: str) -> Dataset:
        """The examples of a split of the corpus."""
        raise NotImplementedError

    def training_set(self, epoch: int) -> Dataset:
        """The examples that an epoch, from 1, trains on: the same each time, or one shard of them after the other."""
        return self.dataset("train")

    def collate(self, examples: Sequence[Any]) -> Batch:
        """The batch of these examples."""
        raise NotImplementedError

    def model(self, config: ModelConfig) -> Model:
        """A new model of the sizes this task's vocabularies have."""
        raise NotImplementedError

    def text_size(self, split: str, targets: float) -> TextCount | None:
        """The size of a split's original text; None if it is unknown, or if `targets` targets are not all of it."""
        return None

    def outputs(self, model: Model, batch: Batch, dataset: Any, search: SearchConfig) -> list[Output]:
        """The model's output for each row of `batch`, whose examples are of `dataset`. Optional: see `has_outputs`."""
        raise NotImplementedError

    @classmethod
    def has_outputs(cls) -> bool:
        """Whether this task implements `outputs`, for the metrics that need them."""
        return cls.outputs is not Task.outputs

    def provides(self, split: str, *, stats: Sequence[str], targets: float, outputs: bool = True) -> set[str]:
        """Which needs of metrics are met for a split of so many targets.

        Args:
            split: The split that is read.
            stats: Names of the criterion's statistics.
            targets: The number of targets that are scored.
            outputs: Whether the model's outputs are wanted.
        """
        met = {*stats}
        if outputs and self.has_outputs():
            met.add(OUTPUTS)
        if self.text_size(split, targets) is not None:
            met.add(TEXT_SIZE)
        return met
