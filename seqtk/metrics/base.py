"""The registry of metrics. A metric has a name, a unit, a list of inputs, and the flag `higher_is_better`.

All commands use this registry: for log lines, the choice of the best model, early stopping, checkpoint averaging and
reports.
"""

import abc
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, TypeVar

from seqtk.data.report import TextCount
from seqtk.metrics.outputs import ClassOutput, Output, Predictions
from seqtk.utils.errors import UserError
from seqtk.utils.suggestions import nearest

OUTPUTS = "outputs"
"""An entry of `Metric.needs`: the model's outputs as text, with their references."""
TEXT_SIZE = "text_size"
"""An entry of `Metric.needs`: the size of the split's original text, before tokenization."""
PREDICTIONS = "predictions"
"""An entry of `Metric.needs`: the log-probability of every class and the true class of each example."""

M = TypeVar("M", bound="type[Metric]")


@dataclass(frozen=True)
class Evaluation:
    """The inputs of metrics: the results of a model on a split."""

    stats: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Name of a statistic of the criterion → (sum over the split, sum of the weights)."""
    outputs: Sequence[Output] = ()
    text: TextCount | None = None
    """The size of the original text. None: it is unknown, or part of the text was not scored."""
    resamples: int = 0
    """The number of bootstrap samples for confidence intervals. 0: no intervals."""

    @property
    def provides(self) -> set[str]:
        """The entries of `Metric.needs` that this evaluation provides."""
        available = {
            OUTPUTS: self.outputs and not self._has_classes,
            TEXT_SIZE: self.text is not None,
            PREDICTIONS: self._has_classes,
        }
        return {*self.stats, *(need for need, is_available in available.items() if is_available)}

    @property
    def _has_classes(self) -> bool:
        return bool(self.outputs) and isinstance(self.outputs[0], ClassOutput)

    @cached_property
    def predictions(self) -> Predictions | None:
        """The predictions of a classifier as arrays, or None if the model is not a classifier."""
        return (
            Predictions([item for item in self.outputs if isinstance(item, ClassOutput)]) if self._has_classes else None
        )

    def mean(self, name: str) -> float:
        """Returns the mean of one statistic, its sum divided by its weight."""
        total, weight = self.stats[name]
        return total / (weight or 1.0)


@dataclass(frozen=True)
class Score:
    """The value of a metric."""

    value: float
    signature: str = ""
    """The settings of its computation, such as sacreBLEU's `nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:…`."""
    line: str = ""
    """The line that the tool which computed the value prints, such as `BLEU = 28.1 …`."""
    interval: tuple[float, float] | None = None
    """The 95 % bootstrap confidence interval."""

    @property
    def signed_line(self) -> str:
        """`line` with the signature after the name: `BLEU|nrefs:1|… = 28.1 …`."""
        name, equals, rest = self.line.partition(" = ")
        return f"{name}|{self.signature}{equals}{rest}" if self.signature else self.line


class Metric(abc.ABC):
    """Base class of metrics. Instances have no state: `compute` receives all results of a split at once."""

    name: ClassVar[str]
    unit: ClassVar[str]
    higher_is_better: ClassVar[bool]
    needs: ClassVar[tuple[str, ...]]
    """Inputs of the metric: names of a criterion's statistics (`"nll"`), `OUTPUTS`, `TEXT_SIZE` or `PREDICTIONS`."""

    @abc.abstractmethod
    def compute(self, evaluation: Evaluation) -> Score:
        """Returns the value of this metric. `evaluation` provides everything in `needs`."""

    def interval(self, evaluation: Evaluation) -> tuple[float, float] | None:
        """Returns the 95 % confidence interval from `evaluation.resamples` bootstrap samples. Default: returns None."""
        return None

    def is_better(self, value: float, than: float | None) -> bool:
        """Returns True if `value` is better than the best earlier value, `than`, or if `than` is None."""
        return than is None or (value > than if self.higher_is_better else value < than)


class MetricRegistry:
    """Maps names to metrics. `metrics` is the only instance."""

    def __init__(self) -> None:
        self._classes: dict[str, type[Metric]] = {}

    def register(self, name: str, *, unit: str, higher_is_better: bool) -> Callable[[M], M]:
        """Class decorator: registers a metric.

        Args:
            name: The name of the metric in logs, in reports and in `validation.metric`.
            unit: The unit of the value, such as `"%"` or `"bits per byte"`, for reports.
            higher_is_better: True if higher values are better.
        """
        if name in self._classes:
            raise ValueError(f"a metric '{name}' is already registered")

        def decorate(cls: M) -> M:
            cls.name, cls.unit, cls.higher_is_better = name, unit, higher_is_better
            self._classes[name] = cls
            return cls

        return decorate

    def __getitem__(self, name: str) -> type[Metric]:
        """Returns the metric with this name. If there is none, raises a UserError that suggests a similar name."""
        if name not in self._classes:
            raise UserError(f"There is no metric called '{name}'.", nearest(name, self))
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def available(self, provided: Collection[str], names: Iterable[str] | None = None) -> list[str]:
        """Returns each name in `names` (default: all names) whose metric needs only inputs in `provided`."""
        return [name for name in (self if names is None else names) if set(self[name].needs) <= set(provided)]

    def compute(self, names: Iterable[str], evaluation: Evaluation) -> dict[str, Score]:
        """Returns the scores of the available metrics in `names`, and the means of statistics that no metric uses."""
        scores = {name: self._score(name, evaluation) for name in self.available(evaluation.provides, names)}
        needed = {need for kind in self._classes.values() for need in kind.needs}
        return scores | {name: Score(evaluation.mean(name)) for name in sorted(set(evaluation.stats) - needed)}

    def _score(self, name: str, evaluation: Evaluation) -> Score:
        metric = self[name]()
        score = metric.compute(evaluation)
        interval = metric.interval(evaluation) if evaluation.resamples else None
        return score if interval is None else replace(score, interval=interval)


metrics = MetricRegistry()
