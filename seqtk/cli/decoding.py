"""Settings of the search, and loading of models, for seqtk-generate and seqtk-interactive."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

from seqtk.cli.loading import LoadConfig, check_checkpoint
from seqtk.config.fields import setting
from seqtk.generation.config import SearchConfig
from seqtk.utils.errors import UserError

if TYPE_CHECKING:
    from seqtk.data.plan import BatchingConfig
    from seqtk.pipelines import Pipeline, TextPipeline


@dataclass(frozen=True)
class DecodeConfig(SearchConfig, LoadConfig):
    """Settings of decoding: the model, the search, and the format of the output."""

    format: Literal["text", "fairseq", "json"] = setting(
        "text",
        help="text: one line per input. fairseq: fairseq's lines S, T, H, D and P. json: one JSON object per input.",
    )
    detokenize: bool = setting(True, help="Detokenize outputs. false: write tokens separated by spaces.")
    max_tokens: int | None = setting(
        4096, at_least=1, help="Maximum size of a batch: sentences × tokens of the longest source. null: no limit."
    )
    max_sentences: int | None = setting(64, at_least=1, help="Maximum number of sentences in a batch. null: no limit.")

    @property
    def batching(self) -> "BatchingConfig":
        """The maximum size of a batch."""
        from seqtk.data.plan import BatchingConfig

        return BatchingConfig(max_tokens=self.max_tokens, max_sentences=self.max_sentences)


def check_decoding(config: DecodeConfig) -> None:
    """Raises UserError if the settings are invalid for all models. Called before torch is imported."""
    # The default of `sampling` depends on the model, so settings that contradict it raise an error after loading.
    (replace(config, sampling=True, beam=None) if config.sampling is None else config).check()
    check_checkpoint(config)


def check_nbest(config: DecodeConfig, pipeline: "TextPipeline") -> None:
    """Raises UserError if nbest is more than 1 and the format has one line per sentence."""
    if config.format == "text" and config.nbest > 1 and not pipeline.free_text:
        raise UserError(
            f"nbest={config.nbest} is not possible with format=text, which writes one output per sentence.",
            "Set format=json or format=fairseq.",
        )


def check_no_search(config: SearchConfig) -> None:
    """Raises UserError if `detokenize` or a setting of the search is set. Called for models that do not write text."""
    for field in fields(config):
        of_search = field.name in SearchConfig.__dataclass_fields__ or field.name == "detokenize"
        if of_search and getattr(config, field.name) != field.default:
            raise UserError(f"{field.name}= has no effect on this model, which does not write text.", "Remove it.")


def as_text_pipeline(pipeline: "Pipeline", config: DecodeConfig) -> "TextPipeline":
    """Returns `pipeline` if its model writes text. Raises UserError if it does not."""
    from seqtk.pipelines import TextPipeline

    if not isinstance(pipeline, TextPipeline):
        raise UserError(
            f"checkpoint={config.checkpoint} is neither a translation model nor a language model.",
            "To evaluate a model of any task, run seqtk-evaluate. To use a classifier, run seqtk-classify.",
        )
    return pipeline
