"""`seqtk-prepare`: the published files of a corpus in, the data-bin that the recipes name out."""

import itertools
import sys
from collections.abc import Sequence

from seqtk.cli.command import command, reporting_errors
from seqtk.corpora import CORPORA
from seqtk.corpora.prepare import PrepareConfig, prepare
from seqtk.utils.errors import UserError, nearest
from seqtk.utils.progress import Reporter

PROGRAM = "seqtk-prepare"


@command(PROGRAM, PrepareConfig)
def run(config: PrepareConfig) -> None:
    """Fetch a published corpus and make its data-bin: seqtk-prepare NAME; seqtk-prepare ls lists them.

    `seqtk-prepare enwik8` downloads, checks, unpacks and cuts enwik8 and leaves data-bin/enwik8, which recipes read.
    `source=FOLDER` takes the published files, or what somebody unpacked of them, from the disk. Stopped at any
    moment, the same command goes on where it was.
    """
    if not config.corpus:
        raise UserError("Which corpus? Write seqtk-prepare NAME.", f"Known: {', '.join(CORPORA)}.")
    if config.corpus not in CORPORA:
        raise UserError(f"There is no corpus called '{config.corpus}'.", nearest(config.corpus, CORPORA))
    corpus = CORPORA[config.corpus]
    reporter = Reporter(lambda message: print(message, file=sys.stderr, flush=True), progress=True)
    report = prepare(corpus, config, reporter=reporter)
    print(report.table())
    print(f"wrote {config.destdir or f'data-bin/{corpus.databin}'}")


def listed() -> str:
    """A line for each corpus: its name, what it is, and where its data-bin goes."""
    width = max(map(len, CORPORA))
    return "".join(
        f"{corpus.name:{width}}  {corpus.about} → data-bin/{corpus.databin}\n" for corpus in CORPORA.values()
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command: `ls`, or the name of a corpus and settings."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    names = [
        word
        for before, word in itertools.pairwise(["", *arguments])
        if "=" not in word and not word.startswith("-") and not before.startswith("-")
    ]
    with reporting_errors(PROGRAM):
        if len(names) > 1:
            raise UserError(
                f"{PROGRAM} takes one corpus at a time, not {' and '.join(names)}.",
                f"Write: {' && '.join(f'{PROGRAM} {name}' for name in names)}",
            )
        if arguments == ["ls"]:
            sys.stdout.write(listed())
            sys.stdout.flush()
            return
    run([f"corpus={word}" if word in names else word for word in arguments])


if __name__ == "__main__":
    main()
