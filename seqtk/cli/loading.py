"""What every command that uses a trained model takes: which one, and the machine it runs on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from seqtk.utils.errors import UserError

if TYPE_CHECKING:
    import torch

    from seqtk.checkpoint.model_file import LoadedModel
    from seqtk.data.databin import DataBin
    from seqtk.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class LoadConfig:
    """A model, or an ensemble, and where it runs."""

    checkpoint: str = ""  # an exported file, a checkpoint's folder or a save_dir; several, with commas: an ensemble
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one
    precision: Literal["fp32", "bf16"] = "fp32"  # of products; scores are float32 in any case
    threads: int = 0  # CPU threads; 0: torch's choice. One is best where other work shares the machine
    user_dir: str | None = None  # a package or module of your own layers and tasks, imported first


def check_loading(config: LoadConfig) -> None:
    """Raises UserError for what is wrong before anything is loaded."""
    if not config.checkpoint:
        raise UserError("checkpoint is not set.", "It is an exported file, a checkpoint's folder, or a save_dir.")
    if config.threads < 0:
        raise UserError(f"threads={config.threads} cannot be negative.")


def load_models(config: LoadConfig) -> "tuple[list[LoadedModel], torch.device]":
    """The models that `config` names, in evaluation mode, and the device they are on."""
    check_loading(config)
    import torch

    from seqtk.checkpoint import model_file

    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch finds no GPU.", "Set device=cpu.")
    if config.threads:
        torch.set_num_threads(config.threads)
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    paths = split_paths(config.checkpoint)
    return [model_file.load(path, device=device) for path in paths], device


def split_paths(value: str) -> list[str]:
    """The paths in a value that lists them with commas; a path that exists as it stands is one, commas and all."""
    return [value] if Path(value).exists() else value.split(",")


def check_output(path: Path) -> None:
    """Raises UserError, before any work, for an output that cannot be a file."""
    if path.is_dir():
        raise UserError(f"output={path} is a folder.", "Set output= to the file to write.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"output={path} cannot be written: there is no folder {path.parent}.")


def check_ensemble(config: LoadConfig, vocabularies: "Sequence[Sequence[Vocabulary]]") -> None:
    """Raises UserError unless every model has the vocabularies of the first."""
    paths = split_paths(config.checkpoint)
    for path, own in zip(paths, vocabularies, strict=True):
        if own != vocabularies[0]:
            raise UserError(f"{path} and {paths[0]} have different vocabularies: they make no ensemble.")


def check_dictionary(data: "DataBin", lang: str | None, own: "Vocabulary") -> None:
    """Raises UserError unless the corpus has the model's dictionary."""
    of = f" of '{lang}'" if lang else ""
    if data.vocabulary(lang) != own:
        raise UserError(
            f"The dictionary{of} in {data.directory} is not the model's.",
            "Take the text itself with input=FILE, or preprocess it with the model's dictionary.",
        )
