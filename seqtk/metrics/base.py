"""The registry of metrics: a name, a unit, a direction, and what the metric is computed from.

Everything that reports, compares or optimises a metric reads these three here: the log line, the best model, early
stopping, averaging, reports, and the commands. No other list of names exists.
"""

import abc
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

from seqtk.data.report import TextCount
from seqtk.utils.errors import UserError, nearest

OUTPUTS = "outputs"
"""In `Metric.needs`: the model's outputs as text, with their references."""
TEXT_SIZE = "text_size"
"""In `Metric.needs`: the size of the split's original text."""

M = TypeVar("M", bound="type[Metric]")


@dataclass(frozen=True)
class Output:
    """The model's output for one example, as text."""

    index: int
    source: str
    output: str
    references: tuple[str, ...]
    """What the output is compared with; at least one."""


@dataclass(frozen=True)
class Evaluation:
    """What metrics are computed from: everything known about a split after the model has read it."""

    stats: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Name of each statistic of the criterion → (sum over the split, sum of its weights)."""
    outputs: Sequence[Output] = ()
    text: TextCount | None = None
    """The size of the original text; None if it is unknown, or if not all of it was scored."""

    @property
    def provides(self) -> set[str]:
        """Which entries of `Metric.needs` are met."""
        return {*self.stats, *([OUTPUTS] if self.outputs else []), *([TEXT_SIZE] if self.text is not None else [])}

    def mean(self, name: str) -> float:
        """Sum over weight of one statistic."""
        total, weight = self.stats[name]
        return total / max(weight, 1.0)


@dataclass(frozen=True)
class Score:
    """The value of a metric."""

    value: float
    signature: str = ""
    """How it was computed, as in sacreBLEU's `nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:…`."""
    line: str = ""
    """The value in the words of the tool that computed it, such as `BLEU = 28.1 …`."""

    @property
    def signed_line(self) -> str:
        """`line` with the signature after the name: `BLEU|nrefs:1|… = 28.1 …`."""
        name, equals, rest = self.line.partition(" = ")
        return f"{name}|{self.signature}{equals}{rest}" if self.signature else self.line


class Metric(abc.ABC):
    """Base class of metrics. Instances have no state: `compute` receives all the data of a split at once."""

    name: ClassVar[str]
    unit: ClassVar[str]
    higher_is_better: ClassVar[bool]
    needs: ClassVar[tuple[str, ...]]
    """Names of statistics that a criterion returns (`"nll"`), `"outputs"`, or `"text_size"`."""

    @abc.abstractmethod
    def compute(self, evaluation: Evaluation) -> Score:
        """The value of this metric. `evaluation` provides everything in `needs`."""

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether `value` is better than the best value so far, or the first one."""
        return than is None or (value > than if self.higher_is_better else value < than)


class MetricRegistry:
    """Metrics by name; `metrics` is the only instance."""

    def __init__(self) -> None:
        self._classes: dict[str, type[Metric]] = {}

    def register(self, name: str, *, unit: str, higher_is_better: bool) -> Callable[[M], M]:
        """Class decorator: registers a metric.

        Args:
            name: The name in logs, reports and `validation.metric`.
            unit: What the value counts, such as `"%"` or `"bits per byte"`; shown in reports.
            higher_is_better: Whether the best value is the highest one.
        """
        if name in self._classes:
            raise ValueError(f"metric '{name}' is registered already")

        def decorate(cls: M) -> M:
            cls.name, cls.unit, cls.higher_is_better = name, unit, higher_is_better
            self._classes[name] = cls
            return cls

        return decorate

    def __getitem__(self, name: str) -> type[Metric]:
        """The metric of that name. Raises UserError with the nearest name if there is none."""
        if name not in self._classes:
            raise UserError(f"There is no metric called '{name}'.", nearest(name, self))
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def available(self, provided: Collection[str], names: Iterable[str] | None = None) -> list[str]:
        """Returns the metrics of `names` (default: all) whose needs are met by `provided`."""
        return [name for name in (self if names is None else names) if set(self[name].needs) <= set(provided)]

    def compute(self, names: Iterable[str], evaluation: Evaluation) -> dict[str, Score]:
        """The score of each available metric in `names`, and the mean of each statistic that no metric needs."""
        scores = {name: self[name]().compute(evaluation) for name in self.available(evaluation.provides, names)}
        needed = {need for kind in self._classes.values() for need in kind.needs}
        return scores | {name: Score(evaluation.mean(name)) for name in sorted(set(evaluation.stats) - needed)}


metrics = MetricRegistry()
