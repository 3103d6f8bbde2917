"""A Transformer encoder as a masked language model, with any attention layer that an encoder can use.

B batch, T length, N predicted positions, D width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.config.fields import setting
from seqtk.data.encoder_batches import MaskedBatch
from seqtk.models.base import models
from seqtk.models.classifier import TransformerClassifier, TransformerClassifierConfig
from seqtk.modules.head import CHUNK_POSITIONS, HeadLosses, LinearHead, real_targets


class MaskedTokenHead(LinearHead):
    """A linear head that also counts correctly predicted tokens in evaluation.

    The predicted positions are gathered before the output projection, so logits are computed only for these positions.
    """

    counts_correct = True

    def forward(
        self, features_BTD: Tensor, target: Tensor, *, pad_BT: Tensor | None = None, label_smoothing: float = 0.0
    ) -> HeadLosses:
        losses = super().forward(features_BTD, target, pad_BT=pad_BT, label_smoothing=label_smoothing)
        return losses if self.training else losses._replace(correct=self.correct(features_BTD, target))

    @torch.no_grad()
    def correct(self, features_BTD: Tensor, target_BT: Tensor) -> Tensor:
        """Returns the number of correctly predicted targets."""
        features_ND, target_N = real_targets(features_BTD, target_BT)
        chunks = torch.split(features_ND, CHUNK_POSITIONS)
        best_N = torch.cat([functional.linear(features, self.weight).argmax(1) for features in chunks])
        return (best_N == target_N).sum()


@dataclass(frozen=True)
class TransformerMaskedLMConfig(TransformerClassifierConfig):
    """An encoder that predicts masked tokens. A transformer_classifier can start from its weights."""

    tie_embeddings: bool = setting(True, help="Share one embedding table between input and output.")


@models.register("transformer_masked_lm", TransformerMaskedLMConfig)
class TransformerMaskedLM(TransformerClassifier):
    """A masked language model: the embedding and encoder of `TransformerClassifier`, and a head for masked tokens."""

    reads = MaskedBatch
    head: MaskedTokenHead

    def __init__(self, config: TransformerMaskedLMConfig, *, vocabulary: int) -> None:
        super().__init__(config, vocabulary=vocabulary, head=lambda dim: MaskedTokenHead(dim, vocabulary))
        tokens = self.embedding.tokens
        if config.tie_embeddings and isinstance(tokens, nn.Embedding):
            self.head.weight = tokens.weight
