"""seqtk-import-fairseq: a model that fairseq trained, as one file of ours."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from seqtk.cli.command import command
from seqtk.utils.errors import UserError, how_many

if TYPE_CHECKING:
    from seqtk.interop.fairseq import Imported
    from seqtk.interop.fairseq_lm import ImportedLanguageModel
    from seqtk.tasks import Task
    from seqtk.tasks.language_modeling import LanguageModelingTask
    from seqtk.tasks.translation import TranslationTask


@dataclass(frozen=True)
class ImportConfig:
    """Which checkpoint, with which dictionaries, and where it goes."""

    checkpoint: str = ""  # a checkpoint file of fairseq's (0.6 to 0.12); nothing in it is executed
    data: str = ""  # the directory with the dict.*.txt it was trained with: its data-bin, or the unpacked archive
    output: str = ""  # the file to write, for seqtk-generate and the other commands
    source_lang: str | None = None  # default: what the checkpoint says
    target_lang: str | None = None  # the same


@command("seqtk-import-fairseq", ImportConfig, first="checkpoint")
def main(config: ImportConfig) -> None:
    """Import a model: seqtk-import-fairseq checkpoint_best.pt data=DATA-BIN output=model.safetensors.

    Translation and language models; their scores are fairseq's. A sentencepiece.model in data goes into the file too.
    """
    for key in ("checkpoint", "data", "output"):
        if not getattr(config, key):
            raise UserError(f"{key} is not set.", "seqtk-import-fairseq --help says what it is.")
    from seqtk.interop.fairseq import import_fairseq
    from seqtk.interop.fairseq_lm import ImportedLanguageModel

    imported = import_fairseq(config.checkpoint)
    if isinstance(imported, ImportedLanguageModel):
        text = _language_task(config, imported)
        parameters = _write(Path(config.output), imported, text, checkpoint=Path(config.checkpoint))
        about = f"language model of {parameters:,} parameters, vocabulary of {imported.vocabulary:,}"
    else:
        pairs = _translation_task(config, imported)
        parameters = _write(Path(config.output), imported, pairs, checkpoint=Path(config.checkpoint))
        about = (
            f"{pairs.source_lang}-{pairs.target_lang} Transformer of {parameters:,} parameters, "
            f"vocabularies of {imported.source_vocabulary:,} and {imported.target_vocabulary:,}"
        )
    print(f"{about}, trained for {how_many(imported.updates, 'update')}")
    print(f"wrote {config.output}")


def _language_task(config: ImportConfig, imported: "ImportedLanguageModel") -> "LanguageModelingTask":
    """The task over the data's dictionary. Raises UserError unless it is of the size of the model's table."""
    from seqtk.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask

    task = LanguageModelingTask(
        LanguageModelingConfig(
            data=config.data, tokens_per_sample=imported.tokens_per_sample, break_mode=imported.break_mode
        )
    )
    _check_size(config, "dict.txt", len(task.vocabulary), imported.vocabulary)
    return task


def _translation_task(config: ImportConfig, imported: "Imported") -> "TranslationTask":
    """The task over the data's dictionaries. Raises UserError unless they are of the sizes of the model's tables."""
    from seqtk.tasks.translation import TranslationConfig, TranslationTask

    task = TranslationTask(
        TranslationConfig(
            data=config.data,
            source_lang=config.source_lang or imported.source_lang,
            target_lang=config.target_lang or imported.target_lang,
        )
    )
    for lang, vocabulary, rows in (
        (task.source_lang, task.source_vocabulary, imported.source_vocabulary),
        (task.target_lang, task.target_vocabulary, imported.target_vocabulary),
    ):
        _check_size(config, f"the dictionary of {lang}", len(vocabulary), rows)
    return task


def _check_size(config: ImportConfig, dictionary: str, tokens: int, rows: int) -> None:
    if tokens != rows:
        raise UserError(
            f"{config.data}: {dictionary} has {tokens:,} tokens, the model {rows:,}.",
            "data= has to be the directory with the dictionaries that the model was trained with.",
        )


def _write(output: Path, imported: "Imported | ImportedLanguageModel", task: "Task", *, checkpoint: Path) -> int:
    """Write the export; the number of its parameters."""
    from seqtk.checkpoint import model_file
    from seqtk.checkpoint.model_file import tensors_of
    from seqtk.criterions.cross_entropy import LabelSmoothedConfig
    from seqtk.training.config import TrainConfig

    model = imported.model()
    output.parent.mkdir(parents=True, exist_ok=True)
    model_file.save(
        output,
        tensors_of(model),
        config=replace(
            TrainConfig(),
            task=task.config,
            model=imported.config,
            criterion=LabelSmoothedConfig(label_smoothing=imported.label_smoothing),
        ),
        assets=task.assets(),
        info={"update": imported.updates, "imported_from": checkpoint.name},
    )
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
