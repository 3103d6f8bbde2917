"""The pipeline of models that classify texts or pairs of texts.

B batch, C classes, M models.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seqtk.data.batch import Batch
from seqtk.data.plan import BatchingConfig, ordered_batches
from seqtk.generation.length_limits import length_limit
from seqtk.generation.scoring import check_not_nan
from seqtk.pipelines.base import DECODING_BATCH, Pipeline
from seqtk.tasks.classification import ClassificationTask, Ids
from seqtk.utils.errors import UserError

Text = str | tuple[str, str]
"""One text or, for a matching model, a pair of texts."""


@dataclass(frozen=True)
class Classification:
    """The predicted class of a text."""

    label: str
    probabilities: dict[str, float]
    """The probability of each class, in the order of the classes."""
    truncated: bool = False
    """True if the text was truncated to the model's maximum length."""


class ClassificationPipeline(Pipeline):
    """A classifier, or an ensemble of classifiers, which averages their probabilities."""

    task: ClassificationTask

    def classify(self, texts: Sequence[Text], *, truncate: bool | None = None) -> list[str]:
        """Returns the class of each text.

        Args:
            texts: One string for each example; for a matching model, a pair of strings.
            truncate: True to truncate texts that are too long at the end; False to raise an error. None: as in
                training.

        Raises:
            UserError: If a text is too long, or a probability is NaN.
            TypeError: If `texts` is not a list of strings, or for a matching model, of pairs of strings.
        """
        return [result.label for result in self._classify(texts, truncate)]

    def probabilities(self, texts: Sequence[Text], *, truncate: bool | None = None) -> list[dict[str, float]]:
        """Returns, for each text, name of a class → probability. Arguments and errors: see `classify`."""
        return [result.probabilities for result in self._classify(texts, truncate)]

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of their indices."""
        return list(self.task.classes)

    def predict(
        self,
        texts: Iterable[Text],
        *,
        truncate: bool | None = None,
        batching: BatchingConfig = DECODING_BATCH,
        window: int = 1024,
        noun: str = "Text",
        first: int = 1,
    ) -> Iterator[Classification]:
        """Yields the classification of each text, in input order.

        Args:
            texts: The texts, read lazily.
            truncate: See `classify`.
            batching: The maximum size of a batch.
            window: The number of texts that are read at a time, to be batched by length.
            noun: The noun for a text in errors, such as "Line". The number of the text follows it.
            first: The number of the first text in errors.
        """
        truncate = self.task.config.truncate if truncate is None else truncate
        limit = length_limit(self.models, "source")
        numbered = enumerate(texts, first)
        while group := list(itertools.islice(numbered, window)):
            rows, truncated = [], []
            for number, text in group:
                ids = self.task.encode(*((text,) if isinstance(text, str) else text))
                self.task.check_image(ids, f"{noun} {number:,}")
                longest = max(map(len, ids))
                truncated.append(limit is not None and longest > limit)
                if truncated[-1] and not truncate:
                    raise UserError(
                        f"{noun} {number:,} has {longest:,} tokens, more than the model's limit of {limit:,}.",
                        "Shorten it, or set truncate=true to truncate such texts at the end.",
                    )
                rows.append(tuple(side[:limit] for side in ids))
            for log_probs, is_truncated in zip(self._log_probs(rows, batching), truncated, strict=True):
                probabilities = dict(zip(self.task.classes, map(math.exp, log_probs), strict=True))
                yield Classification(max(probabilities, key=probabilities.__getitem__), probabilities, is_truncated)

    def _classify(self, texts: Sequence[Text], truncate: bool | None) -> Iterator[Classification]:
        expected = "pairs of strings" if self.task.pairs else "strings"
        if isinstance(texts, str):
            raise TypeError(f"texts must be a list of {expected}, not one string")
        texts = list(texts)  # it may be an iterator
        for text in texts:
            is_pair = isinstance(text, tuple) and len(text) == 2 and all(isinstance(side, str) for side in text)
            if not (is_pair if self.task.pairs else isinstance(text, str)):
                raise TypeError(f"texts must be a list of {expected}, not of {type(text).__name__}")
        return self.predict(texts, truncate=truncate)

    def _log_probs(self, rows: Sequence[tuple[Ids, ...]], batching: BatchingConfig) -> list[list[float]]:
        """Returns the log-probabilities of the classes for each row."""
        sizes_ND = np.array([[len(side) for side in row] for row in rows])
        log_probs_by_row: list[list[float]] = [[]] * len(rows)
        for indices in ordered_batches(sizes_ND, batching):
            batch = self.task.collate([(index, rows[index], 0) for index in indices.tolist()])
            for index, log_probs in zip(indices.tolist(), self._run(batch.to(self.device)).tolist(), strict=True):
                log_probs_by_row[index] = log_probs
        return log_probs_by_row

    @torch.no_grad()
    def _run(self, batch: Batch) -> Tensor:
        """Returns log_prob_BC, the logarithm of the mean of the models' probabilities."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            logits = [model.head.logits(model(batch)[0], pad_BT=batch.pad) for model in self.models]  # type: ignore[operator]
        log_prob_BC = torch.stack(logits).log_softmax(-1).logsumexp(0) - math.log(len(self.models))
        check_not_nan(log_prob_BC)
        return log_prob_BC
