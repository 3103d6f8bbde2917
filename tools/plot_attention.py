"""Plots the results of tools/bench_attention.py, as PNG and SVG.

    python tools/plot_attention.py DIR/attention.csv [--output DIR]

There is one figure for each role and quantity (speed or memory), with one panel for each family of layers.
"""

import argparse
import csv
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

FIGURES = {
    "speed": "times as fast as softmax (above 1: faster)",
    "memory": "memory relative to softmax (below 1: less)",
}
COLUMNS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--output", type=Path, help="default: the folder of the CSV")
    arguments = parser.parse_args()
    output = arguments.output or arguments.csv.parent
    output.mkdir(parents=True, exist_ok=True)
    with arguments.csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for role in dict.fromkeys(row["role"] for row in rows):
        for quantity, label in FIGURES.items():
            chosen = [row for row in rows if row["role"] == role and row[quantity]]
            if len({row["kind"] for row in chosen}) > 1:
                figure = draw(chosen, quantity, title=f"{role}: {label}")
                for suffix in ("png", "svg"):
                    figure.savefig(output / f"attention-{role}-{quantity}.{suffix}", bbox_inches="tight", dpi=80)
                pyplot.close(figure)
                print(output / f"attention-{role}-{quantity}.png")


def draw(rows: list[dict[str, str]], quantity: str, *, title: str) -> Any:
    """Returns a figure with one panel per family. All panels have the same axes. The line at 1 is softmax."""
    families = [family for family in dict.fromkeys(row["family"] for row in rows) if _rivals(rows, family)]
    height = math.ceil(len(families) / COLUMNS)
    figure, axes = pyplot.subplots(
        height, COLUMNS, figsize=(3.4 * COLUMNS, 2.2 * height + 0.5), sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    positions = "position" if "decoding" in title else "length"
    for axis, family in zip(axes.flat, families, strict=False):
        axis.axhline(1, color="0.45", linewidth=1)
        for kind in _rivals(rows, family):
            points = sorted((int(row["length"]), float(row[quantity])) for row in rows if row["kind"] == kind)
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.4, label=kind)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value < 1024 else f"{value / 1024:g}k")
        axis.grid(alpha=0.3)
        axis.set_title(family, fontsize=10)
        axis.legend(fontsize=7, frameon=False)
    for axis in axes.flat[len(families) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(0, len(families) - COLUMNS) : len(families)]:
        axis.set_xlabel(positions, fontsize=9)
        axis.xaxis.set_tick_params(labelbottom=True)
    figure.suptitle(title, fontsize=12)
    return figure


def _rivals(rows: list[dict[str, str]], family: str) -> list[str]:
    return list(dict.fromkeys(row["kind"] for row in rows if row["family"] == family and row["kind"] != "softmax"))


if __name__ == "__main__":
    main()
