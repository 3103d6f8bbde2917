"""Whether a run's settings are those of the checkpoint that it goes on from, and which may be others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from seqtk.config import schema
from seqtk.training.config import TrainConfig
from seqtk.utils.errors import UserError

SAME = ("seed", "task", "model", "batch")
"""What makes a run this one; and the kind of its optimizer, whose tensors a checkpoint holds."""
MOST_TOLD = 5


@dataclass(frozen=True)
class Difference:
    """A key with another value than it had."""

    key: str
    then: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}={_written(self.now)} (was {_written(self.then)})"


def compare(then: TrainConfig, now: TrainConfig, *, source: str) -> list[Difference]:
    """What is set otherwise now than in the checkpoint `source`, and may be. Raises UserError for what may not."""
    trees = schema.to_dict(then), schema.to_dict(now)
    for tree in trees:  # where a run and its corpus lie, and who made that, is not what they are
        del tree["save_dir"], tree["user_dir"], tree["task"]["data"], tree["task"]["made_by"]
    found = list(_differences(*trees, ""))
    refused = [each for each in found if each.key.split(".")[0].split("[")[0] in SAME or each.key == "optimizer"]
    if refused:
        first, others = refused[0], [each.key for each in refused[1:]]
        raise UserError(
            f"{source} is of a run with another {first.key}: {first.then!r} then, {first.now!r} now.",
            *([f"Also other: {listed(others)}."] if others else []),
            f"Give the same {'settings' if others else first.key} to go on, or another save_dir to start anew.",
        )
    return found


def listed(names: Sequence[object]) -> str:
    """Names in a row; of many, the first and how many more."""
    few = names if len(names) <= MOST_TOLD else [*names[: MOST_TOLD - 1], f"{len(names) - MOST_TOLD + 1} more"]
    return ", ".join(map(str, few))


def _differences(then: Any, now: Any, key: str) -> Iterator[Difference]:
    """Each key that has another value, with both; of a slot that is filled otherwise, the names of both kinds."""
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for place, pair in enumerate(zip(then, now, strict=True)):
            yield from _differences(*pair, key if len(now) == 1 else f"{key}[{place}]")
    elif isinstance(then, dict) and isinstance(now, dict) and then.get("kind") == now.get("kind"):
        for name in {**then, **now}:
            yield from _differences(then.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif then != now:
        yield Difference(key, _short(then), _short(now))


def _short(value: Any) -> Any:
    """A value in few words: of what fills a slot, its kind."""
    if isinstance(value, list):
        return [_short(item) for item in value]
    return value["kind"] if isinstance(value, dict) and "kind" in value else value


def _written(value: Any) -> str:
    """A value as the command line has it."""
    return (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else str(value)
    )
