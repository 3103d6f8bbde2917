"""seqtk-import-fairseq: converts a model of fairseq into a model file."""

from dataclasses import dataclass
from pathlib import Path

from seqtk.cli.command import command
from seqtk.cli.import_model import import_model
from seqtk.config.fields import setting
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class ImportConfig:
    """Settings of seqtk-import-fairseq: the checkpoint, its dictionaries, and the file to write."""

    checkpoint: str = setting("", help="A checkpoint file of fairseq 0.6 to 0.12. Nothing in it is executed.")
    data: str = setting(
        "",
        help="The directory with the dict.*.txt files that the model was trained with: its data-bin, or the unpacked "
        "archive.",
    )
    output: str = setting("", help="The model file to write.")
    source_lang: str | None = setting(None, help="The source language. null: as in the checkpoint.")
    target_lang: str | None = setting(None, help="The target language. null: as in the checkpoint.")
    remove_bpe: str | None = setting(
        None,
        help="Subword marker of the training text, such as '@@ ' or sentencepiece. Detokenization removes it. none: "
        "the tokens are words. null: as recorded in data.",
    )


@command("seqtk-import-fairseq", ImportConfig, first="checkpoint")
def main(config: ImportConfig) -> None:
    """Import a fairseq checkpoint: seqtk-import-fairseq checkpoint_best.pt data=DATA-BIN output=model.safetensors.

    Imports translation and language models. Their scores equal fairseq's. If data= contains a sentencepiece.model, the
    imported model includes it.
    """
    if not config.checkpoint:
        raise UserError(
            "checkpoint= is not set.",
            "Usage: seqtk-import-fairseq checkpoint_best.pt data=DATA-BIN output=model.safetensors",
        )
    from seqtk.interop.fairseq import FairseqConfig, FairseqImporter

    options = FairseqConfig(
        data=config.data,
        source_lang=config.source_lang,
        target_lang=config.target_lang,
        remove_bpe=config.remove_bpe,
    )
    import_model(FairseqImporter(options), Path(config.checkpoint), output=config.output)


if __name__ == "__main__":
    main()
