"""`seqtk-preprocess`: encodes text or labeled files as a data-bin."""

import sys

from seqtk.cli.command import command
from seqtk.data.labelled import preprocess_labelled
from seqtk.data.labelled_arrays import is_array_file
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.utils.progress import Reporter


@command("seqtk-preprocess", PreprocessConfig)
def main(config: PreprocessConfig) -> None:
    """Turn text or labeled files into a data-bin: seqtk-preprocess train=TEXT destdir=DATA-BIN [key=value …].

    `seqtk-preprocess source_lang=en target_lang=de train=corpus/train valid=corpus/valid destdir=data-bin/corpus` reads
    corpus/train.en, corpus/train.de and so on (or with .gz, .bz2, .xz), builds a joint vocabulary, and encodes them.

    Without target_lang=, the text is monolingual, for a language model, and may have other kinds of tokens:
    `seqtk-preprocess tokens=bytes train=enwik8/train valid=enwik8/valid destdir=data-bin/enwik8`.

    With columns.label=, it makes a labeled data-bin from TSV, CSV or JSON lines, or from arrays of pixels or tokens:
    `seqtk-preprocess columns.text=review columns.label=stars train=train.csv valid=valid.csv destdir=data-bin/reviews`.
    `seqtk-preprocess columns.text=image columns.label=label train=train.npz test=test.npz destdir=data-bin/images`.
    """
    reporter = Reporter(lambda message: print(message, file=sys.stderr, flush=True), progress=True)
    if config.columns is None and not any(map(is_array_file, config.prefixes().values())):
        print(preprocess(config, reporter=reporter).table())
    else:
        print(preprocess_labelled(config, reporter=reporter))
    print(f"wrote {config.destdir}")


if __name__ == "__main__":
    main()
