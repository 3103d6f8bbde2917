"""seqtk-interactive: translates, continues or classifies lines as they are typed, or through a pipe."""

import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TextIO

from seqtk.cli.classify import as_line, as_pair
from seqtk.cli.command import command
from seqtk.cli.decoding import DecodeConfig, as_text_pipeline, check_decoding, check_nbest
from seqtk.cli.loading import load_pipeline
from seqtk.config.fields import setting
from seqtk.utils.errors import UserError

if TYPE_CHECKING:
    from seqtk.pipelines import ClassificationPipeline, TextPipeline


@dataclass(frozen=True)
class InteractiveConfig(DecodeConfig):
    """Which model to use, how it searches, and when it answers."""

    buffer_size: int = setting(
        1, at_least=1, help="Lines that are read before the first is answered. Always 1 on a terminal."
    )

    advice: ClassVar[dict[str, str]] = {
        "input": "Input is typed, or comes through a pipe. For a file use seqtk-generate or seqtk-classify with input=."
    }


@command("seqtk-interactive", InteractiveConfig)
def main(config: InteractiveConfig) -> None:
    """Translate, continue or classify what you type: seqtk-interactive checkpoint=PATH [beam=5 nbest=1 …].

    On a terminal it prints a prompt, and each hypothesis with its score. Ctrl-C drops the current line, Ctrl-D ends.
    Through a pipe it reads lines and writes lines, buffer_size at a time.
    """
    check_decoding(config)
    on_terminal = sys.stdin.isatty()
    from seqtk.pipelines import ClassificationPipeline
    from seqtk.utils.text_io import read_lines, text_output

    loaded = load_pipeline(config)
    if isinstance(loaded, ClassificationPipeline):
        with text_output("-") as output:
            _classify(config, loaded, _typed() if on_terminal else read_lines("-"), output, on_terminal=on_terminal)
        return
    pipeline = as_text_pipeline(loaded, config)
    if not on_terminal:
        check_nbest(config, pipeline)
    with text_output("-") as output:
        if on_terminal:
            _converse(config, pipeline, output)
        else:
            _answer(config, pipeline, read_lines("-"), output)


def _typed() -> Iterator[str]:
    """Yields the lines that are typed, until Ctrl-D. Ctrl-C drops the line that is typed."""
    import readline  # noqa: F401  (gives `input` a history and editing)

    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt as interruption:
            if interruption.args:  # another signal, which gives its number
                raise
            print()
            continue
        yield line


def _classify(
    config: InteractiveConfig,
    pipeline: "ClassificationPipeline",
    lines: Iterable[str],
    output: TextIO,
    *,
    on_terminal: bool,
) -> None:
    """Writes the class of each line; on a terminal, with the probability of every class."""
    if config.format == "fairseq":
        raise UserError("format=fairseq: a classifier writes text or json.", "Set format=json for probabilities.")
    texts = (as_pair(line, number) if pipeline.task.pairs else line for number, line in enumerate(lines, 1))
    window = 1 if on_terminal else config.buffer_size
    for found in pipeline.predict(texts, batching=config.batching, window=window, truncate=True, noun="Line"):
        if on_terminal and config.format == "text":
            for label, probability in sorted(found.probabilities.items(), key=lambda item: -item[1]):
                output.write(f"{probability:8.4f}  {label}\n")
        else:
            output.write(as_line(found, config.format) + "\n")
        output.flush()
        if found.truncated:
            print("(The input exceeded the model's limit; its end was cut off.)", file=sys.stderr, flush=True)


def _converse(config: InteractiveConfig, pipeline: "TextPipeline", output: TextIO) -> None:
    """Answers line by line until Ctrl-D. Ctrl-C drops the line that is typed or decoded."""
    import readline  # noqa: F401  (gives `input` a history and editing)

    prompt = "> " if pipeline.free_text else f"{pipeline.task.source_lang}> "
    for number in itertools.count():
        try:
            _answer(config, pipeline, [input(prompt)], output, first=number, scores=config.format == "text")
        except EOFError:
            print()
            return
        except KeyboardInterrupt as interruption:
            if interruption.args:  # another signal, which gives its number
                raise
            print()


def _answer(
    config: InteractiveConfig,
    pipeline: "TextPipeline",
    lines: Iterable[str],
    output: TextIO,
    *,
    first: int = 0,
    scores: bool = False,
) -> None:
    writer = pipeline.writer(detokenize=config.detokenize)
    for translation in pipeline.decode(
        map(pipeline.sentence, lines),
        pipeline.resolve(config),
        batching=config.batching,
        window=config.buffer_size,
        first=first,
    ):
        if scores and (pipeline.free_text or not translation.sentence.is_blank):
            for rank, hypothesis in enumerate(translation.hypotheses):
                output.write(f"{hypothesis.score:8.4f}  {writer.hypothesis(translation, rank)}\n")
        else:
            output.writelines(f"{line}\n" for line in writer.lines(translation, config.format))
        output.flush()
        if translation.truncated:
            print("(The input exceeded the model's limit; its end was cut off.)", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
