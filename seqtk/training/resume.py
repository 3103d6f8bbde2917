"""Compares the settings of a checkpoint with the settings of the run that resumes from it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from seqtk.checkpoint.model_file import ModelFile
from seqtk.config import legacy, schema
from seqtk.optim import schedules
from seqtk.training.config import TrainConfig
from seqtk.utils.errors import UserError

RESUME_INVARIANT = ("seed", "task", "model", "batch")
"""Sections whose settings must not change when a run is resumed. The kind of the optimizer must not change either."""
FREE = (
    "save_dir",
    "user_dir",
    "task.made_by",
    "batch.workers",
    "model.recompute_blocks",
    "profile",
    "checkpoint.asynchronous",
)
"""Settings that do not affect the result."""
MOVABLE = re.compile(r"task\.data|task\.mix(\[\d+\])?\.data|batch\.(?!streams$).*")
"""Settings in these sections that may change: the location of the data, because the data are compared, and batch
settings, because the rest of the epoch can be batched differently."""
MAX_LISTED = 5


@dataclass(frozen=True)
class Difference:
    """A setting whose value has changed."""

    key: str
    saved: Any
    current: Any
    is_kind: bool = False
    """True if the kind of a component has changed, such as the kind of the optimizer. Then the values are the kinds."""

    def __str__(self) -> str:
        return f"{self.now} (was {_as_text(self.saved)})"

    @property
    def now(self) -> str:
        """The current setting in the form key=value."""
        return f"{self.key}={_as_text(self.current)}"

    @property
    def was(self) -> str:
        """The saved setting in the form key=value."""
        return f"{self.key}={_as_text(self.saved)}"

    @property
    def section(self) -> str:
        """The first part of the key."""
        return self.key.split(".")[0].split("[")[0]

    @property
    def is_refused(self) -> bool:
        if MOVABLE.fullmatch(self.key):
            return False
        return self.section in RESUME_INVARIANT or (self.section == "optimizer" and self.is_kind)


def saved_config(contents: ModelFile, *, source: str) -> TrainConfig:
    """Reads the config of a run from a model file of the run.

    Raises:
        UserError: If this version of seqtk does not have a key of the config. The error explains how to keep the model.
    """
    try:
        return legacy.from_dict(TrainConfig, contents.config)
    except UserError as error:
        version = contents.info.get("version")
        raise UserError(
            f"{source} was written by seqtk {version}, and cannot be resumed: {str(error).splitlines()[0]}",
            f"To write its model to a model file: seqtk-average checkpoint={source} last=1.",
        ) from error


def differences(saved: TrainConfig, current: TrainConfig) -> list[Difference]:
    """Returns the settings that differ, except those that do not affect the result."""
    found = _differences(schema.to_dict(saved), schema.to_dict(current), "")
    return [difference for difference in found if difference.key not in FREE]


def config_diff(saved: TrainConfig, current: TrainConfig, *, source: str) -> list[Difference]:
    """Returns the settings that differ from the settings of the checkpoint `source`.

    Raises:
        UserError: If a setting differs that must not change.
    """
    found = differences(saved, current)
    refused = [difference for difference in found if difference.is_refused]
    if refused:
        first, others = refused[0], [difference.key for difference in refused[1:]]
        raise UserError(
            f"{source} was trained with {first.was}, but the current value is {_as_text(first.current)}.",
            *([f"Also different: {format_list(others)}."] if others else []),
            f"To resume, set the same {'values' if others else 'value'}. To start a new run, set a different save_dir.",
        )
    return found


def rate_change(saved: TrainConfig, current: TrainConfig, *, update: int) -> str:
    """Returns a line about the learning rate of the next update, or "" if it is the same in both configs."""

    def rate(config: TrainConfig) -> float:
        limit = config.max_updates or None
        return schedules.build(config.schedule, lr=config.optimizer.lr, max_steps=limit).lr(update)

    before, now = rate(saved), rate(current)
    if before == now:
        return ""
    stretched = ""
    if saved.schedule == current.schedule and saved.optimizer.lr == current.optimizer.lr:
        stretched = f", because the schedule now spans max_updates={current.max_updates}"
    return f"The learning rate of update {update + 1:,} is {now:.3g} (was {before:.3g}){stretched}."


def format_list(names: Sequence[object]) -> str:
    """Joins names with commas. Shortens a long list: its last names become `3 more`."""
    few = names if len(names) <= MAX_LISTED else [*names[: MAX_LISTED - 1], f"{len(names) - MAX_LISTED + 1} more"]
    return ", ".join(map(str, few))


def _differences(saved: Any, current: Any, key: str) -> Iterator[Difference]:
    """Yields the keys whose values differ. If the kind of a component differs, the values are the kinds."""
    if isinstance(saved, list) and isinstance(current, list) and len(saved) == len(current):
        for index, pair in enumerate(zip(saved, current, strict=True)):
            yield from _differences(*pair, key if len(current) == 1 else f"{key}[{index}]")
    elif isinstance(saved, dict) and isinstance(current, dict) and saved.get("kind") == current.get("kind"):
        for name in {**saved, **current}:
            yield from _differences(saved.get(name), current.get(name), f"{key}.{name}" if key else name)
    elif saved != current:
        yield Difference(
            key, _kind(saved), _kind(current), is_kind=isinstance(saved, dict) or isinstance(current, dict)
        )


def _kind(value: Any) -> Any:
    """Returns the kind of a component from its config. Returns other values unchanged."""
    if isinstance(value, list):
        return [_kind(item) for item in value]
    return value["kind"] if isinstance(value, dict) and "kind" in value else value


def _as_text(value: Any) -> str:
    """Formats a value as on the command line."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_as_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_as_text(item)}' for key, item in value.items() if item is not None)}}}"
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
