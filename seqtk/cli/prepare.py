"""`seqtk-prepare`: makes the data-bin of a corpus that recipes use."""

import itertools
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seqtk.cli.command import command, reporting_errors
from seqtk.corpora import CORPORA, LABELLED_SETS, demo
from seqtk.corpora.prepare import PrepareConfig, prepare
from seqtk.utils.errors import UserError
from seqtk.utils.progress import Reporter
from seqtk.utils.suggestions import nearest

PROGRAM = "seqtk-prepare"
DEMO = "demo"
NAMES = (*CORPORA, *LABELLED_SETS, DEMO)


@command(PROGRAM, PrepareConfig)
def run(config: PrepareConfig) -> None:
    """Downloads a published corpus and makes its data-bin: seqtk-prepare NAME. `seqtk-prepare ls` lists the corpora.

    `seqtk-prepare enwik8` downloads, checks, unpacks and splits enwik8 and makes data-bin/enwik8, which recipes read.
    `source=FOLDER` reads the published files, or the files unpacked from them, from the disk. If the command is
    interrupted, run it again to continue. Labeled sets, generated sets and the demo corpus have different settings:
    see `seqtk-prepare NAME --help`.
    """
    if not config.corpus:
        raise UserError("No corpus is set. Usage: seqtk-prepare NAME", f"NAME is one of {', '.join(NAMES)}.")
    if config.corpus not in CORPORA:
        raise UserError(f"There is no corpus called '{config.corpus}'.", nearest(config.corpus, NAMES))
    corpus = CORPORA[config.corpus]
    report = prepare(corpus, config, reporter=_reporter())
    print(report.table())
    print(f"wrote {config.destdir or f'data-bin/{corpus.databin}'}")


@command(f"{PROGRAM} {DEMO}", demo.DemoConfig)
def run_demo(config: demo.DemoConfig) -> None:
    """Makes the demo corpus: English and German sentences of a small grammar, in seconds, without a download.

    `seqtk-prepare demo` makes data-bin/demo, which recipe=demo reads. (recipe=demo also makes it if it is missing.)
    """
    report = demo.prepare(config, reporter=_reporter())
    print(report.table())
    print(f"wrote {config.destdir}")


def labelled_command(name: str) -> Callable[..., None]:
    """Returns the command `seqtk-prepare NAME` of a labeled set, with the settings of this set."""
    labelled = LABELLED_SETS[name]

    def run_labelled(config: Any) -> None:
        destination = Path(config.destdir or f"data-bin/{name}")
        print(labelled.make(config, destination, reporter=_reporter()))
        recipe = getattr(config, "recipe", None) or labelled.recipe
        data = shlex.quote(f"task.data={destination}")
        print(f"wrote {destination}; train on it: seqtk-train recipe={recipe} {data}")

    run_labelled.__doc__ = f"Makes data-bin/{name}: {labelled.about}."
    return command(f"{PROGRAM} {name}", labelled.config)(run_labelled)


def _reporter() -> Reporter:
    return Reporter(lambda message: print(message, file=sys.stderr, flush=True), progress=True)


def listed() -> str:
    """Returns one line per corpus: name, description and data-bin folder."""
    rows = [(corpus.name, corpus.about, f"data-bin/{corpus.databin}") for corpus in CORPORA.values()]
    rows += [(name, labelled.about, f"data-bin/{name}") for name, labelled in LABELLED_SETS.items()]
    rows.append((DEMO, "English to German sentences of a small grammar, generated on this machine", demo.DESTINATION))
    width = max(len(name) for name, _, _ in rows)
    return "".join(f"{name:{width}}  {about} → {place}\n" for name, about, place in rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Download and prepare a published corpus: seqtk-prepare ls | NAME [key=value …]."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    names = [
        word
        for before, word in itertools.pairwise(["", *arguments])
        if "=" not in word and not word.startswith(("-", "~")) and not before.startswith("-")
    ]
    with reporting_errors(PROGRAM):
        if len(names) > 1:
            raise UserError(
                f"{PROGRAM} makes one corpus at a time, not {' and '.join(names)}.",
                f"Run: {' && '.join(f'{PROGRAM} {name}' for name in names)}",
            )
        if arguments == ["ls"]:
            sys.stdout.write(listed())
            sys.stdout.flush()
            return
    keyed = [word for word in arguments if word.startswith("corpus=")]
    for name in (*names, *(word.removeprefix("corpus=") for word in keyed)):
        if name in LABELLED_SETS or name == DEMO:
            chosen = run_demo if name == DEMO else labelled_command(name)
            chosen([word for word in arguments if word not in (*names, *keyed)])
            return
    run([f"corpus={word}" if word in names else word for word in arguments])


if __name__ == "__main__":
    main()
