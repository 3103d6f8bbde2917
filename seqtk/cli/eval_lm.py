"""seqtk-eval-lm: computes the likelihood of a text under a language model, per token, word, byte and character."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from seqtk.cli.command import command
from seqtk.cli.loading import LoadConfig, check_checkpoint, check_not_input, check_split, load_pipeline
from seqtk.config.fields import setting
from seqtk.utils.errors import UserError, how_many

if TYPE_CHECKING:
    from seqtk.pipelines import CorpusScores


@dataclass(frozen=True)
class EvalConfig(LoadConfig):
    """Settings of seqtk-eval-lm: the model, the text to score and its samples, and the format of the result."""

    data: str | None = setting(
        None, help="The data-bin with the split. null: the data-bin that the model was trained on."
    )
    split: str | None = setting(None, help="The split of data= to score. null: test. Not possible with input=.")
    input: str | None = setting(
        None, help="Text file to score instead of data=, encoded with the model's vocabulary. -: standard input."
    )
    text: str | None = setting(
        None,
        help="The file with the original text, for metrics per word and byte. null: use the counts of preprocessing.",
    )
    break_mode: Literal["none", "complete", "complete_doc", "eos"] | None = setting(
        None, help="How the text is split into samples. null: as in training."
    )
    tokens_per_sample: int | None = setting(
        None, at_least=1, help="Maximum number of tokens in a sample, including context. null: as in training."
    )
    context_window: int = setting(
        0,
        at_least=0,
        help="Number of context tokens at the start of a sample. They were scored in earlier samples.",
    )
    streams: int | None = setting(
        None,
        at_least=1,
        help="For models with recurrent state: number of contiguous streams into which the text is split. null: as in "
        "training.",
    )
    max_tokens: int | None = setting(
        4096, at_least=1, help="Maximum size of a batch: samples × tokens of the longest sample. null: no limit."
    )
    max_sentences: int | None = setting(None, at_least=1, help="Maximum number of samples in a batch. null: no limit.")
    format: Literal["text", "json"] = setting("text", help="The format of the metrics on standard output.")
    output: str | None = setting(
        None, help="The file for the scores of all tokens, with one JSON object per line of the text."
    )


@command("seqtk-eval-lm", EvalConfig)
def main(config: EvalConfig) -> None:
    """Score text with a language model: seqtk-eval-lm checkpoint=PATH [split=test | input=FILE].

    Scores every token once. Prints nats and bits per token, perplexity per token and per word, and bits per byte and
    per character. With a context window, the model also reads the tokens before each sample, without scoring them
    again.
    """
    check_checkpoint(config)
    if config.output == "-":
        raise UserError(
            "output=- is not possible: the metrics are printed to standard output.", "Set output= to a file."
        )
    check_split(config.split, input=config.input)
    if config.output is not None:
        check_not_input(Path(config.output), checkpoint=config.checkpoint, input=config.input, text=config.text)
    from seqtk.data.plan import BatchingConfig
    from seqtk.pipelines import GenerationPipeline

    pipeline = load_pipeline(config)
    if not isinstance(pipeline, GenerationPipeline):
        raise UserError(
            f"checkpoint={config.checkpoint} is not a language model.",
            "To score translations: seqtk-generate score_reference=true format=json. For other models: seqtk-evaluate.",
        )
    scores = pipeline.score_corpus(
        data=config.data,
        split=config.split or "test",
        input=config.input,
        text=config.text,
        break_mode=config.break_mode,
        tokens_per_sample=config.tokens_per_sample,
        context_window=config.context_window,
        streams=config.streams,
        batching=BatchingConfig(max_tokens=config.max_tokens, max_sentences=config.max_sentences),
        output=config.output,
        progress=True,
    )
    _print(config, scores)


def _print(config: EvalConfig, scores: "CorpusScores") -> None:
    from seqtk.metrics import metrics

    values = {name: score.value for name, score in scores.metrics.items()}
    if config.format == "json":
        counts = {name: value for name, value in asdict(scores).items() if name not in ("nll", "text")}
        sizes = {} if scores.text is None else {f"text_{name}": value for name, value in asdict(scores.text).items()}
        print(json.dumps({**values, "nll_sum": scores.nll, **counts, **sizes}))
        return
    share = scores.unknown_tokens / scores.scored_tokens
    print(
        f"Scored {scores.scored_tokens:,} of {how_many(scores.tokens, 'token')} ({how_many(scores.lines, 'line')}, "
        f"{how_many(scores.samples, 'sample')}), each token once; "
        f"unknown tokens: {scores.unknown_tokens:,} ({share:.2%})"
    )
    for name, value in values.items():
        print(f"{value:>10.4g} {name} ({metrics[name].unit})")
    if scores.text is not None:
        name = "The text has" if config.text is not None else "The text that was decoded from the tokens has"
        parts = (how_many(count, noun.removesuffix("s")) for noun, count in asdict(scores.text).items())
        print(f"{name} {', '.join(parts)}.")


if __name__ == "__main__":
    main()
