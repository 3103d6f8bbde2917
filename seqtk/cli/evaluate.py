"""seqtk-evaluate: the metrics of a trained model, whatever its task."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from seqtk.cli.command import command
from seqtk.cli.loading import LoadConfig, load_models
from seqtk.config.fields import setting
from seqtk.generation.config import SearchConfig
from seqtk.utils.errors import UserError

if TYPE_CHECKING:
    from seqtk.checkpoint.model_file import LoadedModel
    from seqtk.criterions import Criterion
    from seqtk.data.plan import BatchingConfig


@dataclass(frozen=True)
class EvaluateConfig(LoadConfig):
    """Which model is evaluated on which data."""

    data: str | None = setting(None, help="Where the data is. null: where it was in training.")
    split: str = setting("test", help="The split of the data.")
    input: str | None = setting(None, help="A text file to evaluate on instead. -: standard input.")
    reference: str | None = setting(
        None, help="For input=: what the model should produce, line by line. Several files, separated by commas."
    )
    metrics: tuple[str, ...] | None = setting(None, help="The metrics. null: those of the task that are available.")
    decode: bool = setting(True, help="Compute the model's outputs, for metrics that need them.")
    search: SearchConfig = SearchConfig()
    max_tokens: int | None = setting(4096, at_least=1, help="Examples × longest of a batch. null: no limit.")
    max_sentences: int | None = setting(64, at_least=1, help="Examples in a batch. null: no limit.")
    format: Literal["text", "json"] = setting("text", help="The format of the report.")


@command("seqtk-evaluate", EvaluateConfig, first="checkpoint")
def main(config: EvaluateConfig) -> None:
    """Evaluate a model of any task: seqtk-evaluate PATH [data=DATA] [split=test | input=FILE [reference=FILE]].

    Prints each metric with its unit. Use user_dir= for a model of a plug-in.
    """
    _check(config)
    (loaded,), _ = load_models(config)
    with _data(config, loaded) as (split, references):
        report = loaded.task.evaluate(
            loaded.model,
            split,
            criterion=_criterion(loaded),
            names=config.metrics,
            decode=config.decode,
            search=config.search,
            references=references,
            batching=_batching(config, loaded),
            bf16=config.precision == "bf16",
            progress=True,
        )
    print(json.dumps(report.to_dict(), ensure_ascii=False) if config.format == "json" else "\n".join(report.lines()))


def _check(config: EvaluateConfig) -> None:
    if config.input is not None and config.data is not None:
        raise UserError("input= and data= are both set.", "Evaluate on a text or on a split of the data, not on both.")
    if config.reference is not None and config.input is None:
        raise UserError("reference= belongs to input=.", "A split has references of its own.")
    if "," in config.checkpoint and not Path(config.checkpoint).exists():
        raise UserError(f"checkpoint={config.checkpoint}: seqtk-evaluate takes one model.")
    config.search.check()


def _criterion(loaded: "LoadedModel") -> "Criterion":
    """The criterion of training, so that `loss` is what training reports; cross entropy for imported models."""
    from seqtk.config import schema
    from seqtk.criterions import CriterionConfig, criterions
    from seqtk.criterions.cross_entropy import CrossEntropyConfig

    tree = loaded.config.get("criterion")
    config = CrossEntropyConfig() if tree is None else schema.from_dict(CriterionConfig, tree, legacy=True)
    return criterions.build(config)


def _batching(config: EvaluateConfig, loaded: "LoadedModel") -> "BatchingConfig":
    from seqtk.data.plan import BatchingConfig

    streams = loaded.config.get("batch", {}).get("streams") if loaded.task.continuous else None
    return BatchingConfig(max_tokens=config.max_tokens, max_sentences=config.max_sentences, streams=streams)


@contextlib.contextmanager
def _data(config: EvaluateConfig, loaded: "LoadedModel") -> "Iterator[tuple[str, list[list[str]]]]":
    """Connects the task with the data. Yields the split and the further sets of references."""
    from seqtk.data.corpus import find_text
    from seqtk.data.sources import DataBinSource, GivenText
    from seqtk.data.temporary_databin import encode_text
    from seqtk.tasks.language_modeling import LanguageModelingTask
    from seqtk.tasks.text import TextTask
    from seqtk.utils.text_io import read_lines

    task = loaded.task
    if not isinstance(task, TextTask):
        if config.input is not None or config.data is not None:
            raise UserError("This task reads its data in its own way.", "Leave input= and data= out.")
        yield config.split, []
    elif config.input is None:
        if config.data is not None:
            task.open(config.data)
        yield config.split, []
    elif isinstance(task, LanguageModelingTask):
        with tempfile.TemporaryDirectory(prefix="seqtk-evaluate-") as folder:
            text = Path(folder) / "input"
            if config.input == "-":
                text.write_text("".join(f"{line}\n" for line in read_lines("-")), encoding="utf-8")
            else:
                text = find_text(config.input, None)
            made = encode_text(text, Path(folder) / "made", vocabulary=task.vocabulary, tokenizer=task.tokenizer)
            task.open(DataBinSource(data=str(made.directory)))
            yield "test", []
    else:
        references = [] if config.reference is None else config.reference.split(",")
        sides = [list(read_lines(path)) for path in (config.input, *references)]
        for path, lines in zip(references, sides[1:], strict=True):
            if len(lines) != len(sides[0]):
                raise UserError(
                    f"reference={path} has {len(lines):,} lines, input={config.input} has {len(sides[0]):,}.",
                    "Each line of the input needs one reference.",
                )
        languages = {key: getattr(task, key, None) for key in ("source_lang", "target_lang")}
        task.open(GivenText(*sides[:2], **languages, name=f"input={config.input}"))
        yield "input", sides[2:]


if __name__ == "__main__":
    main()
