"""Trains the same runs with two checkouts, and prints the differences between their losses.

    python tools/compare_losses.py --against CHECKOUT [--updates N] RUN [RUN ...]

A RUN is one quoted argument with the settings of `seqtk-train`, for example "recipe=multi30k_base precision=bf16". Both
checkouts train the run in the current folder, which contains its data-bin: one after the other, with one thread and the
same seed. They log every update. For each run, the table shows the number of updates that both checkouts logged, and
the largest absolute differences of the loss, the nll and the norm of the gradient. A difference of 0 means that all
numbers are bit-identical. The exit code is 1 if a difference exceeds `--tolerance`.

Runs are validated once, at the end, and only their nll is computed. If a run sets keys of `validation.`, it keeps its
own validation settings.

If two checkouts generate the random numbers of dropout in a different order, compare them without dropout:
`"recipe=demo model.dropout=0 attention.dropout=0"`. If they sum the same numbers in a different order, their losses
differ by about 1e-5 after 50 updates in float32. With `--float64`, both train in float64. There, a difference above
1e-12 means that they compute something different.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

COMPARED = ("loss", "nll", "gnorm")
HERE = Path(__file__).resolve().parents[1]
# `python -P -c` imports the package of its own checkout, not the one in the current folder.
FLOAT32 = "from seqtk.cli.train import main; main()"
FLOAT64 = f"import torch; torch.set_default_dtype(torch.float64); {FLOAT32}"

Log = list[dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="settings of seqtk-train, quoted as one argument")
    parser.add_argument("--against", type=Path, required=True, help="another checkout, with its own .venv")
    parser.add_argument("--updates", type=int, default=50, help="updates of each run")
    parser.add_argument("--tolerance", type=float, default=0.0, help="largest absolute difference allowed")
    parser.add_argument("--float64", action="store_true", help="train in float64")
    arguments = parser.parse_args()
    print(f"{'updates':>7}" + "".join(f"{name:>12}" for name in COMPARED) + "   run", flush=True)
    failed = False
    for run in arguments.runs:
        settings = shlex.split(run)
        logs = [
            train(checkout, settings, updates=arguments.updates, float64=arguments.float64)
            for checkout in (arguments.against, HERE)
        ]
        worst, first = compare(*logs)
        failed |= len(logs[0]) != len(logs[1]) or not max(worst.values()) <= arguments.tolerance
        print(f"{min(map(len, logs)):7}" + "".join(f"{worst[name]:12.3g}" for name in COMPARED), f"  {run}", end="")
        print(f"   (first at update {first})" if first else "", flush=True)
    sys.exit(failed)


def train(checkout: Path, settings: list[str], *, updates: int, float64: bool) -> Log:
    """Trains a run with the `seqtk-train` of a checkout. Returns the training lines of its log."""
    with tempfile.TemporaryDirectory(prefix="compare-losses-") as folder:
        command = [
            str(checkout / ".venv/bin/python"), "-P", "-c", FLOAT64 if float64 else FLOAT32,
            "device=cpu", "threads=1", "log.every=1", f"save_dir={folder}/run", f"max_updates={updates}",
            f"checkpoint.every={updates}", *validation(settings, updates), *settings,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{shlex.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        lines = map(json.loads, (Path(folder) / "run/log.jsonl").read_text().splitlines())
        return [line for line in lines if line["kind"] == "train"]


def validation(settings: list[str], updates: int) -> list[str]:
    """Returns settings for one validation without decoding, or no settings if the run sets keys of `validation.`."""
    if any(setting.startswith("validation") for setting in settings):
        return []
    return [f"validation.every={updates}", "validation.decode=false", "validation.metric=nll"]


def compare(old: Log, new: Log) -> tuple[dict[str, float], int | None]:
    """Compares two logs. Returns (name in COMPARED → largest difference, first update with a difference or None)."""
    worst, first = dict.fromkeys(COMPARED, 0.0), None
    for before, after in zip(old, new, strict=False):
        for name in COMPARED:
            difference = abs(before[name] - after[name])
            if first is None and difference != 0:
                first = int(before["update"])
            worst[name] = max(worst[name], difference) if difference == difference else float("inf")
    return worst, first


if __name__ == "__main__":
    main()
