"""Trains one small model with each attention layer for the same number of updates. Prints scores, speeds and memory.

    python tools/compare_attention.py --contest translation --data data-bin/multi30k_en_de [--updates N] [--kinds …]
    python tools/compare_attention.py --contest language --data data-bin/wikipedia_bytes [--updates N] [--kinds …]

For each layer, the tool runs `seqtk-train recipe=multi30k_base` (or `wikipedia_bytes`) with fewer updates and with this
layer as self-attention (only in the encoder if the layer has no causal form). Then it runs `seqtk-generate beam=5` (or
`seqtk-eval-lm`) on the test split. With --bf16, training uses `precision=bf16`.

Speed is the number of target tokens per second of processor time, which other work on the machine affects less than
wall-clock time. It includes start-up and validation. If the output folder contains the result of a layer, this layer is
not trained again.
"""

import argparse
import csv
import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqtk.attention import Role, attentions

ENTRANTS: dict[str, dict[str, Any]] = {
    "softmax": {"kind": "softmax"},
    "synthesizer_random": {"kind": "synthesizer_random"},
    "random+dot": {"kind": "synthesizer_mixture", "parts": ["random", "dot"]},
    "dynamic_conv": {"kind": "dynamic_conv", "kernel_size": 7},
    "linear": {"kind": "linear"},
    "feedforward_kernel": {"kind": "feedforward_kernel"},
    "simpletron": {"kind": "simpletron"},
    "luna": {"kind": "luna"},
    "synthesizer_dense": {"kind": "synthesizer_dense"},
    "convluna": {"kind": "convluna"},
    "lightweight_conv": {"kind": "lightweight_conv", "kernel_size": 7},
    "performer": {"kind": "performer"},
    "linformer": {"kind": "linformer", "rank": 32},
    "dense+dot": {"kind": "synthesizer_mixture", "parts": ["dense", "dot"]},
    "random+dense": {"kind": "synthesizer_mixture", "parts": ["random", "dense"]},
    "factorized_random+dot": {"kind": "synthesizer_mixture", "parts": ["factorized_random", "dot"]},
    "synthesizer_fixed_random": {"kind": "synthesizer_fixed_random"},
    "synthesizer_factorized_random": {"kind": "synthesizer_factorized_random"},
    "synthesizer_factorized_dense": {"kind": "synthesizer_factorized_dense"},
    "mega": {"kind": "mega"},
    "aft_simple": {"kind": "aft_simple"},
    "gmlp": {"kind": "gmlp"},
    "nystrom": {"kind": "nystrom"},
    "sliding_window": {"kind": "sliding_window", "window": 8},
    "fnet": {"kind": "fnet"},
    "transformer_xl": {"kind": "transformer_xl"},
}
"""Name → settings of each layer to compare. If a layer has a setting `max_length`, it is set to `Contest.longest`."""


@dataclass(frozen=True)
class Contest:
    """A comparison: the model to train, the command that scores it, and the score that ranks the layers."""

    recipe: str
    longest: int
    """The longest input in tokens, for layers with a maximum length."""
    score: tuple[str, ...]
    """The command that scores the model. `run` adds the arguments `checkpoint=` and `data=`."""
    figure: re.Pattern[str]
    """The pattern of the score in the output of `score`."""
    name: str
    """The name of the score, which is the heading of its column."""
    higher_is_better: bool
    role: Role
    """The role that a layer must have to be compared."""


CONTESTS = {
    "translation": Contest(
        "multi30k_base", 128, ("seqtk-generate", "beam=5", "output={translations}"),
        re.compile(r"^BLEU\|\S+ = ([\d.]+)", re.MULTILINE), "test BLEU", higher_is_better=True, role=Role.ENCODER,
    ),
    "language": Contest(
        "wikipedia_bytes", 256, ("seqtk-eval-lm", "format=json"),
        re.compile(r'"bits_per_byte": ([\d.]+)'), "test bits per byte", higher_is_better=False, role=Role.CAUSAL,
    ),
}  # fmt: skip
COLUMNS = ("kind", "where", "score", "valid_nll", "tokens_per_cpu_second", "parameters", "peak_gib")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contest", choices=list(CONTESTS), default="translation")
    parser.add_argument("--data", required=True, help="the data-bin directory of the contest's recipe")
    parser.add_argument("--updates", type=int, default=480)
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=list(ENTRANTS),
        metavar="KIND",
        help="default: all kinds with the role of the contest",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--output", type=Path, help="default: compare-attention/CONTEST")
    arguments = parser.parse_args()
    contest = CONTESTS[arguments.contest]
    arguments.output = arguments.output or Path("compare-attention") / arguments.contest
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.kinds or [name for name in ENTRANTS if contest.role in roles(name)]:
        result = arguments.output / f"{name}.json"
        if not result.exists():
            result.write_text(json.dumps(run(name, contest, arguments)))
    rows = [json.loads(path.read_text()) for path in arguments.output.glob("*.json")]
    rows.sort(key=lambda row: row["score"], reverse=contest.higher_is_better)
    with (arguments.output / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(table(rows, contest))


def roles(name: str) -> Role:
    """Returns the roles of the layer."""
    return attentions.class_of(attentions.config_type(ENTRANTS[name]["kind"])).roles


def where(name: str) -> str:
    """Returns where the model uses the layer as self-attention: "encoder" or "everywhere"."""
    return "everywhere" if Role.CAUSAL in roles(name) else "encoder"


def settings_of(name: str, contest: Contest) -> list[str]:
    """Returns the settings that select the layer. A layer with a maximum length gets the contest's longest input."""
    config_type = attentions.config_type(ENTRANTS[name]["kind"])
    needs_length = "max_length" in {field.name for field in dataclasses.fields(config_type)}
    config = {**ENTRANTS[name], **({"max_length": contest.longest} if needs_length else {})}
    settings = [f"{'model.encoder.self_attention' if where(name) == 'encoder' else 'attention'}={_written(config)}"]
    if needs_length and contest.recipe == "multi30k_base":
        settings += [f"model.max_{side}_length={contest.longest}" for side in ("source", "target")]
    return settings


def run(name: str, contest: Contest, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains and scores a model with the layer `name`. Returns name of a column → its value."""
    folder = arguments.output / name
    common = [f"threads={arguments.threads}", f"precision={'bf16' if arguments.bf16 else 'fp32'}"]
    training, scoring = folder.with_suffix(".train.log"), folder.with_suffix(".score.log")
    seconds = _command(
        "seqtk-train", f"recipe={contest.recipe}", f"task.data={arguments.data}", f"save_dir={folder}",
        *settings_of(name, contest), *common, f"max_updates={arguments.updates}",
        f"schedule.warmup_updates={arguments.updates // 4}", f"validation.every={arguments.updates}",
        *(["validation.decode=false"] if contest.recipe == "multi30k_base" else []), "validation.metric=loss",
        f"checkpoint.every={arguments.updates}", "checkpoint.keep_last=1", "log.every=20", "log.tensorboard=false",
        log=training,
    )  # fmt: skip
    program, *rest = (part.format(translations=folder.with_suffix(".txt")) for part in contest.score)
    _command(program, f"checkpoint={folder}", f"data={arguments.data}", *rest, *common, log=scoring)
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    trained = [event for event in events if event["kind"] == "train"]
    lengths = [end - start for start, end in itertools.pairwise([0, *(event["update"] for event in trained)])]
    tokens = sum(event["tokens_per_update"] * length for event, length in zip(trained, lengths, strict=True))
    score = contest.figure.search(scoring.read_text())
    parameters = re.search(r"^([\d,]+) parameters", training.read_text(), re.MULTILINE)
    assert score is not None
    assert parameters is not None
    return {
        "kind": name,
        "where": where(name),
        "score": float(score[1]),
        "valid_nll": [event["nll"] for event in events if event["kind"] == "valid"][-1],
        "tokens_per_cpu_second": tokens / seconds,
        "parameters": int(parameters[1].replace(",", "")),
        "peak_gib": max(event["memory_gib"] for event in trained),
    }


def _written(config: dict[str, Any]) -> str:
    """Returns `config` as text, in the syntax of a mapping on the command line."""
    parts = []
    for key, value in config.items():
        parts.append(f"{key}: [{', '.join(value)}]" if isinstance(value, list) else f"{key}: {value}")
    return "{" + ", ".join(parts) + "}"


def _command(program: str, *arguments: str, log: Path) -> float:
    """Runs a command and writes its output to `log`. Returns its CPU time in seconds."""
    path = str(Path(sys.executable).parent / program)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen([path, *arguments], stdout=file, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{program} failed. Its output is in {log}.")
    return usage.ru_utime + usage.ru_stime


def table(rows: list[dict[str, Any]], contest: Contest) -> str:
    """Returns a Markdown table of the results, with the best score first."""
    lines = [
        f"| kind | {contest.name} | validation nll | tokens/s of a core | parameters | peak GiB |",
        "|---|---|---|---|---|---|",
    ]
    digits = 2 if contest.higher_is_better else 3
    for row in rows:
        note = " (encoder)" if row["where"] == "encoder" else ""
        lines.append(
            f"| `{row['kind']}`{note} | {row['score']:.{digits}f} | {row['valid_nll']:.3f} "
            f"| {row['tokens_per_cpu_second']:,.0f} | {row['parameters']:,} | {row['peak_gib']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
