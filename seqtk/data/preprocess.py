"""Preprocesses text into a data-bin: checks files, learns or loads vocabularies, encodes, filters and counts lines.

The files are identical for any number of workers. Memory does not grow with the corpus: text is read in blocks of
lines, and only a few blocks per worker are in memory at a time.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seqtk import __version__
from seqtk.config import schema
from seqtk.config.fields import setting
from seqtk.data.corpus import BLOCK_BYTES, Text, check_equal, check_text, read_blocks, split_lines
from seqtk.data.encoding import BlockEncoder, EncodedBlock, LineEncoder, PieceEncoder, SymbolEncoder, WordEncoder
from seqtk.data.filters import RULES, LengthFilter
from seqtk.data.indexed_writer import IndexedWriter
from seqtk.data.labelled_text import Columns
from seqtk.data.report import PreprocessReport, SideCount, SplitCount, TextCount
from seqtk.data.vocabulary import UNK, Vocabulary
from seqtk.data.vocabulary_building import LanguageSpec, Tokens, VocabularyConfig, make_specs
from seqtk.data.workers import available_cores, ordered_map
from seqtk.utils.errors import UserError
from seqtk.utils.files import atomic_directory, check_writable, write_text
from seqtk.utils.progress import Reporter


@dataclass(frozen=True)
class PreprocessConfig(VocabularyConfig):
    """Settings of preprocessing: the text, its vocabulary, which training lines to drop, and the folder to write."""

    min_length: int | None = setting(
        None, at_least=0, help="Training lines with fewer tokens are dropped. null: 1 in pairs, 0 in monolingual text."
    )
    max_length: int | None = setting(
        None, at_least=1, help="Training lines with more tokens are dropped. null: no limit."
    )
    max_ratio: float | None = setting(
        None,
        at_least=1,
        help="Training pairs are dropped if the longer side has more than this many times the tokens of the shorter "
        "side. null: no limit.",
    )
    shard_tokens: int | None = setting(
        None,
        at_least=1,
        help="Approximate number of tokens in a file of the training split. Longer text is written to several files "
        "(train, train1, …), which are read as one split. The text is cut at most once per MiB. null: one file.",
    )
    columns: Columns | None = setting(
        None,
        help="Columns of labeled files. If set, train=, valid= and test= are labeled files. null: they are plain text.",
    )
    valid_share: float = setting(
        0.0, at_least=0, below=1, help="For labeled files: share of training examples to use as the split valid."
    )
    seed: int = setting(1, at_least=0, help="Seed of the random choice of examples with valid_share.")
    destdir: str | None = setting(None, help="Data-bin folder to write.")
    overwrite: bool = setting(False, help="Replace an existing data-bin in destdir.")
    workers: int = setting(0, at_least=0, help="Number of worker processes. 0: one per core.")


DATABIN_FILES = (
    "dict.*txt",
    "*.idx",
    "*.bin",
    "valid*.txt",
    "test*.txt",
    "classes.txt",
    "*.labels.npy",
    "sentencepiece.model",
    "sentencepiece.*.model",
    "preprocess.json",
    "preprocess.log",
)
"""Patterns of the files of a data-bin. The dictionaries come first, so that they are written last (`atomic_directory`).

A folder without dictionaries is not a data-bin.
"""

_MIN_BLOCKS_PER_WORKER = {"sentencepiece": 4, "words": 32, "lowercase_words": 8, "characters": 128, "bytes": 256}
"""Encoding this many blocks takes longer than starting a process."""

_MIN_BYTES_PER_CHECKER = 1 << 28
"""Checking this many bytes takes longer than starting a process."""

_NOT_RECORDED = ("destdir", "overwrite", "workers")
"""Settings that do not affect the contents of the files."""


def preprocess(
    config: PreprocessConfig,
    *,
    recorded: PreprocessConfig | None = None,
    reporter: Reporter | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> PreprocessReport:
    """Writes the data-bin folder that `config` describes, and returns its counts.

    For small texts, fewer workers than configured are used. With several workers, the caller's main module must be
    importable without side effects (`if __name__ == "__main__":`).

    Args:
        config: The settings.
        recorded: The settings to write to `preprocess.json` instead of `config`, if `config` names temporary files.
        reporter: Reports progress.
        block_bytes: The approximate size of a block.

    Raises:
        UserError: If the text or a setting is invalid. The folder is then unchanged.
    """
    reporter = reporter or Reporter()
    if config.valid_share:
        raise UserError("valid_share= requires labeled files.", "Remove it, or set columns.text= and columns.label=.")
    destination = destination_of(config)
    files = config.files()
    check_inputs(destination, [path for paths in files.values() for path in paths])
    total_bytes = sum(path.stat().st_size for paths in files.values() for path in paths)
    cores = config.workers or available_cores()
    workers = min(cores, max(1, total_bytes // (_MIN_BLOCKS_PER_WORKER[config.tokens] * block_bytes)))
    newlines = config.newlines
    checkers = min(cores, max(1, total_bytes // _MIN_BYTES_PER_CHECKER))
    texts = _check(files, utf8=config.tokens != "bytes", workers=checkers)
    with atomic_directory(destination, only=DATABIN_FILES) as folder:
        train = next((text for text in texts if text.name == "train"), None)
        specs = make_specs(config, train, workers=workers, notify=reporter.notify)
        shortest = len(config.langs) - 1 if config.min_length is None else config.min_length
        length_filter = LengthFilter(shortest, config.max_length, config.max_ratio)
        encoders = tuple(_encoder(spec, config.tokens, newlines=newlines) for spec in specs)
        encode = BlockEncoder(encoders, length_filter, eos=not newlines)
        stream = (
            (blocks, text.name == "train")
            for text in texts
            for blocks in read_blocks(text.paths, block_bytes=block_bytes)
        )
        names = [lang or config.source_lang or "text" for lang in config.langs]
        writer = _Writer(folder, config.langs, specs, names=names, shard_tokens=config.shard_tokens)
        bar = reporter.bar(sum(text.lines for text in texts), "encoding", unit=" lines")
        with closing(ordered_map(encode, stream, workers=workers)) as results, bar:
            splits = {text.name: writer.write_split(text, results, advance=bar.update) for text in texts}
        for text in texts:
            if text.name != "train" and config.tokens == "sentencepiece":
                writer.keep_text(text)
        writer.write_vocabularies()
        report = PreprocessReport(dict(zip(names, (len(spec.vocabulary) for spec in specs), strict=True)), splits)
        _write_record(folder, recorded or config, report)
    return report


def destination_of(config: PreprocessConfig) -> Path:
    """Returns the folder to write. Raises UserError if it is not set or cannot be written."""
    if config.destdir is None:
        raise UserError("destdir= is not set.", "Set it to the data-bin folder to write.")
    check_destination(Path(config.destdir), overwrite=config.overwrite)
    return Path(config.destdir)


def check_destination(destination: Path, *, overwrite: bool) -> None:
    """Raises UserError if `destination` is a file, is not writable, or is a data-bin and `overwrite` is false."""
    if destination.exists() and not destination.is_dir():
        raise UserError(f"destdir={destination} is a file, not a folder.", "Choose a different destdir=.")
    if not overwrite and any(any(destination.glob(pattern)) for pattern in DATABIN_FILES):
        raise UserError(
            f"{destination} already contains a data-bin.",
            "Choose a different destdir=, or set overwrite=true to replace the data-bin.",
        )
    check_writable(destination, key="destdir")


def check_inputs(destination: Path, paths: Iterable[Path]) -> None:
    """Raises UserError if a file to read is in `destination` and has the name of a file of a data-bin."""
    for path in paths:
        if path.resolve().parent == destination.resolve() and any(map(path.match, DATABIN_FILES)):
            raise UserError(
                f"destdir={destination} contains {path}, which would be replaced.", "Choose a different destdir=."
            )


def _check(files: dict[str, tuple[Path, ...]], *, utf8: bool, workers: int) -> list[Text]:
    """Checks the text files of all splits, and returns the splits. Raises UserError if a file is invalid."""
    unique = sorted({path for paths in files.values() for path in paths})
    counts = ordered_map(check_text, ((path, utf8) for path in unique), workers=workers)
    lines = dict(zip(unique, counts, strict=True))
    for paths in files.values():
        check_equal(paths, [lines[path] for path in paths])
        if not lines[paths[0]]:
            raise UserError(f"{paths[0]} is empty.", "Each text file must have at least one line.")
    return [Text(name, paths, lines[paths[0]]) for name, paths in files.items()]


def _encoder(spec: LanguageSpec, tokens: Tokens, *, newlines: bool) -> LineEncoder:
    if tokens in ("characters", "bytes"):
        return SymbolEncoder(spec.vocabulary, characters=tokens == "characters", newlines=newlines)
    if tokens == "sentencepiece" and spec.tokenizer is not None:
        return PieceEncoder(spec.tokenizer, spec.vocabulary)
    return WordEncoder(spec.vocabulary, lowercase=tokens == "lowercase_words")


class _Writer:
    """Writes the splits and vocabularies of all languages into a folder, and counts tokens."""

    def __init__(
        self,
        directory: Path,
        langs: Sequence[str | None],
        specs: Sequence[LanguageSpec],
        *,
        names: Sequence[str],
        shard_tokens: int | None = None,
    ) -> None:
        self._shard_tokens = shard_tokens
        self._directory = directory
        self._names = names
        self._langs = langs
        self._specs = specs
        self._counts = [np.zeros(len(spec.vocabulary), dtype=np.int64) for spec in specs]

    def write_split(
        self, text: Text, results: Iterator[EncodedBlock], *, advance: Callable[[int], object]
    ) -> SplitCount:
        """Writes the encoded blocks of a split.

        Args:
            text: The split.
            results: The encoded blocks of this and all later splits. Only the blocks of this split are read.
            advance: Called after each block with its number of lines.
        """
        lines, items = 0, 0
        dropped = dict.fromkeys(RULES, 0)
        counts = [np.zeros_like(count) for count in self._counts]
        special = np.zeros(len(counts), dtype=np.int64)
        size = kept = None
        shards = itertools.count(1)
        with ExitStack() as stack:
            writers, written = self._writers(text.name, stack), 0
            while lines < text.lines:
                block = next(results)
                if text.name == "train" and self._shard_tokens is not None and written >= self._shard_tokens:
                    stack.close()
                    writers, written = self._writers(f"train{next(shards)}", stack), 0
                written += max(map(len, block.flats))
                for writer, count, flat, sizes in zip(writers, counts, block.flats, block.sizes, strict=True):
                    writer.extend_arrays(flat, sizes)
                    count += np.bincount(flat, minlength=len(count))
                lines += block.lines
                if block.text is not None and block.kept is not None:
                    size, kept = block.text + (size or TextCount()), block.kept + (kept or TextCount())
                items += len(block.sizes[0])
                special += block.special
                dropped = {rule: number + block.dropped.get(rule, 0) for rule, number in dropped.items()}
                advance(block.lines)
        if text.name == "train":
            self._counts = counts
        found = [
            SideCount(int(count.sum()), int(count[UNK]), int(words))
            for count, words in zip(counts, special, strict=True)
        ]
        sides = dict(zip(self._names, found, strict=True))
        return SplitCount(lines, items, dropped, sides, size, kept if kept != size else None)

    def _writers(self, name: str, stack: ExitStack) -> list[IndexedWriter]:
        """Opens one data set per language for a split, or for one file of the split."""
        return [
            stack.enter_context(IndexedWriter(self._prefix(name, lang), vocabulary_size=len(spec.vocabulary)))
            for lang, spec in zip(self._langs, self._specs, strict=True)
        ]

    def keep_text(self, text: Text) -> None:
        """Writes the text of a split. It contains the references for scoring translations."""
        for lang, path in zip(self._langs, text.paths, strict=True):
            with open(f"{self._prefix(text.name, lang)}.txt", "wb") as kept:
                for (block,) in read_blocks((path,)):
                    kept.writelines(line.rstrip(b"\r\n") + b"\n" for line in split_lines(block))

    def write_vocabularies(self) -> None:
        """Writes the dictionaries, with the counts of the training split, and the SentencePiece models."""
        joint = all(spec is self._specs[0] for spec in self._specs)
        total = np.sum(self._counts, axis=0) if joint else None
        for lang, spec, count in zip(self._langs, self._specs, self._counts, strict=True):
            vocabulary = spec.vocabulary
            if spec.counted:
                first = UNK + 1
                counts = (count if total is None else total)[first:].tolist()
                vocabulary = Vocabulary(vocabulary.tokens[first:], counts)
            vocabulary.save(self._directory / (f"dict.{lang}.txt" if lang else "dict.txt"))
            if spec.tokenizer is not None and spec.tokenizer.model_bytes is not None:
                name = "sentencepiece.model" if joint else f"sentencepiece.{lang}.model"
                (self._directory / name).write_bytes(spec.tokenizer.model_bytes)

    def _prefix(self, split: str, lang: str | None) -> Path:
        return self._directory / (f"{split}.{'-'.join(map(str, self._langs))}.{lang}" if lang else split)


def _write_record(folder: Path, config: PreprocessConfig, report: PreprocessReport) -> None:
    """Writes `preprocess.json`: the settings and the counts."""
    settings = {key: value for key, value in schema.to_dict(config).items() if key not in _NOT_RECORDED}
    record = {"seqtk": __version__, "settings": settings, **report.to_dict()}
    write_text(folder / "preprocess.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
