"""Imports fairseq's translation and language models. Imported models compute the features and scores of fairseq.

This file contains the importer and the conversion of translation models. It reads checkpoints of fairseq 0.6 to 0.12,
which have their settings in `cfg` or in `args`, separate or stacked projections, named or numbered norms, and tied
embeddings stored once or twice. Every key in a file is either used or known to be irrelevant. If seqtk does not support
an option, an error names it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from seqtk.attention.softmax import SoftmaxConfig
from seqtk.checkpoint.model_file import ModelFile, tensors_of
from seqtk.config import schema
from seqtk.config.fields import setting
from seqtk.data.sources import DataBinSourceConfig
from seqtk.interop.base import Importer, ImporterConfig, importers
from seqtk.interop.fairseq_file import ACTIVATIONS, FairseqFile, read_fairseq, rows
from seqtk.interop.fairseq_keys import current_names, seqtk_state
from seqtk.interop.fairseq_lightconv import convolutions, is_lightconv
from seqtk.interop.fairseq_lm import ImportedLanguageModel, import_language_model
from seqtk.interop.fairseq_options import SIDES, Options
from seqtk.models.stacks import DecoderConfig, EncoderConfig, Pattern
from seqtk.models.transformer import SharedEmbeddings, Transformer, TransformerConfig
from seqtk.tasks import Task
from seqtk.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from seqtk.tasks.translation import TranslationConfig, TranslationTask
from seqtk.utils.errors import UserError
from seqtk.utils.file_kinds import describe

REFUSED = {
    "adaptive_input": "adaptive input embeddings",
    "adaptive_softmax_cutoff": "an adaptive softmax",
    "char_inputs": "a character encoder",
    "cross_self_attention": "joint attention of the decoder to the target and the source",
    "encoder_layers_to_keep": "a pruned encoder",
    "merge_src_tgt_embed": "dictionaries that are merged in training",
    "no_cross_attention": "a decoder that does not see the source",
    "no_decoder_final_norm": "a decoder without its final norm",
}
"""Options of fairseq that seqtk's Transformer does not support, in addition to `REFUSED` → their description."""


@dataclass(frozen=True)
class Imported:
    """A translation model of fairseq, converted to seqtk's config and tensors."""

    config: TransformerConfig
    state: dict[str, Tensor]
    """Parameter name in seqtk → float32 tensor. A tied tensor appears under each of its names."""
    source_vocabulary: int
    target_vocabulary: int
    source_lang: str | None
    target_lang: str | None
    label_smoothing: float
    updates: int
    """The number of updates that the model was trained for."""

    def model(self) -> Transformer:
        """Returns the network, in evaluation mode."""
        model = Transformer(
            self.config, source_vocabulary=self.source_vocabulary, target_vocabulary=self.target_vocabulary
        )
        model.load_state_dict(self.state)
        return model.eval()


def import_fairseq(path: str | Path) -> Imported | ImportedLanguageModel:
    """Reads a model from a checkpoint of fairseq, without executing any code in the file.

    Raises UserError if the file is not a checkpoint of fairseq, or if seqtk cannot reproduce the model. The error names
    the option or key.
    """
    file = read_fairseq(path)
    return import_language_model(file) if file.is_language_model else import_translation(file)


@dataclass(frozen=True)
class FairseqConfig(ImporterConfig):
    """A checkpoint of fairseq 0.6 to 0.12: translation and language models."""

    data: str = setting(
        "",
        help="The directory with the dict.*.txt files that the model was trained with: its data-bin, or the unpacked "
        "archive. If it contains a sentencepiece.model, the imported model includes it.",
    )
    source_lang: str | None = setting(None, help="The source language. null: as in the checkpoint.")
    target_lang: str | None = setting(None, help="The target language. null: as in the checkpoint.")
    remove_bpe: str | None = setting(
        None,
        help="Subword marker of the training text, such as '@@ ' or sentencepiece. Detokenization removes it. none: "
        "the tokens are words. null: as recorded in data.",
    )


@importers.register("fairseq", FairseqConfig)
class FairseqImporter(Importer):
    """Reads a checkpoint of fairseq with its dictionaries. Nothing in the checkpoint is executed."""

    config: FairseqConfig

    def read(self, path: Path) -> ModelFile:
        what, _ = describe(path) if path.is_file() else ("", "")
        if what.startswith(("a safetensors", "a model file", "a text", "a training log", "a recipe", "an empty")):
            raise UserError(f"{path} is {what}, not a checkpoint of fairseq.", "fairseq's checkpoints end in .pt.")
        imported = import_fairseq(path)
        if not self.config.data:
            raise UserError("data= is not set.", "Set it to the directory with the dict.*.txt files of the model.")
        try:
            if isinstance(imported, ImportedLanguageModel):
                task = self._language_task(imported)
            else:
                task = self._translation_task(imported)
        except UserError as error:  # the error must name the setting of this command, not task.source
            raise UserError(*str(error).replace("task.source.", "").splitlines()) from None
        criterion = {"kind": "label_smoothed_cross_entropy", "label_smoothing": imported.label_smoothing}
        return ModelFile(
            tensors=tensors_of(imported.model()),
            config={
                "task": schema.to_dict(task.config),
                "model": schema.to_dict(imported.config),
                "criterion": criterion,
            },
            assets=task.assets(),
            info={"update": imported.updates, "imported_from": path.name},
        )

    def _language_task(self, imported: ImportedLanguageModel) -> Task:
        task = LanguageModelingTask(
            LanguageModelingConfig(
                data=self.config.data,
                source=DataBinSourceConfig(remove_bpe=self.config.remove_bpe),
                tokens_per_sample=imported.tokens_per_sample,
                break_mode=imported.break_mode,
            )
        )
        self._check_size("dict.txt", len(task.vocabulary), imported.vocabulary)
        return task

    def _translation_task(self, imported: Imported) -> Task:
        task = TranslationTask(
            TranslationConfig(
                data=self.config.data,
                source=DataBinSourceConfig(remove_bpe=self.config.remove_bpe),
                source_lang=self.config.source_lang or imported.source_lang,
                target_lang=self.config.target_lang or imported.target_lang,
            )
        )
        self._check_size(f"dict.{task.source_lang}.txt", len(task.source_vocabulary), imported.source_vocabulary)
        self._check_size(f"dict.{task.target_lang}.txt", len(task.target_vocabulary), imported.target_vocabulary)
        return task

    def _check_size(self, dictionary: str, tokens: int, rows: int) -> None:
        if tokens != rows:
            raise UserError(
                f"data={self.config.data}: {dictionary} has {tokens:,} tokens, but the model has {rows:,}.",
                "data= must be the directory with the dictionaries that the model was trained with.",
            )


def import_translation(file: FairseqFile) -> Imported:
    """Returns the translation model in `file`. Raises UserError, with option or key, if seqtk cannot reproduce it."""
    options, where = file.options, file.where
    lightconv = is_lightconv(options)
    state = current_names(file.tensors, lightconv=lightconv)
    _check_kind(options)
    config = _config(options)
    vocabularies = {f"{side}_vocabulary": rows(state, stack, where=where) for side, stack in SIDES}
    with torch.device("meta"):
        model = Transformer(config, **vocabularies)
    return Imported(
        config=config,
        state=seqtk_state(state, model, lightconv=lightconv, where=where),
        **vocabularies,
        source_lang=options.get("source_lang", None),
        target_lang=options.get("target_lang", None),
        label_smoothing=file.label_smoothing,
        updates=file.updates,
    )


def _check_kind(options: Options) -> None:
    """Raises UserError if the model is for a different task, or has a part that is not supported."""
    if options.get("task", "translation") != "translation":
        raise UserError(
            f"{options.where} was trained for fairseq's task '{options.get('task', '')}'.",
            "Only models of the tasks 'translation' and 'language_modeling' can be imported.",
        )
    options.refuse(REFUSED, model="Transformer")


def _config(options: Options) -> TransformerConfig:
    shared: SharedEmbeddings = "none"
    if options.get("share_all_embeddings", False):
        shared = "all"
    elif options.get("share_decoder_input_output_embed", False):
        shared = "decoder"
    pre_norm = options.both("normalize_before")
    learned = options.both("learned_pos")
    with_positions = not options.get("no_token_positional_embeddings", False)
    dropout = options.number("attention_dropout", 0.0)
    attention: dict[str, Pattern] = {
        stack: (SoftmaxConfig(heads=options.size(f"{stack}_attention_heads"), dropout=dropout),) for _, stack in SIDES
    }
    self_attention = attention
    if is_lightconv(options):
        self_attention = {stack: convolutions(options, stack=stack) for _, stack in SIDES}
    dim, encoder_dim = options.size("decoder_embed_dim"), options.size("encoder_embed_dim")
    ffn_dim, encoder_ffn_dim = options.size("decoder_ffn_embed_dim"), options.size("encoder_ffn_embed_dim")
    return TransformerConfig(
        dim=dim,
        ffn_dim=ffn_dim,
        encoder=EncoderConfig(
            layers=options.size("encoder_layers"),
            dim=None if encoder_dim == dim else encoder_dim,
            ffn_dim=None if encoder_ffn_dim == ffn_dim else encoder_ffn_dim,
            self_attention=self_attention["encoder"],
        ),
        decoder=DecoderConfig(
            layers=options.size("decoder_layers"),
            self_attention=self_attention["decoder"],
            cross_attention=attention["decoder"],
        ),
        positions=("learned" if learned else "sinusoidal") if with_positions else "none",
        max_source_length=int(options.number("max_source_positions", 1024)),
        max_target_length=int(options.number("max_target_positions", 1024)),
        share_embeddings=shared,
        pre_norm=pre_norm,
        scale_embedding=not options.get("no_scale_embedding", False),
        norm_embedding=bool(options.get("layernorm_embedding", False)),
        activation=options.known("activation_fn", ACTIVATIONS, "relu"),
        dropout=options.number("dropout", 0.1),
        activation_dropout=options.number("activation_dropout", 0.0) or options.number("relu_dropout", 0.0),
    )
