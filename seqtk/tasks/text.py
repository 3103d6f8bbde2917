"""What tasks over text share: the source of their data, and tokenizers as text in a model file."""

import base64
from collections.abc import Mapping
from typing import Any

from seqtk.data.sources import Source, sources
from seqtk.data.tokenizer import Tokenizer
from seqtk.tasks.base import Assets, Task


class TextTask(Task):
    """A task whose examples are text. All of its data comes from its source (`task.source`)."""

    _source: Source | None = None

    def connect(self, source: Source) -> None:
        """Makes a newly opened source encode with this task's vocabularies, if it already has them.

        Raises:
            UserError: If the source does not suit the task or its vocabularies.
        """

    def open(self, data: str | Source | None = None) -> Source:
        """Returns the source of the data.

        Args:
            data: Another place for the source to read from now on, or another source.

        Raises:
            UserError: If it cannot be read, or does not suit the task or its vocabularies.
        """
        if data is not None or self._source is None:
            source = data if isinstance(data, Source) else self._open(data or self.config.data)
            self.connect(source)
            self._source = source
        return self._source

    def _open(self, data: str) -> Source:
        languages: dict[str, Any] = {
            key: getattr(self, key, None) or getattr(self.config, key, None) for key in ("source_lang", "target_lang")
        }
        made_by = self.config.made_by if data == self.config.data else ""
        return sources.build(self.config.source, data=data, made_by=made_by, **languages)


def tokenizer_assets(tokenizer: Tokenizer, side: str) -> Assets:
    """What `tokenizer_from` builds the tokenizer from, under names that begin with `side`."""
    if tokenizer.model_bytes is not None:
        return {f"{side}.sentencepiece": base64.b64encode(tokenizer.model_bytes).decode("ascii")}
    return {} if tokenizer.separator is None else {f"{side}.separator": tokenizer.separator}


def tokenizer_from(assets: Mapping[str, str], side: str) -> Tokenizer:
    """Returns the tokenizer in a model file's assets."""
    model = assets.get(f"{side}.sentencepiece")
    if model is not None:
        return Tokenizer.from_model(base64.b64decode(model))
    return Tokenizer.plain(assets.get(f"{side}.separator"))
