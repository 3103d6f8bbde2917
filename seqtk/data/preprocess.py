"""From text to a data-bin directory: check, learn or take vocabularies, encode, filter, write, count.

The same text and settings give the same bytes whatever the number of workers, and memory does not grow with the
corpus: text is read in blocks of lines, and a few blocks per worker are under way at a time.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from seqtk import __version__
from seqtk.config import schema
from seqtk.data.char_tokenizer import SymbolEncoder
from seqtk.data.corpus import BLOCK_BYTES, Text, check_equal, check_text, read_blocks
from seqtk.data.encoding import BlockEncoder, EncodedBlock, LineEncoder, PieceEncoder, WordEncoder
from seqtk.data.filters import RULES, LengthFilter
from seqtk.data.indexed import IndexedWriter
from seqtk.data.report import Report, SideCount, SplitCount, TextCount
from seqtk.data.staging import refuse_overwriting, staged
from seqtk.data.vocabulary import UNK, Vocabulary
from seqtk.data.vocabulary_building import Side, Tokens, VocabularyConfig, make_sides
from seqtk.data.workers import available_cores, ordered_map
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class PreprocessConfig(VocabularyConfig):
    """The text, its vocabulary, what to leave out of the training text, and where to write."""

    min_length: int | None = None  # training lines with fewer tokens are dropped; null: 1 in pairs, 0 in one-sided text
    max_length: int | None = None  # training lines with more tokens are dropped
    max_ratio: float | None = None  # training pairs are dropped if one side is more than so many times the other
    destdir: str | None = None  # the data-bin directory to make
    overwrite: bool = False  # replace the data-bin that is there
    workers: int = 0  # processes; 0: one for each core


_WORTH_A_WORKER = {"sentencepiece": 4, "words": 32, "characters": 128, "bytes": 256}
"""Blocks that take longer to encode than a process to start."""

_WORTH_A_CHECKER = 1 << 28  # bytes that take longer to check than a process to start
_NOT_IN_THE_RECORD = ("destdir", "overwrite", "workers")  # what has no influence on the files


def preprocess(
    config: PreprocessConfig,
    *,
    notify: Callable[[str], None] = lambda message: None,
    progress: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> Report:
    """Make the data-bin directory that `config` describes, and count. Raises UserError for what cannot be used.

    `notify` is told of each step that takes time; `progress` shows a bar, if standard error is a terminal. Text of
    a few blocks is not worth a process. With more than one worker the caller's main module must be
    importable without effect.
    """
    if config.destdir is None:
        raise UserError("destdir= is missing: the data-bin directory to make.")
    if config.workers < 0:
        raise UserError(f"workers={config.workers} cannot be negative; 0 is one for each core.")
    destination = Path(config.destdir)
    refuse_overwriting(destination, overwrite=config.overwrite)
    files = config.files()
    total_bytes = sum(path.stat().st_size for paths in files.values() for path in paths)
    cores = config.workers or available_cores()
    worth = _WORTH_A_WORKER[config.tokens] * block_bytes
    workers = min(cores, max(1, total_bytes // worth))
    newlines = config.newlines
    checkers = min(cores, max(1, total_bytes // _WORTH_A_CHECKER))
    texts = _check(files, utf8=config.tokens != "bytes", workers=checkers)
    with staged(destination) as staging:
        train = next((text for text in texts if text.name == "train"), None)
        sides = make_sides(config, train, workers=workers, notify=notify)
        shortest = len(config.langs) - 1 if config.min_length is None else config.min_length
        length_filter = LengthFilter(shortest, config.max_length, config.max_ratio)
        encoders = tuple(_encoder(side, config.tokens, newlines=newlines) for side in sides)
        encode = BlockEncoder(encoders, length_filter, eos=not newlines)
        stream = (
            (blocks, text.name == "train")
            for text in texts
            for blocks in read_blocks(text.paths, block_bytes=block_bytes)
        )
        names = [lang or config.source_lang or "text" for lang in config.langs]
        writer = _Writer(staging, config.langs, sides, names=names)
        bar = tqdm(total=sum(text.lines for text in texts), unit=" lines", disable=None if progress else True)
        with closing(ordered_map(encode, stream, workers=workers)) as results, bar:
            splits = {text.name: writer.write_split(text, results, advance=bar.update) for text in texts}
        for text in texts:
            if text.name != "train" and config.tokens == "sentencepiece":
                writer.keep_text(text)
        writer.write_vocabularies()
        report = Report(dict(zip(names, (len(side.vocabulary) for side in sides), strict=True)), splits)
        _write_record(staging / "preprocess.json", config, report)
    return report


def _check(files: dict[str, tuple[Path, ...]], *, utf8: bool, workers: int) -> list[Text]:
    """Every split, once all lines of its files were read and found good."""
    each = sorted({path for paths in files.values() for path in paths})
    lines = dict(zip(each, ordered_map(check_text, ((path, utf8) for path in each), workers=workers), strict=True))
    for paths in files.values():
        check_equal(paths, [lines[path] for path in paths])
        if not lines[paths[0]]:
            raise UserError(f"{paths[0]} is empty.")
    return [Text(name, paths, lines[paths[0]]) for name, paths in files.items()]


def _encoder(side: Side, tokens: Tokens, *, newlines: bool) -> LineEncoder:
    if tokens in ("characters", "bytes"):
        return SymbolEncoder(side.vocabulary, characters=tokens == "characters", newlines=newlines)
    if tokens == "sentencepiece" and side.tokenizer is not None:
        return PieceEncoder(side.tokenizer, side.vocabulary)
    return WordEncoder(side.vocabulary)


class _Writer:
    """Writes splits and vocabularies of all languages into a directory, counting tokens on the way."""

    def __init__(
        self, directory: Path, langs: Sequence[str | None], sides: Sequence[Side], *, names: Sequence[str]
    ) -> None:
        self._directory = directory
        self._names = names
        self._langs = langs
        self._sides = sides
        self._counts = [np.zeros(len(side.vocabulary), dtype=np.int64) for side in sides]

    def write_split(
        self, text: Text, results: Iterator[EncodedBlock], *, advance: Callable[[int], object]
    ) -> SplitCount:
        """Take the split's encoded blocks off `results` and write them; `advance` is told the lines done."""
        lines, items = 0, 0
        dropped = dict.fromkeys(RULES, 0)
        counts = [np.zeros_like(count) for count in self._counts]
        size: TextCount | None = None
        with ExitStack() as stack:
            writers = [
                stack.enter_context(IndexedWriter(self._prefix(text.name, lang), vocabulary_size=len(side.vocabulary)))
                for lang, side in zip(self._langs, self._sides, strict=True)
            ]
            while lines < text.lines:
                block = next(results)
                for writer, count, flat, sizes in zip(writers, counts, block.flats, block.sizes, strict=True):
                    writer.extend_arrays(flat, sizes)
                    count += np.bincount(flat, minlength=len(count))
                lines += block.lines
                if block.text is not None:
                    size = block.text + (size or TextCount())
                items += len(block.sizes[0])
                dropped = {rule: number + block.dropped.get(rule, 0) for rule, number in dropped.items()}
                advance(block.lines)
        if text.name == "train":
            self._counts = counts
        found = [SideCount(int(count.sum()), int(count[UNK])) for count in counts]
        return SplitCount(lines, items, dropped, dict(zip(self._names, found, strict=True)), size)

    def keep_text(self, text: Text) -> None:
        """Keep the split's lines beside its items: scores are taken against the text, not what became of it."""
        for lang, path in zip(self._langs, text.paths, strict=True):
            with open(f"{self._prefix(text.name, lang)}.txt", "wb") as kept:
                for (lines,) in read_blocks((path,)):
                    kept.writelines(line.rstrip(b"\r\n") + b"\n" for line in lines)

    def write_vocabularies(self) -> None:
        """The dictionary of each language, with the counts of the training split, and the SentencePiece models."""
        joint = all(side is self._sides[0] for side in self._sides)
        total = np.sum(self._counts, axis=0) if joint else None
        for lang, side, own in zip(self._langs, self._sides, self._counts, strict=True):
            vocabulary = side.vocabulary
            if side.counted:
                first = UNK + 1
                counts = (own if total is None else total)[first:].tolist()
                vocabulary = Vocabulary(vocabulary.tokens[first:], counts)
            vocabulary.save(self._directory / (f"dict.{lang}.txt" if lang else "dict.txt"))
            if side.tokenizer is not None and side.tokenizer.model_bytes is not None:
                name = "sentencepiece.model" if joint else f"sentencepiece.{lang}.model"
                (self._directory / name).write_bytes(side.tokenizer.model_bytes)

    def _prefix(self, split: str, lang: str | None) -> Path:
        return self._directory / (f"{split}.{'-'.join(map(str, self._langs))}.{lang}" if lang else split)


def _write_record(path: Path, config: PreprocessConfig, report: Report) -> None:
    settings = {key: value for key, value in schema.to_dict(config).items() if key not in _NOT_IN_THE_RECORD}
    record = {"seqtk": __version__, "settings": settings, **report.to_dict()}
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
