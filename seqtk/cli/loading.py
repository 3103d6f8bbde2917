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

    from seqtk.checkpoint.model_file import load_model

    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch finds no GPU.", "Set device=cpu.")
    if config.threads:
        torch.set_num_threads(config.threads)
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    paths = config.checkpoint.split(",")
    for path in paths:
        _refuse_pytorch(Path(path))
    return [load_model(path, device=device) for path in paths], device


def _refuse_pytorch(path: Path) -> None:
    """Raises UserError, with what reads those of fairseq's, if `path` is a file that PyTorch wrote."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) in PYTORCH:
                raise UserError(
                    f"{path} is a checkpoint in PyTorch's format, not a model of seqtk's.",
                    "If fairseq wrote it, this makes it one:",
                    f"seqtk-import-fairseq {path} data=DATA-BIN output=model.safetensors",
                )


PYTORCH = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")
"""How the files begin that torch.save writes: an archive, and a pickled number in the old format."""


def check_ensemble(config: LoadConfig, vocabularies: "Sequence[Sequence[Vocabulary]]") -> None:
    """Raises UserError unless every model has the vocabularies of the first."""
    paths = config.checkpoint.split(",")
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
