"""The translation task whose corpus makes itself: English to German sentences of a synchronous grammar."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqtk.data.grammar import write_corpus
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.tasks.base import tasks
from seqtk.tasks.translation import TranslationConfig, TranslationTask


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
        if destination.is_dir():
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
        unfinished.rename(destination)
