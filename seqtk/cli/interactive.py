"""seqtk-interactive: translate, or go on with texts, line by line, at a prompt or through a pipe."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from seqtk.cli.command import command
from seqtk.cli.decoding import Continuing, DecodeConfig, check_decoding, check_room, load_decoder
from seqtk.errors import UserError

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

    On a terminal there is a prompt, and each hypothesis is shown with its score; end with Ctrl-D. Through a pipe it
    reads lines and writes lines, buffer_size at a time.
    """
    check_decoding(config)
    prompting = sys.stdin.isatty()
    if config.buffer_size < 1:
        raise UserError(f"buffer_size={config.buffer_size} must be at least 1.")
    from seqtk.data.batching import BatchingConfig
    from seqtk.generation.decode import in_order
    from seqtk.generation.lines import read_lines, text_output

    able = load_decoder(config)
    if not prompting and not isinstance(able, Continuing):
        check_room(config)
    writer = able.writer
    lines = _prompt(able.prompt) if prompting else read_lines("-")
    with text_output("-") as output:
        for translation in in_order(
            map(able.sentence, lines),
            able.decoder,
            batching=BatchingConfig(max_tokens=config.max_tokens, max_sentences=config.max_sentences),
            window=1 if prompting else config.buffer_size,
        ):
            shown = _with_scores if prompting and config.format == "text" else _plain
            output.writelines(f"{line}\n" for line in shown(translation, writer, config))
            output.flush()
            if translation.shortened:
                print("(longer than the model can read: its end was cut off)", file=sys.stderr, flush=True)


def _plain(translation: "Translation", writer: "Writer", config: InteractiveConfig) -> Iterator[str]:
    return writer.lines(translation, config.format)


def _with_scores(translation: "Translation", writer: "Writer", config: InteractiveConfig) -> Iterator[str]:
    for rank, hypothesis in enumerate(translation.hypotheses):
        yield f"{hypothesis.score:8.4f}  {writer.hypothesis(translation, rank)}"


def _prompt(prompt: str) -> Iterator[str]:
    """What is typed, line by line, until Ctrl-D."""
    import readline  # noqa: F401  (gives `input` a history and editing)

    while True:
        try:
            yield input(prompt)
        except EOFError:
            print()
            return


if __name__ == "__main__":
    main()
