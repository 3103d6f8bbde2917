"""The result of an evaluation, as text and as JSON."""

from dataclasses import dataclass, field
from typing import Any

from seqtk.metrics import Output, Score, metrics
from seqtk.utils.errors import how_many


@dataclass(frozen=True)
class Report:
    """The result of `Task.evaluate`."""

    scores: dict[str, Score]
    """Name of a metric → its score."""
    counts: dict[str, int]
    """Name → count, for example the number of sentences."""
    outputs: list[Output] = field(repr=False)
    """The model's outputs in the order of the examples, or an empty list if nothing was decoded."""

    def to_dict(self) -> dict[str, Any]:
        """Returns a dict for JSON with one key for each score, signature, confidence interval and count."""
        signatures = {f"{name}_signature": score.signature for name, score in self.scores.items() if score.signature}
        intervals = {f"{name}_interval": score.interval for name, score in self.scores.items() if score.interval}
        return {name: score.value for name, score in self.scores.items()} | signatures | intervals | self.counts

    def lines(self) -> list[str]:
        """Returns lines to print: the counts, each metric with its unit and confidence interval, and the signatures."""
        about = ", ".join(
            how_many(count, name.replace("_", " ").removesuffix("s")) for name, count in self.counts.items()
        )
        units = {name: metrics[name].unit if name in metrics else "per target" for name in self.scores}
        return [
            about,
            *(
                f"{score.value:>10.4g} {name} ({units[name]})"
                + (f", 95 % interval {score.interval[0]:.4g} to {score.interval[1]:.4g}" if score.interval else "")
                for name, score in self.scores.items()
            ),
            *(f"{name} signature: {score.signature}" for name, score in self.scores.items() if score.signature),
        ]
