"""A training step calls every module through `__call__`, which hooks, compilation and sharding require."""

import collections
from dataclasses import replace

import pytest
import torch
from torch import nn

from seqtk.attention import Attention
from seqtk.attention.luna import LunaConfig
from seqtk.attention.softmax import SoftmaxConfig
from seqtk.attention.transformer_xl import TransformerXLConfig
from seqtk.criterions.cross_entropy import CrossEntropy, CrossEntropyConfig
from seqtk.data.batch import LanguageBatch, TranslationBatch
from seqtk.models.base import Model
from seqtk.models.language_model import TransformerLM, TransformerLMConfig
from seqtk.models.recurrent_memory import RecurrentMemoryLM, RecurrentMemoryLMConfig
from seqtk.models.stacks import DecoderBlock, DecoderConfig, EncoderBlock, EncoderConfig
from seqtk.models.transformer import Transformer, TransformerConfig
from seqtk.modules.adaptive import AdaptiveConfig
from seqtk.modules.block import FeedForward
from seqtk.modules.embedding import Embedding
from seqtk.modules.head import Head

KINDS = (EncoderBlock, DecoderBlock, Attention, FeedForward, Embedding, Head, nn.LayerNorm, nn.Embedding, nn.Linear)
V = 20
TRANSLATION = TransformerConfig(
    dim=16, ffn_dim=24, heads=2, encoder=EncoderConfig(layers=2), decoder=DecoderConfig(layers=2), norm_embedding=True
)
LANGUAGE = TransformerLMConfig(dim=16, ffn_dim=24, heads=2, layers=2, norm_embedding=True)
ADAPTIVE = AdaptiveConfig(cutoffs=(7, 13), input_factor=2.0, softmax_factor=2.0)
LUNA = replace(TRANSLATION, encoder=EncoderConfig(layers=2, self_attention=(LunaConfig(memory_size=2),)))
MEMORY = replace(LANGUAGE, positions="none", attention=(TransformerXLConfig(memory_length=3), SoftmaxConfig()))


def tokens() -> torch.Tensor:
    return torch.arange(4, V)[None].expand(2, -1).contiguous()


def calls(model: Model, batch: TranslationBatch | LanguageBatch) -> dict[str, int]:
    """Returns the number of calls of each module in a training step, by name."""
    count: dict[str, int] = collections.Counter()
    for name, module in model.named_modules():
        if isinstance(module, KINDS):
            count[name] = 0
            module.register_forward_hook(lambda *_, name=name: count.update([name]))
    CrossEntropy(CrossEntropyConfig())(model.train(), batch).total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    return count


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("config", [TRANSLATION, LUNA], ids=["softmax", "luna"])
def test_translation_model_calls_every_module(config: TransformerConfig, pre_norm: bool) -> None:
    model = Transformer(replace(config, pre_norm=pre_norm), source_vocabulary=V, target_vocabulary=V)
    batch = TranslationBatch(torch.arange(2), tokens().numel(), tokens(), tokens(), tokens())
    count = calls(model, batch)
    shared = "source_embedding.tokens"
    assert count.pop(shared) == 2  # one table for source and target
    if config is LUNA:  # keys and values share a projection, which is called twice
        count = {name: n for name, n in count.items() if not isinstance(model.get_submodule(name), nn.Linear)}
    assert set(count.values()) == {1}, count


@pytest.mark.parametrize(
    "config",
    [LANGUAGE, replace(LANGUAGE, pre_norm=True), MEMORY, replace(LANGUAGE, adaptive=ADAPTIVE)],
    ids=["post-norm", "pre-norm", "memory", "adaptive"],
)
def test_language_model_calls_every_module(config: TransformerLMConfig) -> None:
    model = TransformerLM(config, vocabulary=V)
    count = calls(model, LanguageBatch(torch.arange(2), tokens().numel(), tokens(), tokens()))
    assert set(count.values()) == {1}, count


def test_recurrent_memory_calls_modules_once_per_segment() -> None:
    fields = {name: getattr(LANGUAGE, name) for name in ("dim", "ffn_dim", "heads", "layers", "norm_embedding")}
    config = RecurrentMemoryLMConfig(**fields, segment_length=8, memory_tokens=2)
    model = RecurrentMemoryLM(config, vocabulary=V)
    count = calls(model, LanguageBatch(torch.arange(2), tokens().numel(), tokens(), tokens()))
    assert count.pop("head") == 1
    assert set(count.values()) == {2}, count  # one call for each segment


def test_dropped_block_calls_no_submodule() -> None:
    torch.manual_seed(0)
    model = TransformerLM(replace(LANGUAGE, layer_drop=0.999), vocabulary=V)
    count = calls(model, LanguageBatch(torch.arange(2), tokens().numel(), tokens(), tokens()))
    assert count["decoder.blocks.0"] == count["decoder.blocks.1"] == 1
    assert count["decoder.blocks.0.feed_forward"] == 0
