"""What a task owes the trainer and the commands; it owns neither the loop nor the loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from seqtk.config.registry import Registry
from seqtk.data.batch import Batch
from seqtk.generation.search import SearchConfig
from seqtk.models import Model, ModelConfig

Assets = dict[str, str]
"""Text by name: all that a task needs beside its config to work without its corpus (vocabularies, tokenizer)."""


@dataclass(frozen=True)
class TaskConfig:
    """The base of every task's config."""

    data: str = ""  # the data-bin directory
    made_by: str = ""  # the command that makes it; shown when it is missing


tasks: Registry["Task"] = Registry("task", TaskConfig)


class Dataset(Protocol):
    """Examples by index, with their lengths known before any is read."""

    sizes_ND: npt.NDArray[np.int32]
    """The lengths of each example, one column a side (source, target)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Score:
    """A figure with the signature that says how it was computed."""

    value: float
    signature: str


@dataclass(frozen=True)
class Output:
    """What a model made of one example, as text."""

    index: int
    source: str
    output: str
    reference: str


class Task:
    """Where data, model, criterion and metric meet.

    Built as `tasks.build(config)` from its corpus, or as `tasks.build(config, assets=…)` from what a checkpoint holds.
    """

    figure_names: ClassVar[tuple[str, ...] | None] = None
    """What `figures` can give; of a task that says so, a validation.metric that cannot be is refused at the start."""
    score_names: ClassVar[tuple[str, ...] | None] = None
    """What `scores` gives, likewise."""

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

    def figures(self, split: str, sums: Mapping[str, float]) -> dict[str, float]:
        """Further figures of a whole split, from the sums over its targets (`nll`, …) and their number, `weight`."""
        return {}

    def decode(self, model: Model, batch: Batch, dataset: Any, search: SearchConfig) -> list[Output]:
        """What the model makes of each row, examples of `dataset`; nothing if all figures are in the loss."""
        return []

    def scores(self, outputs: Sequence[Output]) -> dict[str, Score]:
        """The figures of a whole split's outputs, by name."""
        return {}
