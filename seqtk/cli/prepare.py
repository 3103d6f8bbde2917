"""`seqtk-prepare`: makes the data-bin of a corpus that the recipes name."""

import itertools
import sys
from collections.abc import Sequence

from seqtk.cli.command import command, reporting_errors
from seqtk.corpora import CORPORA, demo
from seqtk.corpora.prepare import PrepareConfig, prepare
from seqtk.utils.errors import UserError, nearest
from seqtk.utils.progress import Reporter

PROGRAM = "seqtk-prepare"
DEMO = "demo"


@command(PROGRAM, PrepareConfig)
def run(config: PrepareConfig) -> None:
    """Downloads a published corpus and makes its data-bin: seqtk-prepare NAME. `seqtk-prepare ls` lists the corpora.

    `seqtk-prepare enwik8` downloads, checks, unpacks and splits enwik8 and makes data-bin/enwik8, which recipes read.
    `source=FOLDER` takes the published files, or what was unpacked from them, from the disk. A command that was
    interrupted continues when it is run again. `seqtk-prepare demo` makes the demo corpus (see its --help).
    """
    if not config.corpus:
        raise UserError("Which corpus? Write seqtk-prepare NAME.", f"Known: {', '.join([*CORPORA, DEMO])}.")
    if config.corpus not in CORPORA:
        raise UserError(f"There is no corpus called '{config.corpus}'.", nearest(config.corpus, [*CORPORA, DEMO]))
    corpus = CORPORA[config.corpus]
    report = prepare(corpus, config, reporter=_reporter())
    print(report.table())
    print(f"wrote {config.destdir or f'data-bin/{corpus.databin}'}")


@command(f"{PROGRAM} {DEMO}", demo.DemoConfig)
def run_demo(config: demo.DemoConfig) -> None:
    """Makes the demo corpus: English and German sentences of a small grammar, in seconds, without a download.

    `seqtk-prepare demo` makes data-bin/demo, which recipe=demo reads (and makes itself if it is missing).
    """
    report = demo.prepare(config, reporter=_reporter())
    print(report.table())
    print(f"wrote {config.destdir}")


def _reporter() -> Reporter:
    return Reporter(lambda message: print(message, file=sys.stderr, flush=True), progress=True)


def listed() -> str:
    """Lists the corpora, one line each: name, description and data-bin folder."""
    rows = [(corpus.name, corpus.about, f"data-bin/{corpus.databin}") for corpus in CORPORA.values()]
    rows.append((DEMO, "English to German sentences of a small grammar, made on this machine", demo.DESTINATION))
    width = max(len(name) for name, _, _ in rows)
    return "".join(f"{name:{width}}  {about} → {place}\n" for name, about, place in rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command: `ls`, or the name of a corpus and settings."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    names = [
        word
        for before, word in itertools.pairwise(["", *arguments])
        if "=" not in word and not word.startswith(("-", "~")) and not before.startswith("-")
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
    if DEMO in (*names, *(word.removeprefix("corpus=") for word in arguments if word.startswith("corpus="))):
        run_demo([word for word in arguments if word not in (DEMO, f"corpus={DEMO}")])
        return
    run([f"corpus={word}" if word in names else word for word in arguments])


if __name__ == "__main__":
    main()
