"""`seqtk-preprocess`: text in, data-bin directory out."""

import sys

from seqtk.cli.command import command
from seqtk.data.preprocess import PreprocessConfig, preprocess


@command("seqtk-preprocess", PreprocessConfig)
def main(config: PreprocessConfig) -> None:
    """Make a data-bin directory from raw or tokenised text.

    `seqtk-preprocess source_lang=en target_lang=de train=corpus/train valid=corpus/valid destdir=data-bin/corpus` reads
    corpus/train.en, corpus/train.de and so on (or the same with .gz), learns a joint vocabulary, and encodes.
    Without target_lang= the text is one-sided, as for a language model, and may be encoded by other tokens:
    `seqtk-preprocess tokens=bytes train=enwik8/train valid=enwik8/valid destdir=data-bin/enwik8`.
    """
    report = preprocess(config, notify=lambda message: print(message, file=sys.stderr, flush=True), progress=True)
    print(report.table())
    print(f"wrote {config.destdir}")


if __name__ == "__main__":
    main()
