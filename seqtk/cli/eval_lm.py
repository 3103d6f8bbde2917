"""seqtk-eval-lm: what a text costs a language model, per token and per unit of the text."""

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from seqtk.cli.command import command
from seqtk.cli.loading import LoadConfig, check_dictionary, check_ensemble, check_loading, load_models
from seqtk.utils.errors import UserError, naming

if TYPE_CHECKING:
    from tqdm import tqdm

    from seqtk.checkpoint.model_file import LoadedModel
    from seqtk.data.blocks import ContextBlocks
    from seqtk.data.databin import DataBin
    from seqtk.data.report import TextCount
    from seqtk.generation.evaluation import StreamScores
    from seqtk.tasks.language_modeling import LanguageModelingTask


@dataclass(frozen=True)
class EvalConfig(LoadConfig):
    """Which model scores which text, how much of it at once, and how that is written."""

    data: str | None = None  # a data-bin directory, to score a split of it; default: the one trained on
    split: str = "test"  # the split of data
    input: str | None = None  # a text file to score instead, with the model's own vocabulary; - is standard input
    text: str | None = None  # the original text, counted for figures per word and byte; null: as preprocessing counted
    break_mode: Literal["none", "complete", "complete_doc", "eos"] | None = None  # null: as in training
    tokens_per_sample: int | None = None  # tokens that a sample reads at most, its context included; null: as trained
    context_window: int = 0  # of these, tokens before a sample that are read but not scored again
    streams: int | None = None  # of a model with memory: runs of the text side by side; null: batch.streams of training
    max_tokens: int | None = 4096  # samples × longest one in a batch; null: no limit
    max_sentences: int | None = None  # samples in a batch; null: no limit
    format: Literal["text", "json"] = "text"  # of the figures, on standard output
    output: str | None = None  # a file for the scores of every token: a JSON line for each line of the text


@command("seqtk-eval-lm", EvalConfig)
def main(config: EvalConfig) -> None:
    """Score a text: seqtk-eval-lm checkpoint=PATH [data=DATA-BIN split=test | input=FILE|-] [context_window=N …].

    Every token is scored once. Prints nats and bits per token, perplexity per token and per word, bits per byte and
    per character. With a context window, each sample also reads so many of the tokens before it.
    """
    _check(config)
    loaded, device = load_models(config)
    task = _language_task(config, loaded)
    with _corpus(config, task) as (data, split), contextlib.ExitStack() as stack:
        from seqtk.data.plan import BatchingConfig
        from seqtk.generation.evaluation import score_lines, score_stream
        from seqtk.utils.text_io import text_output

        task.open(data)
        check_dictionary(data, data.source_lang, task.vocabulary)
        blocks = _blocks(config, task, split)
        text = _text_count(config, data, split)
        # An output that cannot be written is told before the work.
        output = stack.enter_context(text_output(config.output)) if config.output is not None else None
        scores = score_stream(
            [item.model for item in loaded],
            blocks,
            batching=BatchingConfig(max_tokens=config.max_tokens, max_sentences=config.max_sentences),
            device=device,
            bf16=config.precision == "bf16",
            streams=_streams(config, loaded[0], blocks),
            advance=stack.enter_context(_progress(blocks)).update,
        )
        if output is not None:
            output.writelines(f"{line}\n" for line in score_lines(blocks.items, scores, task.vocabulary))
    _print(config, blocks, scores, text)


def _check(config: EvalConfig) -> None:
    check_loading(config)
    if config.input is not None and config.data is not None:
        raise UserError("input= and data= are both set.", "Score a text or a split of a corpus, not both.")
    if config.streams is not None and config.context_window:
        raise UserError(
            "streams= and context_window= are both set.",
            "A memory hands on what a window would read again: set one of them.",
        )
    for key in ("tokens_per_sample", "streams", "max_tokens", "max_sentences"):
        value = getattr(config, key)
        if value is not None and value < 1:
            raise UserError(f"{key}={value} must be at least 1.")
    if config.output == "-":
        raise UserError("output=- would stand among the figures on standard output.", "Set output= to a file.")


def _language_task(config: EvalConfig, loaded: "list[LoadedModel]") -> "LanguageModelingTask":
    from seqtk.tasks.language_modeling import LanguageModelingTask

    tasks = []
    for path, item in zip(config.checkpoint.split(","), loaded, strict=True):
        if not isinstance(item.task, LanguageModelingTask):
            raise UserError(
                f"{path} holds no language model.", "seqtk-generate score_reference=true scores translations."
            )
        tasks.append(item.task)
    check_ensemble(config, [[task.vocabulary] for task in tasks])
    return tasks[0]


@contextlib.contextmanager
def _corpus(config: EvalConfig, task: "LanguageModelingTask") -> "Iterator[tuple[DataBin, str]]":
    """The data-bin and the split to score; of a text, one that lasts as long as this context."""
    from seqtk.data.corpus import find_text
    from seqtk.data.databin import DataBin
    from seqtk.data.temporary_databin import encode_text
    from seqtk.tasks.text import check_made

    if config.input is None:
        directory = config.data or task.config.data.split(",")[0]
        if not directory:
            raise UserError("Nothing to score: set input=FILE, or data=DATA-BIN.")
        check_made(task.config, directory)
        yield DataBin(directory), config.split
        return
    with tempfile.TemporaryDirectory(prefix="seqtk-eval-lm-") as folder:
        if config.input == "-":
            path = Path(folder) / "standard-input"
            with naming(path), open(path, "wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        else:
            path = find_text(config.input, None)
        made = encode_text(path, Path(folder) / "made", vocabulary=task.vocabulary, tokenizer=task.tokenizer)
        yield made, "test"


def _blocks(config: EvalConfig, task: "LanguageModelingTask", split: str) -> "ContextBlocks":
    from seqtk.data.blocks import ContextBlocks

    data = task.open()
    return ContextBlocks(
        data.split(split, data.source_lang),
        break_mode=config.break_mode or task.config.break_mode,
        tokens_per_sample=config.tokens_per_sample or task.config.tokens_per_sample,
        context_window=config.context_window,
    )


def _streams(config: EvalConfig, loaded: "LoadedModel", blocks: "ContextBlocks") -> int | None:
    """How many runs of the text hand a memory on, if any do."""
    if blocks.alone.break_mode == "none" and not config.context_window:
        return config.streams or loaded.config.get("batch", {}).get("streams")
    if config.streams is not None:
        raise UserError("streams= reads text in its order, without regard to lines.", "Set break_mode=none.")
    return None


def _text_count(config: EvalConfig, data: "DataBin", split: str) -> "TextCount | None":
    """How large the text is: counted now if `text` names it, else as it was counted when its tokens were made."""
    from seqtk.data.corpus import find_text, read_blocks
    from seqtk.data.report import TextCount, count_text

    if config.text is None:
        return data.text_count(split)
    blocks = read_blocks((find_text(config.text, None),))
    return sum((count_text(lines) for (lines,) in blocks), start=TextCount())


def _progress(blocks: "ContextBlocks") -> "tqdm[Any]":
    from tqdm import tqdm

    return tqdm(total=blocks.items.total, unit=" tokens", unit_scale=True, disable=None, leave=False)


def _print(config: EvalConfig, blocks: "ContextBlocks", scores: "StreamScores", text: "TextCount | None") -> None:
    from seqtk.metrics import Evaluation, metrics
    from seqtk.tasks.language_modeling import LanguageModelingTask
    from seqtk.training.logging import short

    tokens, nll = scores.tokens, scores.nll
    whole = text if tokens == blocks.items.total else None
    evaluation = Evaluation({"nll": (nll, float(tokens))}, text=whole)
    scores_by_name = metrics.compute(LanguageModelingTask.metrics, evaluation)
    figures = {name: score.value for name, score in scores_by_name.items()}
    counts = {
        "lines": len(blocks.items),
        "tokens": blocks.items.total,
        "scored_tokens": tokens,
        "unknown_tokens": scores.unknown,
        "samples": len(blocks),
    }
    if config.format == "json":
        sizes = {f"text_{name}": value for name, value in asdict(text).items()} if text is not None else {}
        print(json.dumps({**figures, "nll_sum": nll, **counts, **sizes}))
        return
    print(
        f"{tokens:,} of {blocks.items.total:,} tokens in {len(blocks.items):,} lines scored, each once, "
        f"in {len(blocks):,} samples; {scores.unknown:,} are unknown ({scores.unknown / max(tokens, 1):.2%})"
    )
    units = {
        "nll": "nats per token",
        "bits_per_token": "bits per token",
        "ppl": "perplexity per token",
    }
    if whole is not None:
        units |= {
            "word_ppl": f"perplexity per word ({whole.words:,} words and {whole.lines:,} ends of lines)",
            "bits_per_byte": f"bits per byte ({whole.bytes:,} bytes)",
            "bits_per_character": f"bits per character ({whole.characters:,} characters)",
        }
    for name, unit in units.items():
        print(f"{short(float(figures[name])):>10} {unit}")


if __name__ == "__main__":
    main()
