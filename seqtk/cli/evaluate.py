"""seqtk-evaluate: computes the metrics of a trained model of any task."""

import json
from dataclasses import dataclass
from typing import Literal

from seqtk.cli.command import command
from seqtk.cli.loading import LoadConfig, check_checkpoint, load_pipeline, split_paths
from seqtk.config.fields import setting
from seqtk.generation.config import SearchConfig


@dataclass(frozen=True)
class EvaluateConfig(LoadConfig):
    """Which model is evaluated on which data."""

    data: str | None = setting(None, help="Where the data is. null: where it was in training.")
    split: str = setting("test", help="The split of the data.")
    input: str | None = setting(None, help="A text file to evaluate on instead. -: standard input.")
    reference: str | None = setting(
        None, help="For input=: what the model should produce, line by line. Several files, separated by commas."
    )
    metrics: tuple[str, ...] | None = setting(None, help="The metrics. null: the task's metrics that are available.")
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
    check_checkpoint(config)
    config.search.check()
    from seqtk.data.plan import BatchingConfig

    report = load_pipeline(config).evaluate(
        config.data,
        split=config.split,
        input=config.input,
        references=split_paths(config.reference) if config.reference is not None else (),
        names=config.metrics,
        decode=config.decode,
        search=config.search,
        batching=BatchingConfig(max_tokens=config.max_tokens, max_sentences=config.max_sentences),
        progress=True,
    )
    print(json.dumps(report.to_dict(), ensure_ascii=False) if config.format == "json" else "\n".join(report.lines()))


if __name__ == "__main__":
    main()
