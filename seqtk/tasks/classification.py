"""Classification: the model predicts a class for each text, or for each pair of texts.

B batch, N examples, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seqtk.attention import State
from seqtk.config.fields import probability, setting
from seqtk.criterions.base import Stats
from seqtk.data.batch import Batch, Dataset, check_ids, pad_rows
from seqtk.data.encoder_batches import ClassBatch, PairBatch
from seqtk.data.labelled import PIXELS
from seqtk.data.mixing import examples_per_epoch
from seqtk.data.plan import IndexArray
from seqtk.data.sources import Items, Source
from seqtk.data.vocabulary import SPECIALS, UNK, Vocabulary
from seqtk.generation.search import SearchConfig
from seqtk.metrics import ClassOutput, Output, Predictions, Score
from seqtk.metrics.base import PREDICTIONS
from seqtk.metrics.classification import ClassFigures, per_class
from seqtk.models import Model, ModelConfig, build_model
from seqtk.models.base import Side
from seqtk.modules.head import HeadLosses
from seqtk.modules.pooled_head import Combination, PairHead, Pool, PooledHead
from seqtk.tasks.base import Assets, TaskConfig, tasks
from seqtk.tasks.report import Report
from seqtk.tasks.text import TextTask, tokenizer_assets, tokenizer_from
from seqtk.utils.errors import UserError, how_many
from seqtk.utils.suggestions import nearest

Ids = npt.NDArray[np.int64]
MAX_CONFUSION_CLASSES = 20
"""The maximum number of classes for which the confusion matrix is printed."""


@dataclass(frozen=True)
class ClassificationConfig(TaskConfig):
    """Settings of text classification: the data, the head and the class weights."""

    pool: Pool = setting(
        "mean", help="How the features of a text are pooled. cls: the feature of a learned vector before the text."
    )
    head_dim: int | None = setting(
        None, at_least=1, help="Width of the hidden layer of the head. null: no hidden layer."
    )
    head_dropout: float = probability(0.0, help="Dropout of the pooled vector and the hidden layer.")
    eos: bool = setting(False, help="Append the token </s> to each text.")
    truncate: bool = setting(
        False, help="Truncate texts that exceed the model's maximum length. false: such texts are an error."
    )
    class_weights: Literal["balanced"] | tuple[float, ...] | None = setting(
        None,
        above=0,
        help="Weight of each class in the loss, in the order of classes.txt. balanced: inversely proportional to the "
        "frequency of the class. null: 1.",
    )


@dataclass(frozen=True)
class MatchingConfig(ClassificationConfig):
    """Settings of the classification of pairs of texts."""

    combine: Combination = setting(
        "full", help="Input of the head, from the vectors x and y of a pair. concat: x, y. full: x, y, x * y, x - y."
    )


class LabelledTexts:
    """The examples of a split. Example i is `(i, token ids of each text, class)`.

    Args:
        sides: The texts of the examples; for pairs, the first texts and the second texts.
        label_N: The class of each example.
        eos: True if texts end in EOS. An empty text always ends in EOS.
        limit: The length to which texts are truncated, or None if they are not truncated.
        lines: A function that returns the original texts (of pairs, the first texts), or None if they are not stored.
    """

    def __init__(
        self,
        sides: Sequence[Items],
        label_N: npt.NDArray[np.integer[Any]],
        *,
        eos: bool,
        limit: int | None,
        lines: Callable[[], list[str] | None] = lambda: None,
    ) -> None:
        self.sides, self.label_N, self.lines = tuple(sides), label_N, lines
        sizes_ND = np.stack([np.maximum(items.sizes - (not eos), 1) for items in sides], axis=1)
        self.truncated = 0 if limit is None else int((sizes_ND > limit).any(axis=1).sum())
        self.sizes_ND = sizes_ND if limit is None else np.minimum(sizes_ND, limit)

    def __len__(self) -> int:
        return len(self.label_N)

    def __getitem__(self, index: int) -> tuple[int, tuple[Ids, ...], int]:
        texts = tuple(items[index][:size] for items, size in zip(self.sides, self.sizes_ND[index], strict=True))
        return index, texts, int(self.label_N[index])


@dataclass(frozen=True)
class ClassReport(Report):
    """The result of `ClassificationTask.evaluate`."""

    classes: list[str]
    confusion_CC: npt.NDArray[np.int64]
    """The confusion matrix: rows are true classes, columns are predictions."""

    def per_class(self) -> list[ClassFigures]:
        """Returns precision, recall, F1 and the number of examples of each class."""
        return per_class(self.confusion_CC, self.classes)

    def to_dict(self) -> dict[str, Any]:
        figures = [asdict(figures) for figures in self.per_class()]
        return {**super().to_dict(), "per_class": figures, "confusion": self.confusion_CC.tolist()}

    def lines(self) -> list[str]:
        width = max(map(len, [*self.classes, "class"]))
        rows = [
            f"{each.name:{width}}  {each.precision:9.2f}  {each.recall:6.2f}  {each.f1:6.2f}  {each.examples:8,}"
            for each in self.per_class()
        ]
        heading = f"{'class':{width}}  precision  recall      f1  examples"
        return [*super().lines(), "", heading, *rows, *self._confusion_lines(width)]

    def _confusion_lines(self, width: int) -> list[str]:
        """Returns the confusion matrix as lines of text, or no lines if it is too wide for a terminal."""
        if len(self.classes) > MAX_CONFUSION_CLASSES:
            return []
        columns = [max(len(f"{count:,}") for count in column) for column in self.confusion_CC.T.tolist()]
        columns = [max(size, len(str(number))) for number, size in enumerate(columns)]
        numbers = "  ".join(f"{number:>{size}}" for number, size in enumerate(columns))
        rows = [
            f"{number:>3} {name:{width}}  "
            + "  ".join(f"{count:>{size},}" for count, size in zip(row, columns, strict=True))
            for number, (name, row) in enumerate(zip(self.classes, self.confusion_CC.tolist(), strict=True))
        ]
        return ["", "Confusion matrix (rows: classes, columns: predictions):", f"{'':{width + 4}}  {numbers}", *rows]


@tasks.register("classification", ClassificationConfig)
class ClassificationTask(TextTask):
    """Text classification: the model predicts a class for each text."""

    metrics = ("loss", "nll", "accuracy", "macro_f1", "ece")
    sides: ClassVar[tuple[Side, ...]] = ("source",)
    unit = "examples"
    _limit: int | None = None
    """The model's maximum length of a text. Set when the model is built."""

    def __init__(self, config: ClassificationConfig, *, assets: Mapping[str, str] | None = None) -> None:
        super().__init__(config)
        if assets is None:
            source = self.open()
            self.vocabulary = source.vocabulary(source.source_lang)
            self.tokenizer = source.tokenizer(source.source_lang)
            for lang in self._langs(source)[1:]:
                source.use(lang, self.vocabulary, self.tokenizer)
            self.classes = source.classes()
            self.pixels = self._pixels(source)
            self.class_weights = self._weights(source)
        else:
            self.vocabulary = Vocabulary.from_text(assets["text.dict"])
            self.tokenizer = tokenizer_from(assets, "text")
            self.classes = assets["classes"].split("\n")
            weights = assets.get("class.weights")
            self.class_weights = None if weights is None else [float(weight) for weight in weights.split()]
            self.pixels = int(assets["pixels"]) if "pixels" in assets else None

    def assets(self) -> Assets:
        weights = self.class_weights
        return {
            "text.dict": self.vocabulary.to_text(),
            "classes": "\n".join(self.classes),
            **tokenizer_assets(self.tokenizer, "text"),
            **({} if weights is None else {"class.weights": " ".join(map(repr, weights))}),
            **({} if self.pixels is None else {"pixels": str(self.pixels)}),
        }

    def connect(self, source: Source) -> None:
        if (source.target_lang is not None) != self.pairs:
            other = "classification" if self.pairs else "matching"
            raise UserError(
                f"{source.name} contains {'single texts, not pairs' if self.pairs else 'pairs of texts'}.",
                f"Set task={other} to use it.",
            )
        if hasattr(self, "classes"):
            for lang in self._langs(source):
                source.use(lang, self.vocabulary, self.tokenizer)
            unknown = [name for name in source.classes() if name not in self.classes]
            if unknown:
                name, place = source.first_of(unknown)
                raise UserError(
                    f"{place} has a class that the model does not have: '{name}'.",
                    nearest(name, self.classes),
                    "If only the names differ, map them by columns.classes=[VALUE:CLASS,...] of seqtk-preprocess or "
                    "seqtk-evaluate.",
                )

    def dataset(self, split: str) -> LabelledTexts:
        return self._examples(split)

    def training_set(self, epoch: int) -> LabelledTexts:
        return self._examples("train", epoch=epoch)

    def collate(self, examples: Sequence[Any]) -> ClassBatch:
        indices, texts, labels = zip(*examples, strict=True)
        if self.pixels is not None:
            for index, row in zip(indices, texts, strict=True):
                self.check_image(row, f"Example {index + 1:,}")
        longest = max(len(text) for row in texts for text in row)
        sides = [pad_rows(rows, length=longest) for rows in zip(*texts, strict=True)]
        for ids_BS in sides:
            check_ids(ids_BS, self.vocabulary, name="the dictionary")
        weights = self.class_weights
        weight = len(labels) if weights is None else sum(weights[label] for label in labels)
        padded = any(len(text) < longest for row in texts for text in row)
        batch = ClassBatch(torch.tensor(indices), weight, sides[0], torch.tensor(labels), padded)
        return PairBatch(**vars(batch), second_BS=sides[1]) if self.pairs else batch

    def model(self, config: ModelConfig) -> Model:
        settings = {
            "classes": len(self.classes),
            "pool": self.config.pool,
            "hidden_dim": self.config.head_dim,
            "dropout": self.config.head_dropout,
            "class_weights": self.class_weights,
            **({"combine": self.config.combine} if self.pairs else {}),
        }
        head = partial(PairHead if self.pairs else PooledHead, **settings)
        sizes: dict[str, Any] = {"vocabulary": len(self.vocabulary), "head": head}
        if getattr(config, "input", "tokens") == "values":
            sizes["values"] = self._token_values()
        model = build_model(config, PairBatch if self.pairs else ClassBatch, **sizes)
        self._limit = model.length_limit("source")
        return model

    def provides(self, split: str, *, stats: Sequence[str], targets: float, outputs: bool = True) -> set[str]:
        return super().provides(split, stats=stats, targets=targets, outputs=outputs) | {PREDICTIONS}

    def totals(
        self,
        step: Callable[[Batch, State], tuple[Stats, State]],
        dataset: Dataset,
        batches: Sequence[IndexArray],
        *,
        model: Model,
        search: SearchConfig | None,
        **settings: Any,
    ) -> tuple[Stats, float, list[Output]]:
        """See `Task.totals`. The outputs are computed from the logits of the loss, without a second forward pass."""
        last_logits: list[Tensor] = []
        results: list[tuple[Tensor, Tensor, Tensor]] = []

        def step_and_record(batch: Batch, state: State) -> tuple[Stats, State]:
            result = step(batch, state)
            results.append((batch.ids_B, batch.target, last_logits.pop().log_softmax(1)))
            return result

        def record_logits(head: Any, arguments: Any, losses: HeadLosses) -> None:
            assert losses.logits_BC is not None
            last_logits[:] = [losses.logits_BC]

        hook = model.head.register_forward_hook(record_logits)
        try:
            stats, targets, _ = super().totals(step_and_record, dataset, batches, model=model, search=None, **settings)
        finally:
            hook.remove()
        if not results:
            return stats, targets, []
        id_N, target_N, log_prob_NC = (torch.cat(parts).tolist() for parts in zip(*results, strict=True))
        lines = dataset.lines() if search is not None and isinstance(dataset, LabelledTexts) else None
        outputs: list[Output] = [
            ClassOutput(
                index=index,
                source="" if lines is None else lines[index],
                output=self.classes[max(range(len(log_probs)), key=log_probs.__getitem__)],
                references=(self.classes[target],),
                target=target,
                log_probs=tuple(log_probs),
            )
            for index, target, log_probs in zip(id_N, target_N, log_prob_NC, strict=True)
        ]
        return stats, targets, outputs

    def shortening(self, *, training: bool) -> str:
        return "task.truncate=true to truncate them" if training else "truncate=true"

    def report(
        self, scores: dict[str, Score], *, dataset: Dataset, targets: float, outputs: Sequence[Output]
    ) -> "ClassReport":
        counts = {"examples": len(dataset)}
        if dataset.truncated:
            counts["truncated_examples"] = dataset.truncated
        confusion_CC = Predictions([output for output in outputs if isinstance(output, ClassOutput)]).confusion()
        return ClassReport(scores, counts, list(outputs), classes=self.classes, confusion_CC=confusion_CC)

    def encode(self, *texts: str) -> tuple[Ids, ...]:
        """Returns the token ids of a text, or of both texts of a pair."""
        encoded = (self.vocabulary.encode(self.tokenizer.encode(text)) for text in texts)
        return tuple(ids if self.config.eos or len(ids) == 1 else ids[:-1] for ids in encoded)

    def check_image(self, row: Sequence[Ids], place: str) -> None:
        """Raises UserError if the model reads images, and `row` has a different size or a value that is not a pixel.

        The error begins with `place`, which describes where the image is from.
        """
        if self.pixels is None:
            return
        for ids in row:
            self._check_pixels(len(ids) - self.config.eos, place)
            if (ids == UNK).any():
                raise UserError(f"{place} has a pixel that is not an integer from 0 to 255.")

    def _check_pixels(self, pixels: int, place: str) -> None:
        if self.pixels not in (None, pixels):
            raise UserError(
                f"{place} has {pixels:,} pixels, but the model reads images of {self.pixels:,} pixels.",
                "Resize the image to the size of the training images.",
            )

    def text(self, ids: Sequence[int]) -> str:
        """Converts token ids to text."""
        return self.tokenizer.decode(self.vocabulary.decode(ids))

    def _token_values(self) -> list[float]:
        """Returns the number that each token represents, which is NaN for special symbols.

        Raises UserError if a token is not a number.
        """
        numbers = [float("nan")] * len(SPECIALS)
        for token in self.vocabulary.tokens[len(SPECIALS) :]:
            try:
                numbers.append(float(token))
            except ValueError:
                raise UserError(
                    f"model.input=values: the token '{token}' is not a number.", "Set model.input=tokens for text."
                ) from None
        return numbers

    def _pixels(self, source: Source) -> int | None:
        """Returns the number of pixels per training image, or None if the data are not images of one size."""
        if tuple(self.vocabulary.tokens[len(SPECIALS) :]) != PIXELS or self.config.truncate:
            return None
        sizes_N = source.split("train", source.source_lang).sizes
        return int(sizes_N[0]) - 1 if len(sizes_N) and (sizes_N == sizes_N[0]).all() else None

    def _langs(self, source: Source) -> list[str | None]:
        return [source.source_lang, source.target_lang] if self.pairs else [source.source_lang]

    def _examples(self, split: str, *, epoch: int = 1) -> LabelledTexts:
        source = self.open()
        sides = [source.split(split, lang, epoch=epoch) for lang in self._langs(source)]
        label_N = source.labels(split)
        if any(len(items) != len(label_N) for items in sides):
            raise UserError(
                f"Split '{split}' of {source.name} has {how_many(len(label_N), 'label')} "
                f"for {how_many(len(sides[0]), 'example')}.",
                "Preprocess the data again.",
            )
        for items in sides if self.pixels is not None else ():
            for index in np.flatnonzero(items.sizes - 1 != self.pixels)[:1].tolist():
                self._check_pixels(int(items.sizes[index]) - 1, f"Example {index + 1:,} of split '{split}'")
        number_C = np.array([self.classes.index(name) for name in source.classes()])
        return LabelledTexts(
            sides,
            number_C[label_N],
            eos=self.config.eos,
            limit=self._limit if self.config.truncate else None,
            lines=partial(source.lines, split, source.source_lang),
        )

    def _class_counts(self, source: Source) -> list[float]:
        """Returns the number of examples of each class in an epoch (with `task.mix`, the expected number)."""
        if not self.config.mix:
            return list(np.bincount(source.labels("train"), minlength=len(self.classes)).tolist())
        # `_corpora` cannot be used: it needs the model's maximum length, but there is no model yet.
        corpora = map(self._corpus, self.config.mix)
        label_KN = [corpus.label_N for corpus in corpora if isinstance(corpus, LabelledTexts)]
        read_K = examples_per_epoch(
            list(map(len, label_KN)),
            [corpus.weight for corpus in self.config.mix],
            temperature=self.config.temperature,
        )
        share_KC = [np.bincount(label_N, minlength=len(self.classes)) / len(label_N) for label_N in label_KN]
        return list(np.dot(read_K, share_KC).tolist())

    def _weights(self, source: Source) -> list[float] | None:
        """Returns the weight of each class, or None if all weights are 1.

        Raises UserError if the training examples have only one class, or if the number of weights is wrong.
        """
        counts = self._class_counts(source)
        present = [name for name, count in zip(self.classes, counts, strict=True) if count]
        if len(present) < 2:
            raise UserError(
                f"All training examples in {source.name} have the same class: {', '.join(map(repr, present))}.",
                "A classifier needs examples of at least two classes.",
            )
        weights = self.config.class_weights
        if weights is None:
            return None
        if weights == "balanced":  # scikit-learn's formula. The weight of a class without examples has no effect.
            return [sum(counts) / (len(counts) * count) if count else 1.0 for count in counts]
        if len(weights) != len(self.classes):
            raise UserError(
                f"task.class_weights has {how_many(len(weights), 'weight')} for "
                f"{how_many(len(self.classes), 'class')}.",
                f"Set one weight for each class, in this order: {', '.join(map(repr, self.classes[:10]))}.",
            )
        return list(weights)


@tasks.register("matching", MatchingConfig)
class MatchingTask(ClassificationTask):
    """Classification of pairs of texts. One encoder encodes the two texts separately (a dual encoder)."""

    sides = ("source", "source")
    pairs = True
