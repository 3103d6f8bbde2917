"""Tiny models and batches for the tests of generation."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from seqtk.attention import AttentionConfig, State
from seqtk.attention.softmax import SoftmaxConfig
from seqtk.data.batch import TranslationBatch, collate_pairs
from seqtk.data.vocabulary import EOS, Vocabulary
from seqtk.models.base import Model
from seqtk.models.stacks import DecoderConfig, EncoderConfig
from seqtk.models.transformer import Transformer, TransformerConfig

SOFTMAX = SoftmaxConfig(heads=2)


def vocabulary(words: int) -> Vocabulary:
    return Vocabulary([f"w{number}" for number in range(words)])


def transformer(
    words: int,
    *,
    seed: int,
    sharpness: float = 4.0,
    max_source_length: int = 64,
    max_target_length: int = 64,
    attention: AttentionConfig = SOFTMAX,
) -> Transformer:
    """Returns a random Transformer. A greater `sharpness` makes some tokens much more probable than others."""
    torch.manual_seed(seed)
    config = TransformerConfig(
        dim=16,
        ffn_dim=32,
        encoder=EncoderConfig(layers=1, self_attention=(attention,)),
        decoder=DecoderConfig(layers=2, self_attention=(attention,), cross_attention=(SOFTMAX,)),
        share_embeddings="none",
        max_source_length=max_source_length,
        max_target_length=max_target_length,
    )
    size = len(vocabulary(words))
    model = Transformer(config, source_vocabulary=size, target_vocabulary=size).eval()
    return sharpen(model, sharpness)


def sharpen(model: Transformer, sharpness: float) -> Transformer:
    """Multiplies the logits of `model` by `sharpness`, and makes them depend more on the source. Returns the model."""
    with torch.no_grad():
        model.head.weight.mul_(sharpness)
        for block in model.decoder.blocks:
            block.cross_attention.out.weight.mul_(3)
    return model


def sources(count: int, *, words: int, seed: int, longest: int = 9) -> list[np.ndarray]:
    """Returns random sources of 1 to `longest` tokens and EOS."""
    generator = np.random.default_rng(seed)
    return [
        np.append(generator.integers(4, 4 + words, size=generator.integers(1, longest + 1)), EOS) for _ in range(count)
    ]


def batch_of(rows: Sequence[np.ndarray]) -> TranslationBatch:
    return collate_pairs([(index, row, np.array([EOS])) for index, row in enumerate(rows)])


class TableHead(nn.Module):
    """A head whose input is already the logits."""

    def log_probs(self, features: Tensor, *, temperature: float = 1.0) -> Tensor:
        return torch.log_softmax(features / temperature, dim=-1)


class Table(Model):
    """A model that looks up the logits of the next token by the position and the last token."""

    def __init__(self, logits_TVV: Tensor) -> None:
        super().__init__()
        self.logits_TVV = logits_TVV
        self.head = TableHead()  # type: ignore[assignment]
        self.eval()

    def start(self, batch: TranslationBatch) -> State:
        return {"position_B": torch.zeros(len(batch.source_BS), dtype=torch.long), "memory": None}

    def step(self, token_B: Tensor, state: State) -> tuple[Tensor, State]:
        position_B = state["position_B"].clamp(max=len(self.logits_TVV) - 1)
        return self.logits_TVV[position_B, token_B][:, None], {**state, "position_B": state["position_B"] + 1}


class Diary(Table):
    """A Table whose state contains all earlier tokens. Each step changes the state in place."""

    def start(self, batch: TranslationBatch) -> State:
        rows = len(batch.source_BS)
        return {"history_BT": torch.zeros(rows, 64, dtype=torch.long), "length_B": torch.zeros(rows, dtype=torch.long)}

    def step(self, token_B: Tensor, state: State) -> tuple[Tensor, State]:
        history_BT, length_B = state["history_BT"], state["length_B"]
        history_BT[torch.arange(len(token_B)), length_B] = token_B
        length_B += 1
        # All earlier tokens affect the logits, so that the test detects a state of another row.
        return self.logits_TVV[0][history_BT].sum(dim=1)[:, None], state
