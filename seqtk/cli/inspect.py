"""seqtk-inspect: shows the contents of a model file or run, verifies them, and compares two models."""

import dataclasses
import os
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from seqtk.checkpoint.module_table import aligned, by_module
from seqtk.cli.command import command
from seqtk.config import schema
from seqtk.config.fields import setting, written
from seqtk.config.registry import slot_of
from seqtk.utils.errors import UserError, how_many

if TYPE_CHECKING:
    from seqtk.checkpoint.model_file import ModelFile
    from seqtk.training.config import TrainConfig


@dataclass(frozen=True)
class InspectConfig:
    """Settings of seqtk-inspect: the models or runs to show."""

    paths: tuple[str, ...] = setting(
        (), help="A model file, the folder of one checkpoint, or the folder of a run. Two models are compared."
    )
    user_dir: str | None = setting(None, help="Package or module with plug-ins, which is imported first.")


@command("seqtk-inspect", InspectConfig, first="paths")
def main(config: InspectConfig) -> None:
    """Show and verify a model or run, or compare two: seqtk-inspect PATH [PATH].

    Reads every file completely and verifies its checksums. If a file is damaged, the command exits with code 2.
    """
    if not 1 <= len(config.paths) <= 2:
        raise UserError(
            "paths= is not set." if not config.paths else f"paths= has {len(config.paths)} models.",
            "Set one model file or folder of a run, or two to compare them: seqtk-inspect PATH [PATH]",
        )
    from seqtk.checkpoint import model_file

    models = [model_file.read(path, key="paths") for path in config.paths]
    if len(models) == 2:
        _print(_comparison(*models))
        for path, model in zip(config.paths, models, strict=True):
            print(f"{path}:")
            _print(_verified(path, model))
        return
    path = config.paths[0]
    _print(_contents(models[0], file=str(model_file.find(path))))
    _print(_verified(path, models[0]))


def _print(lines: Iterator[str]) -> None:
    for line in lines:
        print(line)


def _contents(model: "ModelFile", *, file: str) -> Iterator[str]:
    """Yields lines with the origin of the model, its vocabularies, its parameters by module, and its settings."""
    count = sum(tensor.numel() for tensor in model.tensors.values())
    types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in model.tensors.values()})
    yield (
        f"{file}: task={_kind(model, 'task')} model={_kind(model, 'model')}, {count:,} parameters in "
        f"{how_many(len(model.tensors), 'tensor')} of {', '.join(types)}, {os.path.getsize(file) / 2**20:,.1f} MiB"
    )
    yield f"Origin: {', '.join(f'{name} {_shown(value)}' for name, value in model.info.items())}"
    yield from (f"{name}: {text}" for name, text in _vocabularies(model).items())
    yield "Parameters by module:"
    rows = [
        (module, how_many(len(names), "tensor"), f"{sum(model.tensors[name].numel() for name in names):,}")
        for module, names in by_module(model.tensors).items()
    ]
    yield from aligned(rows, left=1)
    config = _config(model)
    if config is None:
        yield "Settings: not shown, because this version of seqtk does not know all of them."
        return
    yield "Settings other than the defaults:"
    text = " ".join(_not_default(config))
    yield from textwrap.wrap(text, 118, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _verified(path: str, model: "ModelFile") -> Iterator[str]:
    """Reads all checkpoints and models of a run, builds the model, and yields a line for each checkpoint and model.

    Raises UserError if a file is damaged.
    """
    from seqtk.checkpoint import model_file, trained_model
    from seqtk.checkpoint.model_file import first_bad
    from seqtk.checkpoint.restore import load_checkpoint

    damaged = []
    places = [*model_file.checkpoint_folders(Path(path)), *sorted(Path(path).glob("*.safetensors"))]
    if (Path(path) / "state.json").is_file():
        places = [Path(path)]
    if places:
        yield "Checkpoints and models:"
    for place in places if Path(path).is_dir() else ():
        try:
            if place.is_dir():
                state = load_checkpoint(place).state
                about = f"update {state.update:,}, epoch {state.position.epoch}, {state.seconds / 3600:.2f} hours"
                about += f", best {state.metric} {state.best:.4g}" if state.best is not None else ""
            else:
                about = ", ".join(f"{name} {_shown(value)}" for name, value in model_file.read(place).info.items())
        except UserError as error:
            damaged.append(place)
            about = " ".join(str(error).splitlines()[:2])
        yield f"  {place.name}: {about}"
    parts = trained_model.parts_of(model, source=path)
    built = trained_model.task_of(model, parts, source=path).model(parts.model)
    model_file.set_tensors(built, model.tensors, source=path)
    bad = first_bad(model.tensors)
    if bad is not None:
        raise UserError(f"{path}: the weight {bad} is not finite.", "The training diverged. Use an earlier checkpoint.")
    if damaged:
        raise UserError(
            f"{path} contains damaged checkpoints or models: {', '.join(item.name for item in damaged)}.",
            "Copy them again from an intact source, or remove them.",
        )
    yield "Verified: all files are complete, all checksums are correct, all weights are finite."


def _comparison(first: "ModelFile", second: "ModelFile") -> Iterator[str]:
    """Yields lines with the differences in origin, settings, vocabularies and tensors (by module)."""
    from seqtk.data.vocabulary import Vocabulary
    from seqtk.training.resume import differences

    names = dict.fromkeys([*first.info, *second.info])
    rows = [("", "first", "second")]
    rows += [(name, _shown(first.info.get(name)), _shown(second.info.get(name))) for name in names]
    configs = _config(first), _config(second)
    if configs[0] is not None and configs[1] is not None:
        changed = differences(configs[0], configs[1])
        rows += [(each.key, _shown(each.saved), _shown(each.current)) for each in changed]
    before, after = _vocabularies(first), _vocabularies(second)
    rows += [(name, before.get(name, "none"), after.get(name, "none")) for name in dict.fromkeys([*before, *after])]
    yield from aligned(rows, left=3)
    for name in sorted(first.assets.keys() & second.assets.keys()):
        if name.endswith(".dict") and first.assets[name] != second.assets[name]:
            one, two = (set(Vocabulary.from_text(each.assets[name]).tokens) for each in (first, second))
            common, own, others = len(one & two), len(one - two), len(two - one)
            yield f"{name}: {common:,} tokens in both models, {own:,} only in the first, {others:,} only in the second."
    tensors = [("tensors by module", "equal", "different", "only first", "only second", "change")]
    for module, members in by_module(dict.fromkeys([*first.tensors, *second.tensors])).items():
        tensors.append((module, *_changes(members, first, second)))
    yield from aligned(tensors, left=1)


def _changes(names: list[str], first: "ModelFile", second: "ModelFile") -> tuple[str, str, str, str, str]:
    """Compares the tensors `names` of two models.

    Returns, as text, how many are equal, different, only in the first model and only in the second model, and
    ‖second - first‖ / ‖first‖ over the tensors that have the same shape in both models.
    """
    import torch

    pairs = [
        (first.tensors[name], second.tensors[name])
        for name in names
        if name in first.tensors and name in second.tensors
    ]
    same_shape = [(one.double(), two.double()) for one, two in pairs if one.shape == two.shape]
    equal = sum(torch.equal(one, two) for one, two in same_shape)
    change = sum(float((two - one).square().sum()) for one, two in same_shape) ** 0.5
    size = sum(float(one.square().sum()) for one, _ in same_shape) ** 0.5
    only_first = sum(name not in second.tensors for name in names)
    only_second = sum(name not in first.tensors for name in names)
    relative = f"{change / size:.2%}" if size else "-"
    return str(equal), str(len(pairs) - equal), str(only_first), str(only_second), relative


def _vocabularies(model: "ModelFile") -> dict[str, str]:
    """Returns name → short description, for each dictionary, tokenizer and list of classes."""
    from seqtk.data.vocabulary import Vocabulary

    found = {}
    for name, text in model.assets.items():
        part = name.rpartition(".")[2]
        if part == "dict":
            found[name] = how_many(len(Vocabulary.from_text(text)), "token")
        elif part == "sentencepiece":
            found[name] = f"a model of {len(text) * 3 // 4 / 1024:,.0f} KiB"
        elif part == "classes":
            found[name] = how_many(len(text.split("\n")), "class")
        else:
            found[name] = _shown(text)
    return found


def _config(model: "ModelFile") -> "TrainConfig | None":
    """Returns the settings of the run, or None if this version of seqtk does not know one of them."""
    from seqtk.training.resume import saved_config

    try:
        return saved_config(model, source="")
    except UserError:
        return None


def _not_default(config: object, prefix: str = "") -> Iterator[str]:
    default = type(config)()
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        key, value, usual = f"{prefix}{field.name}", getattr(config, field.name), getattr(default, field.name)
        inside = value[0] if isinstance(value, tuple) and len(value) == 1 else value
        if dataclasses.is_dataclass(inside):
            before = usual[0] if isinstance(usual, tuple) and usual else usual
            registry = slot_of(inside)
            if registry is not None and type(inside) is not type(before):
                yield f"{key}={registry.name_of(type(inside))}"
            yield from _not_default(inside, f"{key}.")
        elif value != usual:
            yield f"{key}={_shown(value)}"


def _kind(model: "ModelFile", part: str) -> str:
    return str(model.config.get(part, {}).get("kind"))


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else written(schema.to_dict(value))


if __name__ == "__main__":
    main()
