"""Settings of all commands that load a trained model: the model, the device and the precision."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from seqtk.config.fields import setting
from seqtk.utils.errors import UserError

if TYPE_CHECKING:
    from seqtk.pipelines import Pipeline


@dataclass(frozen=True)
class LoadConfig:
    """Settings of a command that loads a model: the model, the device and the precision."""

    checkpoint: str = setting(
        "",
        help="A model file, the folder of one checkpoint, or the folder of a run. "
        "Several, separated by commas, are an ensemble.",
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", help="The device. auto: a GPU if there is one.")
    precision: Literal["fp32", "bf16"] = setting(
        "fp32", help="The precision of matrix products. Scores are always float32."
    )
    threads: int = setting(
        0,
        at_least=0,
        at_most=1024,
        help="Number of CPU threads. 0: torch's default. Use 1 if other programs use the machine.",
    )
    user_dir: str | None = setting(None, help="Package or module with plug-ins, which is imported first.")


def check_checkpoint(config: LoadConfig) -> None:
    """Raises UserError if no checkpoint is set. Called before torch is imported."""
    if not config.checkpoint:
        raise UserError(
            "checkpoint= is not set.", "Set it to a model file, the folder of one checkpoint, or the folder of a run."
        )


def load_pipeline(config: LoadConfig) -> "Pipeline":
    """Loads the model, or the ensemble, in `config.checkpoint`."""
    import torch

    from seqtk.pipelines import load

    if config.threads:
        torch.set_num_threads(config.threads)
    return load(split_paths(config.checkpoint), device=config.device, precision=config.precision)


def split_paths(value: str) -> list[str]:
    """Splits a list of paths at commas. A comma belongs to a path if a file of that name exists."""
    pieces, paths = value.split(","), []
    while pieces:
        sizes = range(len(pieces), 0, -1)
        size = next((size for size in sizes if size == 1 or Path(",".join(pieces[:size])).exists()), 1)
        paths.append(",".join(pieces[:size]))
        pieces = pieces[size:]
    return paths


def check_split(split: str | None, *, input: str | None) -> None:
    """Raises UserError if both a split and a text file are set."""
    if input is not None and split is not None:
        raise UserError(f"split={split} and input= are both set.", "Set only one of them: a split, or a text file.")


def check_output(path: Path, *, output: str = "output", **inputs: str | None) -> None:
    """Raises UserError if `path` cannot be written as a file, or is one of `inputs` (key=path).

    `output` is the key of `path`, for the error.
    """
    check_not_input(path, output=output, **inputs)
    if path.is_dir():
        raise UserError(f"{output}={path} is a folder.", f"Set {output}= to the file to write.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{output}={path} cannot be written: there is no folder {path.parent}.")


def check_not_input(path: Path, *, output: str = "output", **inputs: str | None) -> None:
    """Raises UserError if `path` is one of the files in `inputs` (key=path), which it would overwrite."""
    if not path.is_file():
        return
    for key, value in inputs.items():
        if any(Path(name).is_file() and path.samefile(name) for name in split_paths(value or "")):
            raise UserError(f"{output}={path} would overwrite {key}={value}.", f"Set a different {output}=.")
