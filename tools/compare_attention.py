"""Trains one small translation model with each attention layer, in one budget, and prints what it reached and cost.

python tools/compare_attention.py --data data-bin/multi30k_en_de [--updates N] [--kinds …] [--output DIR]

Every run is `seqtk-train recipe=multi30k_base` with fewer updates and another layer in the self-attention of encoder
and decoder (of the encoder alone, where a kind has no causal form), then `seqtk-generate beam=5` over the test split.
Speed is target tokens for each second of processor time of the whole training, start and validation included, so that
the figure stands where other work shares the machine. A kind whose result is in DIR already is not run again.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

SYNTHESIZER = {"max_length": 128}
ENTRANTS: dict[str, dict[str, Any]] = {
    "softmax": {"kind": "softmax"},
    "synthesizer_random": {"kind": "synthesizer_random", **SYNTHESIZER},
    "random+dot": {"kind": "synthesizer_mixture", "parts": ["random", "dot"], **SYNTHESIZER},
    "dynamic_conv": {"kind": "dynamic_conv", "kernel_size": 7},
    "linear": {"kind": "linear"},
    "feedforward_kernel": {"kind": "feedforward_kernel"},
    "simpletron": {"kind": "simpletron"},
    "luna": {"kind": "luna"},
    "convluna": {"kind": "convluna"},
    "synthesizer_dense": {"kind": "synthesizer_dense", **SYNTHESIZER},
    "lightweight_conv": {"kind": "lightweight_conv", "kernel_size": 7},
    "performer": {"kind": "performer"},
    "linformer": {"kind": "linformer", "max_length": 128, "rank": 32},
    "dense+dot": {"kind": "synthesizer_mixture", "parts": ["dense", "dot"], **SYNTHESIZER},
    "random+dense": {"kind": "synthesizer_mixture", "parts": ["random", "dense"], **SYNTHESIZER},
    "factorized_random+dot": {"kind": "synthesizer_mixture", "parts": ["factorized_random", "dot"], **SYNTHESIZER},
    "synthesizer_fixed_random": {"kind": "synthesizer_fixed_random", **SYNTHESIZER},
    "synthesizer_factorized_random": {"kind": "synthesizer_factorized_random", **SYNTHESIZER},
    "synthesizer_factorized_dense": {"kind": "synthesizer_factorized_dense", **SYNTHESIZER},
    "mega": {"kind": "mega"},
    "aft_simple": {"kind": "aft_simple"},
    "gmlp": {"kind": "gmlp", "max_length": 128},
    "nystrom": {"kind": "nystrom"},
    "sliding_window": {"kind": "sliding_window", "window": 8},
    "fnet": {"kind": "fnet"},
}
ENCODER_ALONE = {"linformer", "nystrom", "fnet"}
COLUMNS = ("kind", "where", "bleu", "valid_nll", "tokens_per_cpu_second", "parameters", "peak_gib")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the data-bin directory of multi30k_base")
    parser.add_argument("--updates", type=int, default=240)
    parser.add_argument("--kinds", nargs="+", default=list(ENTRANTS), choices=list(ENTRANTS), metavar="KIND")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("compare-attention"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.kinds:
        result = arguments.output / f"{name}.json"
        if not result.exists():
            result.write_text(json.dumps(run(name, arguments)))
    rows = [json.loads(path.read_text()) for path in arguments.output.glob("*.json")]
    rows.sort(key=lambda row: -row["bleu"])
    with (arguments.output / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(table(rows))


def run(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and translate; what came of it."""
    folder = arguments.output / name
    slot = "model.encoder.self_attention" if name in ENCODER_ALONE else "attention"
    settings = [f"{slot}={_written(ENTRANTS[name])}"]
    limits = [f"model.max_{side}_length=128" for side in ("source", "target") if "max_length" in ENTRANTS[name]]
    seconds = _command(
        "seqtk-train", "recipe=multi30k_base", f"task.data={arguments.data}", f"save_dir={folder}", *settings, *limits,
        f"max_updates={arguments.updates}", f"schedule.warmup_updates={arguments.updates // 4}",
        f"validation.every={arguments.updates}", "validation.decode=false", "validation.metric=loss",
        f"checkpoint.every={arguments.updates}", "checkpoint.keep_last=1", "log.every=20", "log.tensorboard=false",
        f"threads={arguments.threads}", log=folder.with_suffix(".train.log"),
    )  # fmt: skip
    log = folder.with_suffix(".generate.log")
    _command(
        "seqtk-generate", f"checkpoint={folder}", f"data={arguments.data}", "beam=5", f"threads={arguments.threads}",
        f"output={folder.with_suffix('.txt')}", log=log,
    )  # fmt: skip
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    trained = [event for event in events if event["kind"] == "train"]
    tokens = 20 * sum(event["tokens_per_update"] for event in trained)
    bleu = re.search(r"^BLEU\|(\S+) = ([\d.]+)", log.read_text(), re.MULTILINE)
    parameters = re.search(r"^([\d,]+) parameters", folder.with_suffix(".train.log").read_text(), re.MULTILINE)
    assert bleu is not None
    assert parameters is not None
    return {
        "kind": name,
        "where": "encoder" if name in ENCODER_ALONE else "encoder and decoder",
        "bleu": float(bleu[2]),
        "valid_nll": [event["nll"] for event in events if event["kind"] == "valid"][-1],
        "tokens_per_cpu_second": tokens / seconds,
        "parameters": int(parameters[1].replace(",", "")),
        "peak_gib": max(event["memory_gib"] for event in trained),
    }


def _written(config: dict[str, Any]) -> str:
    """A mapping as it is written on the command line."""
    parts = []
    for key, value in config.items():
        parts.append(f"{key}: [{', '.join(value)}]" if isinstance(value, list) else f"{key}: {value}")
    return "{" + ", ".join(parts) + "}"


def _command(program: str, *arguments: str, log: Path) -> float:
    """Run it; the seconds of processor time it took."""
    path = str(Path(sys.executable).parent / program)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen([path, *arguments], stdout=file, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{program} failed: see {log}")
    return usage.ru_utime + usage.ru_stime


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown, best first."""
    lines = [
        "| kind | test BLEU | validation nll | tokens/s of a core | parameters | peak GiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        note = " (encoder)" if row["where"] == "encoder" else ""
        lines.append(
            f"| `{row['kind']}`{note} | {row['bleu']:.2f} | {row['valid_nll']:.3f} "
            f"| {row['tokens_per_cpu_second']:,.0f} | {row['parameters']:,} | {row['peak_gib']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
