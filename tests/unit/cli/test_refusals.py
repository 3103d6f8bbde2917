"""Invalid values for every key of every command: each is refused with the key, or accepted for a documented reason.

The table is generated from the config dataclasses. `python -m tests.unit.cli.test_refusals` prints its totals.
"""

import dataclasses
import functools
import importlib
import inspect
import math
import pkgutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import seqtk.cli
from seqtk.cli import compose
from seqtk.config import legacy, schema
from seqtk.config.fields import help_of, range_of
from seqtk.config.registry import REGISTRIES, registry_of
from seqtk.corpora import LABELLED_SETS
from seqtk.utils.errors import UserError
from tests.waiting import PATIENCE

HUGE = 10**20
NUMBERS = ["-1", "0", "nan", "inf", "-inf", "1e400", str(HUGE), str(-HUGE), "9" * 5000, "0.5", "-1e-9"]
OTHERS = [
    "",
    "abc",
    "true",
    "null",
    "[]",
    "[1,2,3,4,5]",
    "{a: 1}",
    "{kind: nothing}",
    "[",
    "'",
    "x" * 100_000,
    "${no}",
    "1,2",
]


def commands() -> dict[str, type]:
    """Returns the config class of each command, by module name."""
    found: dict[str, type] = {}
    for module in pkgutil.iter_modules(seqtk.cli.__path__):
        for item in vars(importlib.import_module(f"seqtk.cli.{module.name}")).values():
            config_type = getattr(item, "__dict__", {}).get("config_type") if inspect.isfunction(item) else None
            if isinstance(config_type, str):
                config_type = pkgutil.resolve_name(config_type)
            if config_type is not None:
                found.setdefault(module.name, config_type)
    return found | {f"prepare {name}": labelled.config for name, labelled in LABELLED_SETS.items()}


COMMANDS = commands()
SLOT_KINDS = [(kind, name) for kind, registry in REGISTRIES.items() for name in registry]


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, type, str]]:
    """Yields (full key, config class, field name) of every field that is not a config."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inside = [item for item in (value if isinstance(value, tuple) else (value,)) if dataclasses.is_dataclass(item)]
        if not inside:
            yield f"{prefix}{field.name}", type(config), field.name
        for item in inside[:1]:
            yield from leaves(item, f"{prefix}{field.name}.")


@functools.cache
def parsed(text: str) -> compose.Override:
    [override] = compose.parse_overrides([f"key={text}"])
    return override


def verdict(config: Any, key: str, text: str) -> tuple[str, str]:
    """Sets one argument, and returns ("refused", message) or ("accepted", value)."""
    try:
        changed = compose.compose(config, [], [dataclasses.replace(parsed(text), key=key)])
    except UserError as error:
        return "refused", str(error)
    value: Any = changed
    for part in key.split("."):
        value = getattr(value[0] if isinstance(value, tuple) else value, part)
    return "accepted", value


UNBOUNDED = {
    "length_penalty": "a negative one prefers short outputs",
    "value_mean": "the mean of numbers of any sign",
    "unk_penalty": "a negative one prefers <unk>",
    "beta2_decay": "an exponent, negative in the paper",
}
"""Fields that accept a number of any sign, with the reason."""


def reason(config_type: type, name: str, text: str, value: Any) -> str | None:
    """Returns the reason for which a value may be accepted, or None if it must be refused."""
    hint = schema.hints_of(config_type)[name]
    kinds = {hint, *legacy._leaves(hint)}
    if value is None and type(None) in kinds:
        return "null is a value of the field"
    if isinstance(value, str) and str in kinds:
        return "any text is a text"
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value) and str in kinds:
        return "any text is a text"
    if isinstance(value, bool):
        return "true is a value of the field"
    if isinstance(value, tuple) and not value:
        return "an empty list is a list"
    numbers = value if isinstance(value, tuple) else (value,)
    if all(isinstance(number, int | float) for number in numbers):
        limits = range_of(config_type, name)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            return "the field accepts infinity" if limits.infinite else None
        bounded = limits.at_least is not None or limits.above is not None
        if all(number >= 0 for number in numbers) and text in ("0", "0.5", "[1,2,3,4,5]", "[]"):
            return "the number is in the field's range"
        return "the number is in the field's range" if bounded else UNBOUNDED.get(name)
    return None


def rows() -> Iterator[tuple[str, Any, str, type, str]]:
    """Yields (command, config, key, config class, field name) of every key, for every kind in every slot."""
    for command, config_type in COMMANDS.items():
        defaults = config_type()
        for key, owner, name in leaves(defaults):
            yield command, defaults, key, owner, name
        for field in dataclasses.fields(config_type):
            registry = registry_of(schema.hints_of(config_type)[field.name])
            for kind in registry or ():
                config = schema.update(defaults, field.name, kind)
                for key, owner, name in leaves(getattr(config, field.name), f"{field.name}."):
                    yield command, config, key, owner, name
    from seqtk.training.config import TrainConfig

    for kind in REGISTRIES["attention"]:
        config = schema.update(TrainConfig(), "model.decoder.cross_attention", kind)
        [layer] = config.model.decoder.cross_attention  # type: ignore[attr-defined]
        for key, owner, name in leaves(layer, "model.decoder.cross_attention."):
            yield "train", config, key, owner, name


def table() -> tuple[Counter[str], list[str]]:
    """Returns the number of values refused and accepted for each reason, and the faults found."""
    totals: Counter[str] = Counter()
    faults = []
    seen: set[tuple[str, str, type]] = set()
    for command, config, key, owner, name in rows():
        origin = next(cls for cls in reversed(owner.__mro__) if name in inspect.get_annotations(cls))
        if (command, key, origin) in seen:  # the same field in a subclass
            continue
        seen.add((command, key, origin))
        for text in [*NUMBERS, *OTHERS]:
            shown = text if len(text) < 30 else f"{text[:10]}…"
            outcome, result = verdict(config, key, text)
            if outcome == "refused":
                totals["refused"] += 1
                if key.rpartition(".")[2] not in result.partition("\n")[0] and text != "${no}":
                    faults.append(f"{command} {key}={shown}: the error does not name the key: {result[:200]}")
                if len(result.splitlines()) > 3 or len(result) > 1000:
                    faults.append(f"{command} {key}={shown}: the error is too long")
                continue
            why = reason(owner, name, text, result)
            totals[f"accepted: {why}"] += 1
            if why is None:
                faults.append(f"{command} {key}={shown} is accepted ({owner.__name__})")
    return totals, faults


@pytest.fixture(scope="module")
def tried() -> tuple[Counter[str], list[str]]:
    return table()


class TestTable:
    def test_every_error_names_its_key(self, tried: tuple[Counter[str], list[str]]) -> None:
        assert [fault for fault in tried[1] if not fault.endswith(")")] == []

    def test_no_invalid_value_is_accepted_without_a_reason(self, tried: tuple[Counter[str], list[str]]) -> None:
        assert [fault for fault in tried[1] if fault.endswith(")")] == []

    def test_table_covers_every_command(self, tried: tuple[Counter[str], list[str]]) -> None:
        assert {"train", "generate", "interactive", "preprocess", "score", "average", "resize"} <= set(COMMANDS)
        assert tried[0]["refused"] > 5000


def test_every_key_has_help() -> None:
    texts = {(owner.__name__, name): help_of(owner, name) for _, _, _, owner, name in rows()}
    assert [field for field, text in texts.items() if not text.endswith(".")] == []


PLAUSIBLE = {
    "train": ["task.data=no-such-data", "max_updates=1", "save_dir=runs"],
    "generate": ["checkpoint=no-such-model", "input=no-such-input", "output=out.txt"],
    "preprocess": ["source_lang=en", "target_lang=de", "train=no-such-text", "destdir=data-bin"],
    "score": ["hypothesis=no-such-file", "reference=no-such-file"],
    "average": ["checkpoint=no-such-run", "output=mean.safetensors"],
    "resize": ["checkpoint=no-such-model", "max_length=9", "output=long.safetensors"],
    "eval_lm": ["checkpoint=no-such-model", "output=scores.json"],
    "interactive": ["checkpoint=no-such-model"],
    "classify": ["checkpoint=no-such-model", "input=no-such-input", "output=out.txt"],
    "evaluate": ["checkpoint=no-such-model", "data=no-such-data", "confusion=confusion.png"],
}
"""Valid arguments for each command, with inputs that do not exist."""

NONSENSE = [
    f"seed={HUGE}",
    "threads=-1",
    "device=tpu",
    "no.such=1",
    "--some-option",
    "checkpoint=",
    "batch.max_tokens=nan",
    "",
]


@pytest.mark.parametrize("command", PLAUSIBLE)
def test_command_that_fails_leaves_no_file(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(f"seqtk.cli.{command}").main
    monkeypatch.chdir(tmp_path)
    for argument in NONSENSE:
        with pytest.raises(SystemExit) as caught:
            main([*PLAUSIBLE[command], *([argument] if argument else [])])
        output = capsys.readouterr()
        assert caught.value.code == 2, argument
        assert 1 <= len(output.err.splitlines()) <= 3, output.err
        assert output.out == ""
        assert sorted(path.name for path in tmp_path.rglob("*")) == [], argument


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "generate", "preprocess", "score"])
def test_invalid_argument_ends_the_process_with_code_2(command: str, tmp_path: Path) -> None:
    arguments = [*PLAUSIBLE[command], f"workers={HUGE}" if command != "train" else f"seed={HUGE}"]
    done = subprocess.run(
        [sys.executable, "-m", f"seqtk.cli.{command}", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert 1 <= len(done.stderr.splitlines()) <= 3
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":
    totals, faults = table()
    print(*faults, sep="\n")
    print(*(f"{count:7,} {what}" for what, count in totals.most_common()), f"{totals.total():7,} tried", sep="\n")
