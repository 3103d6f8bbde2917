"""seqtk-generate: translate a split of a corpus, a file, or standard input; or go on with texts."""

import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from seqtk.cli.command import command
from seqtk.cli.decoding import Continuing, DecodeConfig, Translating, check_decoding, check_room, load_decoder
from seqtk.cli.loading import check_dictionary
from seqtk.utils.errors import UserError, how_many

if TYPE_CHECKING:
    from seqtk.generation.decode import Sentence
    from seqtk.tasks.translation import TranslationTask


@dataclass(frozen=True)
class GenerateConfig(DecodeConfig):
    """What is translated, and where to."""

    data: str | None = None  # a data-bin directory, to translate a split of it; default: the one trained on
    split: str = "test"  # the split of data
    input: str | None = None  # a text file to translate instead, or of prompts; - is standard input
    reference: str | None = None  # of input: its translations, line by line, to score against
    prefix: str | None = None  # of input: text that each translation has to begin with, line by line
    prefix_size: int = 0  # how many tokens of its reference each translation has to begin with
    score_reference: bool = False  # score the references instead of searching
    output: str = "-"  # the file to write; - is standard output
    buffer_size: int = 8192  # sentences read, and sorted by length into batches, before the first is written
    workers: int = 0  # processes of one thread each that share the work on a CPU; 0: this one, with all threads


@command("seqtk-generate", GenerateConfig)
def main(config: GenerateConfig) -> None:
    """Translate or continue texts: seqtk-generate checkpoint=PATH [data=DATA-BIN split=test | input=FILE|-] [beam=5 …].

    Writes one line a sentence (format=text), in input order. Counts, speed and scores go to standard error. With a
    language model each line of input is a prompt, or there is one without a word, and nbest samples go on from it:
    seqtk-generate checkpoint=PATH [input=FILE|-] [temperature=0.8 top_k=40 top_p=0.95 nbest=3 seed=1 …].
    """
    _check(config)
    from seqtk.utils.text_io import text_output

    able = load_decoder(config, score_targets=config.score_reference)
    sentences = _prompts(config, able) if isinstance(able, Continuing) else _sentences(config, able)
    with text_output(config.output) as output:
        _decode(config, sentences, able, output=output)


def _check(config: GenerateConfig) -> None:
    check_decoding(config)
    if config.input is not None and config.data is not None:
        raise UserError("input= and data= are both set.", "Translate a text or a split of a corpus, not both.")
    if config.input is None and (config.reference is not None or config.prefix is not None):
        raise UserError("reference= and prefix= belong to input=.", "A split has references of its own.")
    if config.prefix is not None and config.prefix_size:
        raise UserError("prefix= and prefix_size= are both set.", "Set one of them.")
    if config.input is not None and config.reference is None and (config.score_reference or config.prefix_size):
        raise UserError("score_reference= and prefix_size= need references.", "Set reference=FILE beside input=FILE.")
    if config.buffer_size < 1 or config.workers < 0 or config.prefix_size < 0:
        raise UserError("buffer_size must be at least 1, workers and prefix_size at least 0.")
    if config.workers and config.device == "cuda":
        raise UserError("workers= are for a CPU.", "Leave it out with device=cuda.")


def _prompts(config: GenerateConfig, able: Continuing) -> "Iterator[Sentence]":
    """Each line of the input, or nothing at all, once."""
    for key in ("data", "reference", "prefix", "prefix_size", "score_reference"):
        if getattr(config, key):
            raise UserError(
                f"{key}= is for translations, and {config.checkpoint} holds a language model.",
                "Its prompts are the lines of input=; seqtk-eval-lm scores text.",
            )
    from seqtk.utils.text_io import read_lines

    return map(able.sentence, ("",) if config.input is None else read_lines(config.input))


def _sentences(config: GenerateConfig, able: Translating) -> "Iterator[Sentence]":
    check_room(config)
    return _from_text(config, able) if config.input is not None else _from_data(config, able.task)


def _from_data(config: GenerateConfig, task: "TranslationTask") -> "Iterator[Sentence]":
    from seqtk.data.databin import DataBin
    from seqtk.generation.decode import Sentence
    from seqtk.tasks.text import check_made

    directory = config.data or task.config.data
    if not directory:
        raise UserError("Nothing to translate: set input=FILE, or data=DATA-BIN.")
    check_made(task.config, directory)
    data = DataBin(directory, source_lang=task.source_lang, target_lang=task.target_lang)
    check_dictionary(data, data.source_lang, task.source_vocabulary)
    check_dictionary(data, data.target_lang, task.target_vocabulary)
    task.open(data)
    dataset = task.dataset(config.split)

    def sentences() -> "Iterator[Sentence]":
        for index, source, target in map(dataset.__getitem__, range(len(dataset))):
            yield Sentence(
                source,
                target=target,
                prefix=target[: config.prefix_size],
                source_text=dataset.source_lines[index] if dataset.source_lines else None,
                target_text=dataset.target_lines[index] if dataset.target_lines else None,
            )

    return sentences()


def _from_text(config: GenerateConfig, able: Translating) -> "Iterator[Sentence]":
    from seqtk.utils.text_io import read_lines

    assert config.input is not None
    files = [config.input, *(path for path in (config.reference, config.prefix) if path is not None)]
    if files.count("-") > 1:
        raise UserError("Standard input (-) can be read once only.")
    opened = [read_lines(path) for path in files]
    for number, lines in enumerate(itertools.zip_longest(*opened), start=1):
        if None in lines:
            short = files[lines.index(None)]
            longer = next(path for path, line in zip(files, lines, strict=True) if line is not None)
            raise UserError(f"{short} has {number - 1} lines, but {longer} has more.", "They go line by line.")
        rest = iter(lines[1:])
        reference = next(rest) if config.reference is not None else None
        yield able.sentence(lines[0], reference=reference, prefix=next(rest, None), prefix_size=config.prefix_size)


def _decode(
    config: GenerateConfig, sentences: "Iterable[Sentence]", able: Translating | Continuing, *, output: TextIO
) -> None:
    from seqtk.data.plan import BatchingConfig
    from seqtk.data.vocabulary import UNK
    from seqtk.generation.decode import in_order
    from seqtk.generation.workers import decoding_processes
    from seqtk.utils.memory import keep_freed_memory

    decoder, writer, continuing = able.decoder, able.writer, isinstance(able, Continuing)
    batching = BatchingConfig(max_tokens=config.max_tokens, max_sentences=config.max_sentences)
    texts: list[str] = []
    references: list[str] = []
    count = tokens = shortened = read = unknown = 0
    with decoding_processes(decoder, workers=config.workers, prepare=keep_freed_memory) as map_batches:
        started = time.perf_counter()
        for translation in in_order(
            sentences, decoder, batching=batching, window=config.buffer_size, map_batches=map_batches
        ):
            output.writelines(f"{line}\n" for line in writer.lines(translation, config.format))
            reference = writer.reference(translation)
            if reference is not None:
                texts.append(writer.hypothesis(translation))
                references.append(reference)
            count += 1
            given = translation.hypotheses if continuing else translation.hypotheses[:1]
            tokens += sum(len(hypothesis.tokens) for hypothesis in given)
            shortened += translation.shortened
            read += len(translation.sentence.source) - 1
            unknown += int((translation.sentence.source == UNK).sum())
        seconds = time.perf_counter() - started
    what = f"Continued {how_many(count, 'prompt')}" if continuing else f"Translated {how_many(count, 'sentence')}"
    _report(f"{what} ({how_many(tokens, 'token')}) in {seconds:.1f}s "
            f"({count / seconds:.2f} sentences/s, {tokens / seconds:.2f} tokens/s)")  # fmt: skip
    if 2 * unknown > read:
        _report(f"{100 * unknown / read:.0f} % of the input's tokens are not in the model's dictionary: "
                "is it tokenised as the training text was?")  # fmt: skip
    if shortened:
        which = "1 sentence was" if shortened == 1 else f"{shortened:,} sentences were"
        _report(f"{which} longer than the model can read; what was too much was cut off at the end.")
    _scores(config, texts, references, output)


def _scores(config: GenerateConfig, texts: Sequence[str], references: Sequence[str], output: TextIO) -> None:
    from seqtk.metrics.text import corpus_scores

    if config.format == "fairseq":
        output.write("NOTE: hypothesis and token scores are output in base 2\n")
    if not references:
        return
    scores = corpus_scores(texts, references)
    if config.format == "fairseq":
        what = config.split if config.input is None else config.input
        bleu = scores["bleu"]
        output.write(f"Generate {what} with beam={config.width}: {bleu.line} {bleu.signature}\n")
    for score in scores.values():
        _report(score.signed_line)


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
