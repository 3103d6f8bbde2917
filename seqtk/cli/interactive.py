"""seqtk-interactive: translate, or go on with texts, line by line, at a prompt or through a pipe."""

import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from seqtk.cli.command import command
from seqtk.cli.decoding import Continuing, DecodeConfig, Translating, check_decoding, check_room, load_decoder
from seqtk.utils.errors import UserError

if TYPE_CHECKING:
    from seqtk.generation.decode import Translation
    from seqtk.generation.formats import Writer


@dataclass(frozen=True)
class InteractiveConfig(DecodeConfig):
    """Which model answers, how it searches, and when."""

    buffer_size: int = 1  # lines read before the first of them is answered; at a prompt always 1


@command("seqtk-interactive", InteractiveConfig)
def main(config: InteractiveConfig) -> None:
    """Translate what is typed, or go on with it: seqtk-interactive checkpoint=PATH [beam=5 nbest=1 …].

    On a terminal there is a prompt, and each hypothesis is shown with its score. Ctrl-C drops the line that is typed or
    translated, Ctrl-D ends. Through a pipe it reads lines and writes lines, buffer_size at a time.
    """
    check_decoding(config)
    prompting = sys.stdin.isatty()
    if config.buffer_size < 1:
        raise UserError(f"buffer_size={config.buffer_size} must be at least 1.")
    from seqtk.utils.text_io import read_lines, text_output

    able = load_decoder(config)
    if not prompting and not isinstance(able, Continuing):
        check_room(config)
    with text_output("-") as output:
        if prompting:
            _converse(config, able, output)
        else:
            _answer(config, able, read_lines("-"), output)


def _converse(config: InteractiveConfig, able: "Translating | Continuing", output: TextIO) -> None:
    """Answer what is typed, line by line, until Ctrl-D; Ctrl-C drops a line or what is under way."""
    import readline  # noqa: F401  (gives `input` a history and editing)

    for number in itertools.count():
        try:
            _answer(config, able, [input(able.prompt)], output, first=number, scores=config.format == "text")
        except EOFError:
            print()
            return
        except KeyboardInterrupt as interruption:
            if interruption.args:  # another signal, which gives its number
                raise
            print()


def _answer(
    config: InteractiveConfig,
    able: "Translating | Continuing",
    lines: Iterable[str],
    output: TextIO,
    *,
    first: int = 0,
    scores: bool = False,
) -> None:
    from seqtk.data.plan import BatchingConfig
    from seqtk.generation.decode import in_order

    for translation in in_order(
        map(able.sentence, lines),
        able.decoder,
        batching=BatchingConfig(max_tokens=config.max_tokens, max_sentences=config.max_sentences),
        window=config.buffer_size,
        first=first,
    ):
        scored = scores and not able.decoder.leaves_blank(translation.sentence)
        shown = _with_scores(translation, able.writer) if scored else able.writer.lines(translation, config.format)
        output.writelines(f"{line}\n" for line in shown)
        output.flush()
        if translation.shortened:
            print("(longer than the model can read: its end was cut off)", file=sys.stderr, flush=True)


def _with_scores(translation: "Translation", writer: "Writer") -> Iterator[str]:
    for rank, hypothesis in enumerate(translation.hypotheses):
        yield f"{hypothesis.score:8.4f}  {writer.hypothesis(translation, rank)}"


if __name__ == "__main__":
    main()
