"""seqtk-generate: translates a data-bin split, a file or standard input, or continues prompts."""

import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from seqtk.cli.command import command
from seqtk.cli.decoding import DecodeConfig, as_text_pipeline, check_decoding, check_nbest
from seqtk.cli.loading import check_not_input, check_split, load_pipeline, split_paths
from seqtk.config.fields import setting
from seqtk.utils.errors import UserError, how_many

if TYPE_CHECKING:
    from seqtk.generation.decode import Sentence, Translation
    from seqtk.generation.formats import Writer
    from seqtk.pipelines import GenerationPipeline, TextPipeline, TranslationPipeline


@dataclass(frozen=True)
class GenerateConfig(DecodeConfig):
    """Settings of seqtk-generate: the model, the text to translate or continue, and the output."""

    data: str | None = setting(
        None, help="The data-bin with the split. null: the data-bin that the model was trained on."
    )
    split: str | None = setting(None, help="The split of data= to translate. null: test. Not possible with input=.")
    input: str | None = setting(
        None, help="A text file to translate instead of data=, or a file with one prompt per line. -: standard input."
    )
    reference: str | None = setting(
        None, help="File with the reference translations of input=, one per line. Commas separate several files."
    )
    prefix: str | None = setting(None, help="File with one text per line, with which the translation must begin.")
    prefix_size: int = setting(
        0, at_least=0, help="Each translation must begin with this many tokens of its reference."
    )
    score_reference: bool = setting(
        False,
        help="Score the references (in the first file) instead of translating. Requires format=json or format=fairseq.",
    )
    output: str = setting("-", help="The file to write. -: standard output.")
    buffer_size: int = setting(
        8192,
        at_least=1,
        help="Number of sentences to read, and to sort into batches by length, before the first output is written.",
    )
    workers: int = setting(
        0,
        at_least=0,
        at_most=256,
        help="On a CPU: number of processes with one thread each. 0: one process with all threads.",
    )


@command("seqtk-generate", GenerateConfig)
def main(config: GenerateConfig) -> None:
    """Translate text, or continue prompts: seqtk-generate checkpoint=PATH [split=test | input=FILE|-] [beam=5 …].

    Writes one line for each sentence (format=text), in input order; counts, speed and scores go to standard error.
    With a language model, each line of input is a prompt, which is continued nbest times. Without input=, there is one
    empty prompt: seqtk-generate checkpoint=PATH [input=FILE|-] [temperature=0.8 top_k=40 top_p=0.95 nbest=3 seed=1 …].
    """
    _check(config)
    from seqtk.pipelines import TranslationPipeline
    from seqtk.utils.text_io import text_output

    pipeline = as_text_pipeline(load_pipeline(config), config)
    check_nbest(config, pipeline)
    search = pipeline.resolve(config)
    if not isinstance(pipeline, TranslationPipeline):
        sentences = _prompts(config, pipeline)  # type: ignore[arg-type]
    elif config.score_reference and config.format == "text":
        raise UserError(
            "score_reference=true is not possible with format=text, which writes no scores.",
            "Set format=json or format=fairseq.",
        )
    elif config.input is None:
        sentences = pipeline.split(config.split or "test", data=config.data, prefix_size=config.prefix_size)
    else:
        sentences = _from_text(config, pipeline, config.input)
    writer, tally = pipeline.writer(detokenize=config.detokenize), _Tally(pipeline)
    with text_output(config.output) as output:
        for translation in pipeline.decode(
            sentences,
            search,
            batching=config.batching,
            window=config.buffer_size,
            score_targets=config.score_reference,
            workers=config.workers,
        ):
            output.writelines(f"{line}\n" for line in writer.lines(translation, config.format))
            tally.add(translation, writer)
        tally.report()
        if config.format == "fairseq":
            output.write("NOTE: hypothesis and token scores are output in base 2\n")
        if tally.references and not config.score_reference:
            _score(config, tally, output)


def _check(config: GenerateConfig) -> None:
    check_decoding(config)
    if config.input is not None and config.data is not None:
        raise UserError("input= and data= are both set.", "Set only one of them: a text file, or a data-bin.")
    check_split(config.split, input=config.input)
    if config.input is None and (config.reference is not None or config.prefix is not None):
        raise UserError(
            "reference= and prefix= require input=.", "Remove them. A split of a data-bin already has references."
        )
    if config.prefix is not None and config.prefix_size:
        raise UserError("prefix= and prefix_size= are both set.", "Set only one of them.")
    if config.input is not None and config.reference is None and (config.score_reference or config.prefix_size):
        raise UserError("score_reference= and prefix_size= require references.", "Set reference=FILE.")
    if config.workers and config.device == "cuda":
        raise UserError("workers= is not possible with device=cuda.", "Remove it, or set device=cpu.")
    inputs = {key: getattr(config, key) for key in ("checkpoint", "input", "reference", "prefix")}
    check_not_input(Path(config.output), **inputs)


def _prompts(config: GenerateConfig, pipeline: "GenerationPipeline") -> "Iterator[Sentence]":
    for key in ("data", "split", "reference", "prefix", "prefix_size", "score_reference"):
        if getattr(config, key):
            raise UserError(
                f"{key}= has no effect on checkpoint={config.checkpoint}, which is a language model.",
                "Set input= to a file with prompts. To score text, run seqtk-eval-lm.",
            )
    from seqtk.utils.text_io import read_lines

    return map(pipeline.sentence, ("",) if config.input is None else read_lines(config.input))


def _from_text(config: GenerateConfig, pipeline: "TranslationPipeline", path: str) -> "Iterator[Sentence]":
    from seqtk.utils.text_io import read_lines

    references = split_paths(config.reference) if config.reference is not None else []
    files = [path, *references, *([config.prefix] if config.prefix is not None else [])]
    if files.count("-") > 1:
        raise UserError("Only one of input=, reference= and prefix= can be - (standard input).")
    for number, lines in enumerate(itertools.zip_longest(*map(read_lines, files)), start=1):
        if None in lines:
            short = files[lines.index(None)]
            longer = next(path for path, line in zip(files, lines, strict=True) if line is not None)
            raise UserError(
                f"{short} has {how_many(number - 1, 'line')}, but {longer} has more.",
                "input=, reference= and prefix= must have the same number of lines.",
            )
        yield pipeline.sentence(
            lines[0],
            references=lines[1 : 1 + len(references)],
            prefix=lines[-1] if config.prefix is not None else None,
            prefix_size=config.prefix_size,
        )


@dataclass
class _Tally:
    """Counts sentences and tokens for the report on standard error."""

    pipeline: "TextPipeline"
    started: float = field(default_factory=time.perf_counter)
    sentences: int = 0
    tokens: int = 0
    truncated: int = 0
    prefixes_truncated: int = 0
    source_tokens: int = 0
    unknown: int = 0
    unknown_in_prefix: int = 0
    texts: list[str] = field(default_factory=list)
    references: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, translation: "Translation", writer: "Writer") -> None:
        from seqtk.data.vocabulary import UNK

        sentence = translation.sentence
        references = writer.references(translation)
        if references:
            self.texts.append(writer.hypothesis(translation))
            self.references.append(references)
        self.sentences += 1
        written = translation.hypotheses if self.pipeline.free_text else translation.hypotheses[:1]
        self.tokens += sum(len(hypothesis.tokens) for hypothesis in written)
        self.truncated += translation.truncated
        self.prefixes_truncated += translation.prefix_truncated
        self.source_tokens += len(sentence.source) - 1
        self.unknown += int((sentence.source == UNK).sum())
        if sentence.prefix_text is not None and sentence.prefix is not None and not self.pipeline.free_text:
            self.unknown_in_prefix += int((sentence.prefix == UNK).sum())

    def report(self) -> None:
        seconds = time.perf_counter() - self.started
        verb, noun = ("Continued", "prompt") if self.pipeline.free_text else ("Translated", "sentence")
        _report(
            f"{verb} {how_many(self.sentences, noun)} ({how_many(self.tokens, 'token')}) in {seconds:.1f}s "
            f"({self.sentences / seconds:.2f} sentences/s, {self.tokens / seconds:.2f} tokens/s)"
        )
        if 2 * self.unknown > self.source_tokens:
            _report(
                f"{self.unknown / self.source_tokens:.0%} of the input's tokens are unknown to the model. "
                "Check that the input is tokenized like the training text."
            )
        if self.unknown_in_prefix:
            _report(
                f"{how_many(self.unknown_in_prefix, 'token')} of the prefixes are unknown to the model "
                "and replaced by <unk>."
            )
        if self.truncated:
            _report(f"Truncated to the model's maximum length: {how_many(self.truncated, noun)}.")
        if self.prefixes_truncated:
            _report(
                f"Truncated the prefix to the maximum length of outputs: {how_many(self.prefixes_truncated, noun)}. "
                "Raise max_length_b=."
            )


def _score(config: GenerateConfig, tally: _Tally, output: TextIO) -> None:
    from seqtk.metrics.text import corpus_scores

    scores = corpus_scores(tally.texts, *zip(*tally.references, strict=True))
    if config.format == "fairseq":
        name = config.input or config.split or "test"
        bleu = scores["bleu"]
        output.write(f"Generate {name} with beam={config.width}: {bleu.line} {bleu.signature}\n")
    for score in scores.values():
        _report(score.signed_line)


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
