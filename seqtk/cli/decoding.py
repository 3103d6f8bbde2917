"""What seqtk-generate and seqtk-interactive share: a model with its search, and lines of text as it reads them."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from seqtk.cli.loading import LoadConfig, check_ensemble, check_loading, load_models
from seqtk.generation.config import SearchConfig
from seqtk.utils.errors import UserError

if TYPE_CHECKING:
    from seqtk.generation.decode import Decoder, Sentence
    from seqtk.generation.formats import Writer
    from seqtk.tasks.language_modeling import LanguageModelingTask
    from seqtk.tasks.translation import TranslationTask


@dataclass(frozen=True)
class DecodeConfig(SearchConfig, LoadConfig):
    """Which model translates or goes on with a text, how it searches, and how that is written."""

    format: Literal["text", "fairseq", "json"] = "text"  # one line a sentence, fairseq's S, T, H, D, P lines, or JSON
    detokenize: bool = True  # false: tokens stay apart
    max_tokens: int | None = 4096  # sentences × longest source in a batch; null: no limit
    max_sentences: int | None = 64  # sentences in a batch; null: no limit


def check_decoding(config: DecodeConfig) -> None:
    """Raises UserError for what is wrong before anything is loaded."""
    # Whether a search samples may hang on the model: what only one of both refuses comes later.
    (replace(config, sampling=True, beam=None) if config.sampling is None else config).check()
    check_loading(config)


def check_room(config: DecodeConfig) -> None:
    """Raises UserError for more hypotheses than the format has lines for; those of language models are as many."""
    if config.format == "text" and config.nbest > 1:
        raise UserError(
            f"format=text gives one line a sentence, which leaves no room for nbest={config.nbest}.",
            "Set format=json or format=fairseq.",
        )


@dataclass(frozen=True)
class Translating:
    """Models that translate."""

    task: "TranslationTask"
    decoder: "Decoder"
    writer: "Writer"

    @property
    def prompt(self) -> str:
        """What stands before a line that is typed."""
        return f"{self.task.source_lang}> "

    def sentence(
        self, line: str, *, reference: str | None = None, prefix: str | None = None, prefix_size: int = 0
    ) -> "Sentence":
        """A line of text as the models read it."""
        from seqtk.generation.decode import Sentence

        task, target = self.task, None
        if reference is not None:
            target = task.target_vocabulary.encode(task.target_tokenizer.encode(reference))
        begins = None
        if prefix is not None:
            begins = task.target_vocabulary.encode(task.target_tokenizer.encode(prefix), eos=False)
        elif target is not None:
            begins = target[:prefix_size]
        source = task.source_vocabulary.encode(task.source_tokenizer.encode(line))
        return Sentence(source, target=target, prefix=begins, source_text=line, target_text=reference)


@dataclass(frozen=True)
class Continuing:
    """Language models, which go on with a text."""

    task: "LanguageModelingTask"
    decoder: "Decoder"
    writer: "Writer"
    prompt: str = "> "

    def sentence(self, line: str) -> "Sentence":
        """A prompt as the models read it."""
        from seqtk.generation.decode import Sentence

        ids = self.task.vocabulary.encode(self.task.tokenizer.encode(line))
        return Sentence(ids, prefix=ids[:-1], source_text=line)


def load_decoder(config: DecodeConfig, *, score_targets: bool = False) -> "Translating | Continuing":
    """The models that `config` names, of one kind and with the same vocabularies, ready to decode."""
    check_decoding(config)
    from seqtk.generation.decode import Decoder, LanguageDecoder
    from seqtk.generation.formats import Writer
    from seqtk.tasks.language_modeling import LanguageModelingTask
    from seqtk.tasks.translation import TranslationTask

    loaded, device = load_models(config)
    paths, tasks = config.checkpoint.split(","), []
    for path, item in zip(paths, loaded, strict=True):
        if not isinstance(item.task, TranslationTask | LanguageModelingTask):
            raise UserError(f"{path} holds neither a translation model nor a language model.")
        if not isinstance(item.task, type(loaded[0].task)):
            raise UserError(f"{path} and {paths[0]} are models for different tasks: they make no ensemble.")
        tasks.append(item.task)
    check_ensemble(config, [(each.source_vocabulary, each.target_vocabulary) for each in tasks])
    task = tasks[0]
    sampling = isinstance(task, LanguageModelingTask) if config.sampling is None else config.sampling
    search = replace(config, sampling=sampling)
    search.check()
    if not sampling and config.beam is not None and config.beam > len(task.target_vocabulary):
        raise UserError(
            f"beam={config.beam} is more than the {len(task.target_vocabulary):,} tokens of the vocabulary."
        )
    kind = LanguageDecoder if isinstance(task, LanguageModelingTask) else Decoder
    decoder = kind(
        models=tuple(item.model for item in loaded),
        vocabulary=task.target_vocabulary,
        search=search,
        score_targets=score_targets,
        device=device,
        bf16=config.precision == "bf16",
    )
    if isinstance(task, LanguageModelingTask):
        return Continuing(task, decoder, Writer(task, detokenize=config.detokenize, free_text=True))
    return Translating(task, decoder, Writer(task, detokenize=config.detokenize))
