"""What tasks over text share: the corpus that a config names, and a tokenizer as text in a checkpoint."""

import base64
from collections.abc import Mapping
from pathlib import Path

from seqtk.data.databin import DataBin
from seqtk.data.tokenizer import Tokenizer
from seqtk.tasks.base import Assets, TaskConfig
from seqtk.utils.errors import UserError


def open_data(config: TaskConfig, directory: str | None = None) -> DataBin:
    """The corpus that `config` names, or one `directory` of it. If it is missing, the error says what makes it."""
    if not config.data:
        raise UserError("task.data is not set.", "It names the data-bin directory to train on.")
    directory = directory or config.data
    check_made(config, directory)
    languages = {
        key: getattr(config, key) for key in ("source_lang", "target_lang") if getattr(config, key, None) is not None
    }
    return DataBin(directory, **languages)


def check_made(config: TaskConfig, directory: str) -> None:
    """Raises UserError, with the command to run, if `directory` is the corpus that `config` names and is missing."""
    own = directory in (config.data, *config.data.split(","))
    if own and config.made_by and not any(Path(directory).glob("dict*.txt")):
        raise UserError(f"The corpus {directory} is not there.", "This command makes it:", config.made_by)


def tokenizer_assets(tokenizer: Tokenizer, side: str) -> Assets:
    """What `tokenizer_from` makes the tokenizer of, under names that begin with `side`."""
    if tokenizer.model_bytes is not None:
        return {f"{side}.sentencepiece": base64.b64encode(tokenizer.model_bytes).decode("ascii")}
    return {} if tokenizer.separator is None else {f"{side}.separator": tokenizer.separator}


def tokenizer_from(assets: Mapping[str, str], side: str) -> Tokenizer:
    """The tokenizer that a checkpoint holds."""
    model = assets.get(f"{side}.sentencepiece")
    if model is not None:
        return Tokenizer.from_model(base64.b64decode(model))
    return Tokenizer.plain(assets.get(f"{side}.separator"))
