"""seqtk-classify: classifies each line of a text."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from seqtk.cli.command import command
from seqtk.cli.loading import LoadConfig, check_checkpoint, check_not_input, load_pipeline
from seqtk.config.fields import setting
from seqtk.utils.errors import UserError, how_many

if TYPE_CHECKING:
    from seqtk.pipelines import Classification, ClassificationPipeline


@dataclass(frozen=True)
class ClassifyConfig(LoadConfig):
    """Settings of seqtk-classify: the model, the texts to classify, and the format of the output."""

    input: str = setting("-", help="A text file with one example per line. -: standard input.")
    output: str = setting("-", help="The file to write. -: standard output.")
    format: Literal["text", "json"] = setting(
        "text", help="text: only the class. json: also the probability of each class."
    )
    truncate: bool | None = setting(
        None,
        help="Truncate lines that exceed the model's maximum length. false: they are an error. null: as in training.",
    )
    max_tokens: int | None = setting(
        4096, at_least=1, help="Maximum size of a batch: lines × tokens of the longest line. null: no limit."
    )
    max_sentences: int | None = setting(64, at_least=1, help="Maximum number of lines in a batch. null: no limit.")
    buffer_size: int = setting(1024, at_least=1, help="Number of lines to read before the first output is written.")


@command("seqtk-classify", ClassifyConfig, first="checkpoint")
def main(config: ClassifyConfig) -> None:
    """Classify lines of text: seqtk-classify PATH [input=FILE|-] [format=json].

    Writes one line for each input line, in order. A matching model reads two texts per line, separated by a tab.
    """
    check_checkpoint(config)
    check_not_input(Path(config.output), checkpoint=config.checkpoint, input=config.input)
    from seqtk.data.plan import BatchingConfig
    from seqtk.utils.text_io import text_output

    pipeline = load_classifier(config)
    batching = BatchingConfig(max_tokens=config.max_tokens, max_sentences=config.max_sentences)
    truncated = 0
    with text_output(config.output) as output:
        for found in pipeline.predict(
            read_texts(config.input, pairs=pipeline.task.pairs),
            truncate=config.truncate,
            batching=batching,
            window=config.buffer_size,
            noun="Line",
        ):
            output.write(as_line(found, config.format) + "\n")
            truncated += found.truncated
            if config.buffer_size == 1:
                output.flush()
    if truncated:
        print(f"Truncated to the model's maximum length: {how_many(truncated, 'line')}.", file=sys.stderr)


def load_classifier(config: LoadConfig) -> "ClassificationPipeline":
    """Loads the classifier, or the ensemble, in `config.checkpoint`. Raises UserError if it is not a classifier."""
    from seqtk.pipelines import ClassificationPipeline
    from seqtk.tasks.masked_lm import MaskedLMTask

    pipeline = load_pipeline(config)
    if not isinstance(pipeline, ClassificationPipeline):
        fix = "To use a model that writes text, run seqtk-generate."
        if isinstance(pipeline.task, MaskedLMTask):
            fix = f"It is a masked language model. Train a classifier from it: init_from={config.checkpoint}."
        raise UserError(f"checkpoint={config.checkpoint} is not a classifier.", fix)
    return pipeline


def read_texts(path: str, *, pairs: bool) -> Iterator[str | tuple[str, str]]:
    """Yields the texts in a file: one per line, or two separated by a tab.

    Raises UserError if a line of a pair does not have exactly one tab.
    """
    from seqtk.utils.text_io import read_lines

    for number, line in enumerate(read_lines(path), 1):
        yield as_pair(line, number) if pairs else line


def as_pair(line: str, number: int) -> tuple[str, str]:
    """Returns the two texts of a line. Raises UserError unless it has exactly one tab."""
    first, tab, second = line.partition("\t")
    if not tab or "\t" in second:
        raise UserError(
            f"Line {number:,} has {how_many(line.count(chr(9)), 'tab')}, not one: a matching model reads two texts.",
            "Write two texts on each line, separated by a tab.",
        )
    return first, second


def as_line(found: "Classification", format: Literal["text", "json"]) -> str:
    """Formats the class of one text as a line of output."""
    if format == "text":
        return found.label
    return json.dumps({"label": found.label, "probabilities": found.probabilities}, ensure_ascii=False)


if __name__ == "__main__":
    main()
