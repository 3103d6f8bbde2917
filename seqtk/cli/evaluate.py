"""seqtk-evaluate: computes the metrics of a trained model of any task."""

import itertools
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from seqtk.cli.command import command
from seqtk.cli.decoding import check_no_search
from seqtk.cli.loading import LoadConfig, check_checkpoint, check_output, check_split, load_pipeline, split_paths
from seqtk.cli.plot import check_picture, literal, load_pyplot
from seqtk.config.fields import setting
from seqtk.data.labelled_text import Columns
from seqtk.generation.config import SearchConfig
from seqtk.utils.errors import UserError
from seqtk.utils.files import atomic_file

if TYPE_CHECKING:
    from seqtk.tasks.classification import ClassReport


@dataclass(frozen=True)
class EvaluateConfig(SearchConfig, LoadConfig):
    """Settings of seqtk-evaluate: the model, the data, and the metrics."""

    data: str | None = setting(None, help="Location of the data, such as a data-bin. null: the training data.")
    split: str | None = setting(None, help="The split of data= to evaluate on. null: test. Not possible with input=.")
    input: str | None = setting(
        None,
        help="Text file to evaluate on instead of data=. For a classifier: TSV, CSV or JSON lines. -: standard input.",
    )
    columns: Columns = Columns()
    reference: str | None = setting(
        None,
        help="With input=: the file with the references, one per line. Several files are separated by commas.",
    )
    metrics: tuple[str, ...] | None = setting(None, help="The metrics. null: the available metrics of the task.")
    decode: bool = setting(True, help="Decode the model's outputs, for metrics such as BLEU.")
    max_tokens: int | None = setting(
        4096, at_least=1, help="Maximum size of a batch: examples × tokens of the longest example. null: no limit."
    )
    max_sentences: int | None = setting(64, at_least=1, help="Maximum number of examples in a batch. null: no limit.")
    truncate: bool | None = setting(
        None,
        help="For classifiers: truncate examples that exceed the model's maximum length. false: they are an error. "
        "null: as in training.",
    )
    bootstrap: int = setting(
        1000,
        at_least=0,
        at_most=1_000_000,
        help="For classifiers: the number of bootstrap samples for 95 % intervals. 0: no intervals.",
    )
    confusion: str | None = setting(
        None,
        help="For classifiers: file for a picture of the confusion matrix (.png, .svg or .pdf).",
    )
    format: Literal["text", "json"] = setting("text", help="The format of the report.")

    renamed: ClassVar[dict[str, str]] = {f"search.{name}": name for name in SearchConfig.__dataclass_fields__}


_OF_CLASSIFIERS = ("columns", "confusion", "truncate", "bootstrap")


@command("seqtk-evaluate", EvaluateConfig, first="checkpoint")
def main(config: EvaluateConfig) -> None:
    """Evaluate a model with the metrics of its task: seqtk-evaluate PATH [split=test | input=FILE].

    Prints each metric with its unit. For a classifier, also prints 95 % intervals, precision, recall and F1 of each
    class, and the confusion matrix. Set user_dir= for a model of a plug-in.
    """
    check_checkpoint(config)
    config.check()
    check_split(config.split, input=config.input)
    if config.input is None and config.columns != Columns():
        raise UserError(
            "columns.text=, columns.second= and columns.label= require input=.", "Set input=, or remove the columns."
        )
    if config.confusion is not None:
        check_picture("confusion", config.confusion)
        check_output(Path(config.confusion), output="confusion", checkpoint=config.checkpoint, input=config.input)
        load_pyplot("confusion=")
    from seqtk.data.plan import BatchingConfig
    from seqtk.tasks.classification import ClassificationTask, ClassReport

    pipeline = load_pipeline(config)
    if not isinstance(pipeline.task, ClassificationTask):
        for field in fields(config):
            if field.name in _OF_CLASSIFIERS and getattr(config, field.name) != field.default:
                raise UserError(f"{field.name}= has an effect only on classifiers.", "Remove it.")
    if not pipeline.task.has_outputs():
        check_no_search(config)
    if config.truncate is not None:
        pipeline.task.config = replace(pipeline.task.config, truncate=config.truncate)
    report = pipeline.evaluate(
        config.data,
        split=config.split or "test",
        input=config.input,
        columns=config.columns,
        references=split_paths(config.reference) if config.reference is not None else (),
        names=config.metrics,
        decode=config.decode,
        search=config,
        batching=BatchingConfig(max_tokens=config.max_tokens, max_sentences=config.max_sentences),
        resamples=config.bootstrap,
        progress=True,
    )
    if config.confusion is not None and isinstance(report, ClassReport):
        plot_confusion(report, config.confusion)
    print(json.dumps(report.to_dict(), ensure_ascii=False) if config.format == "json" else "\n".join(report.lines()))


def plot_confusion(report: "ClassReport", output: str) -> None:
    """Plots a confusion matrix. Rows are true classes, columns are predicted classes; colors are fractions of a row."""
    pyplot = load_pyplot("confusion=")
    count_CC, classes = report.confusion_CC, list(map(literal, report.classes))
    share_CC = count_CC / count_CC.sum(1, keepdims=True).clip(min=1)
    size = min(4 + 0.45 * len(classes), 40)
    figure, axes = pyplot.subplots(figsize=(size, size), layout="constrained")
    axes.imshow(share_CC, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=90 if max(map(len, classes)) > 4 else 0)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("prediction")
    axes.set_ylabel("class")
    if len(classes) <= 20:
        for row, column in itertools.product(range(len(classes)), repeat=2):
            color = "white" if share_CC[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count_CC[row, column]:,}", ha="center", va="center", color=color, fontsize=8)
    with atomic_file(output) as path:
        figure.savefig(path, format=Path(output).suffix.removeprefix("."), dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
