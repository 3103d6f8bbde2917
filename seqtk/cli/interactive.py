"""seqtk-interactive: translates, continues or classifies lines from a terminal or a pipe."""

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from seqtk.cli.classify import as_line, as_pair
from seqtk.cli.command import command
from seqtk.cli.decoding import DecodeConfig, as_text_pipeline, check_decoding, check_nbest, check_no_search
from seqtk.cli.loading import load_pipeline
from seqtk.config.fields import setting
from seqtk.utils.errors import UserError

if TYPE_CHECKING:
    from seqtk.pipelines import ClassificationPipeline, TextPipeline

Answer = Callable[[Sequence[str], int], Iterator[tuple[str, bool]]]
"""A function of (lines, number of the first line). Yields (output, True if the line was truncated) for each line."""


@dataclass(frozen=True)
class InteractiveConfig(DecodeConfig):
    """Settings of seqtk-interactive: the model, the search, and the buffer."""

    buffer_size: int = setting(
        1, at_least=1, help="Number of lines to read before the first output is written. Always 1 on a terminal."
    )

    advice: ClassVar[dict[str, str]] = {
        "input": "Input comes from a terminal or a pipe. For a file, use seqtk-generate or seqtk-classify with input=."
    }


@command("seqtk-interactive", InteractiveConfig)
def main(config: InteractiveConfig) -> None:
    """Translate, continue or classify the lines you type: seqtk-interactive checkpoint=PATH [beam=5 nbest=1 …].

    On a terminal, it prints a prompt, and each hypothesis with its score. Ctrl-C discards the current line; Ctrl-D ends
    the program. From a pipe, it reads buffer_size lines, then writes their outputs. For an invalid line, it prints an
    error message and, with a pipe, an empty line (format=json: null). Then it reads the next line.
    """
    check_decoding(config)
    on_terminal = sys.stdin.isatty()
    from seqtk.pipelines import ClassificationPipeline
    from seqtk.utils.text_io import read_raw_lines, text_output

    loaded, prompt = load_pipeline(config), "> "
    if isinstance(loaded, ClassificationPipeline):
        answer = _classifier(config, loaded, scores=on_terminal and config.format == "text")
    else:
        pipeline = as_text_pipeline(loaded, config)
        if not on_terminal:
            check_nbest(config, pipeline)
        prompt = "> " if pipeline.free_text else f"{pipeline.task.source_lang}> "
        answer = _decoder(config, pipeline, scores=on_terminal and config.format == "text")
    lines = _typed(prompt) if on_terminal else read_raw_lines("-")
    size = 1 if on_terminal else config.buffer_size
    number = 0
    with text_output("-") as output:
        while group := list(itertools.islice(lines, size)):
            try:
                for text, truncated in _answered(answer, group, number, failed=None if on_terminal else config.format):
                    output.write(text)
                    output.flush()
                    if truncated:
                        print(
                            "(The input was too long for the model and was truncated at the end.)",
                            file=sys.stderr,
                            flush=True,
                        )
            except KeyboardInterrupt as interruption:
                if not on_terminal or interruption.args:  # a signal other than Ctrl-C; its number is in `args`
                    raise
                print()
            number += len(group)


def _typed(prompt: str) -> Iterator[bytes]:
    """Yields the lines that the user types, as UTF-8, until Ctrl-D. Ctrl-C discards the current line."""
    import readline  # noqa: F401  (gives `input` a history and editing)

    while True:
        try:
            line = input(prompt).encode()
        except EOFError:
            print()
            return
        except UnicodeError:
            print("The line is not UTF-8.", file=sys.stderr)
            continue
        except KeyboardInterrupt as interruption:
            if interruption.args:
                raise
            print()
            continue
        yield line


def _answered(
    answer: Answer, lines: Sequence[bytes], first: int, *, failed: Literal["text", "fairseq", "json"] | None
) -> list[tuple[str, bool]]:
    """Returns the outputs for `lines`. An error in one line is printed, and does not affect other lines.

    `failed` is the format of the empty output for an invalid line. None: an invalid line has no output.
    """
    from seqtk.utils.text_io import decode_line

    try:
        texts = [decode_line(line, "standard input", number) for number, line in enumerate(lines, first + 1)]
        return list(answer(texts, first))
    except UserError as error:
        if len(lines) > 1:
            each = (_answered(answer, [line], number, failed=failed) for number, line in enumerate(lines, first))
            return list(itertools.chain.from_iterable(each))
        print(error, file=sys.stderr, flush=True)
        return [({"text": "\n", "json": "null\n"}[failed], False)] if failed in ("text", "json") else []


def _classifier(config: InteractiveConfig, pipeline: "ClassificationPipeline", *, scores: bool) -> Answer:
    """Returns a function that returns the class of each line or, with `scores`, the probabilities of all classes.

    Raises UserError if a setting has no effect on classifiers.
    """
    check_no_search(config)
    format = config.format
    if format == "fairseq":
        raise UserError("format=fairseq is not possible for classifiers.", "Set format=text or format=json.")

    def answer(lines: Sequence[str], first: int) -> Iterator[tuple[str, bool]]:
        texts = (as_pair(line, number) if pipeline.task.pairs else line for number, line in enumerate(lines, first + 1))
        for found in pipeline.predict(
            texts, batching=config.batching, window=len(lines), truncate=True, noun="Line", first=first + 1
        ):
            ranked = sorted(found.probabilities.items(), key=lambda item: -item[1])
            table = "".join(f"{probability:8.4f}  {label}\n" for label, probability in ranked)
            yield table if scores else f"{as_line(found, format)}\n", found.truncated

    return answer


def _decoder(config: InteractiveConfig, pipeline: "TextPipeline", *, scores: bool) -> Answer:
    """Returns a function that returns the outputs for each line or, with `scores`, all hypotheses with scores."""
    writer, search = pipeline.writer(detokenize=config.detokenize), pipeline.resolve(config)

    def answer(lines: Sequence[str], first: int) -> Iterator[tuple[str, bool]]:
        for found in pipeline.decode(
            map(pipeline.sentence, lines), search, batching=config.batching, window=len(lines), first=first
        ):
            ranked = enumerate(found.hypotheses)
            if scores and (pipeline.free_text or not found.sentence.is_blank):
                text = "".join(f"{each.score:8.4f}  {writer.hypothesis(found, rank)}\n" for rank, each in ranked)
            else:
                text = "".join(f"{line}\n" for line in writer.lines(found, config.format))
            yield text, found.truncated

    return answer


if __name__ == "__main__":
    main()
