"""seqtk-plot: plots a metric of one or more runs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqtk.cli.command import command
from seqtk.config.fields import setting
from seqtk.utils.errors import UserError
from seqtk.utils.files import atomic_file
from seqtk.utils.suggestions import near_path, nearest

Points = list[tuple[int, float]]
"""(update, value) pairs, in order."""

FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class PlotConfig:
    """Settings of seqtk-plot: the runs, the metric, and the picture to write."""

    runs: tuple[str, ...] = setting((), help="Folders of runs (their save_dir).")
    metric: str = setting("loss", help="The metric to plot, by its name in log.jsonl: loss, nll, ppl, bleu, lr, ….")
    output: str = setting("curves.png", help="The file to write, a .png, .svg or .pdf file.")
    log_scale: bool = setting(False, help="Use a logarithmic scale for the metric.")
    width: float = setting(8.0, above=0, at_most=100, help="Width of the picture in inches.")
    height: float = setting(5.0, above=0, at_most=100, help="Height of the picture in inches.")


@command("seqtk-plot", PlotConfig, first="runs")
def main(config: PlotConfig) -> None:
    """Plot a metric of one or more runs: seqtk-plot RUN… [metric=loss] [output=curves.png].

    Reads each run's log.jsonl. Validation is a line with points; training is a thin line of the same color.
    """
    if not config.runs:
        raise UserError("runs= is not set.", "Set one or more runs: seqtk-plot checkpoints/a checkpoints/b metric=nll")
    check_picture("output", config.output)
    curves = {run: read_curves(Path(run), config.metric) for run in config.runs}
    plot(curves, config)
    print(config.output)


def check_picture(key: str, output: str) -> None:
    """Raises UserError unless `output`, the value of `key`, has the file extension of a picture."""
    if Path(output).suffix.removeprefix(".") not in FORMATS:
        raise UserError(f"{key}={output}: must end in .{', .'.join(FORMATS)}.")


def load_pyplot(user: str) -> Any:
    """Imports matplotlib's pyplot without a display. Raises UserError if it is not installed.

    `user` is the command or key that requires matplotlib, for the error.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError(
            f"{user} requires matplotlib, which is not installed.", "Install it: pip install 'seqtk-torch[plot]'"
        ) from None
    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "seqtk"  # makes the files of equal runs identical
    from matplotlib import pyplot

    return pyplot


def literal(text: str) -> str:
    """Returns `text` for a label. Without the escapes, matplotlib reads text between two $ as a formula."""
    return text.replace("$", r"\$")


def read_curves(run: Path, metric: str) -> dict[str, Points]:
    """Returns the curves of a metric in a run's log: kind of log line (`train` or `valid`) → points.

    Raises:
        UserError: If the run has no log, or its log does not contain the metric.
    """
    log = run / "log.jsonl" if run.is_dir() else run
    if not log.is_file():
        raise UserError(f"There is no run in {run}: {log} does not exist.", *near_path(run))
    curves: dict[str, Points] = {}
    known: set[str] = set()
    for number, line in enumerate(log.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            entry = json.loads(line)
            kind, update = entry.pop("kind"), entry.pop("update")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{log} is not the log of a run: line {number} is not a JSON object with 'kind' and 'update'."
            ) from None
        known |= {name for name, value in entry.items() if isinstance(value, int | float)}
        if isinstance(entry.get(metric), int | float):
            curves.setdefault(kind, []).append((update, entry[metric]))
    if not curves:
        raise UserError(f"metric={metric}: {log} has no such metric.", nearest(metric, known))
    return curves


def plot(curves: Mapping[str, Mapping[str, Points]], config: PlotConfig) -> None:
    """Plots the curves of each run to the file `config.output`. Raises UserError if matplotlib is not installed."""
    pyplot = load_pyplot("seqtk-plot")
    figure, axes = pyplot.subplots(figsize=(config.width, config.height), layout="constrained")
    for index, (run, by_kind) in enumerate(curves.items()):
        color = f"C{index % 10}"
        for kind, points in by_kind.items():
            style = {"linewidth": 0.8, "alpha": 0.5} if kind == "train" else {"marker": "o", "markersize": 3.0}
            axes.plot(*zip(*points, strict=True), color=color, label=literal(f"{run} ({kind})"), **style)
    axes.set_xlabel("update")
    axes.set_ylabel(literal(config.metric))
    if config.log_scale:
        axes.set_yscale("log")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    with atomic_file(config.output) as path:
        figure.savefig(path, format=Path(config.output).suffix.removeprefix("."), dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
