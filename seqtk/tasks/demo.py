"""The translation task whose corpus makes itself: English to German sentences of a synchronous grammar."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqtk.corpora.demo import write_corpus
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.tasks.base import tasks
from seqtk.tasks.translation import TranslationConfig, TranslationTask
from seqtk.utils.errors import UserError

RECORD = "demo.json"
"""In the data-bin directory: what it was made with."""


@dataclass(frozen=True)
class DemoConfig(TranslationConfig):
    """How much of the grammar's language is drawn; `data` is where it goes if it is not there yet."""

    data: str = "data-bin/demo"  # the data-bin directory; the text it is made from lies in its subdirectory text
    pairs: int = 20000  # sentence pairs to train on
    vocab_size: int = 2500  # joint SentencePiece pieces
    corpus_seed: int = 1  # another one makes other sentences


@tasks.register("demo_translation", DemoConfig)
class DemoTask(TranslationTask):
    """Translation of the demo language."""

    @classmethod
    def prepare(cls, config: Any) -> None:
        destination = Path(config.data)
        settings = {key: getattr(config, key) for key in ("pairs", "vocab_size", "corpus_seed")}
        if destination.is_dir():
            _check_made_with(destination / RECORD, settings)
            return
        unfinished = destination.with_name(f"{destination.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        text = unfinished / "text"
        write_corpus(text, train=config.pairs, seed=config.corpus_seed)
        preprocess(
            PreprocessConfig(
                source_lang="en",
                target_lang="de",
                train=str(text / "train"),
                valid=(str(text / "valid"),),
                test=(str(text / "test"),),
                destdir=str(unfinished),
                vocab_size=config.vocab_size,
                character_coverage=1.0,
                workers=1,
            )
        )
        (unfinished / RECORD).write_text(json.dumps(settings))
        unfinished.rename(destination)


def _check_made_with(record: Path, settings: dict[str, int]) -> None:
    """Raises UserError if the corpus was made with other settings; one without a record was not made by this task."""
    if not record.is_file():
        return
    made_with = json.loads(record.read_text())
    for key, value in settings.items():
        if made_with.get(key) != value:
            raise UserError(
                f"{record.parent} was made with task.{key}={made_with.get(key)}, not {value}.",
                "Set task.data to another folder, where a new corpus is made, or remove this one.",
            )
