"""A model: a language model that applies one attention layer several times (Dehghani et al. 2019, arXiv 1807.03819).

B batch, T length, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retlab.retention import RetentionConfig
from seqtk.attention import AttentionConfig, Role, State, attentions
from seqtk.config.fields import setting
from seqtk.data.batch import LanguageBatch
from seqtk.models import ModelConfig, models
from seqtk.models.language_model import LanguageModel
from seqtk.modules.embedding import token_embedding
from seqtk.modules.head import LinearHead


@dataclass(frozen=True)
class LoopedConfig(ModelConfig):
    """Config of the looped language model."""

    dim: int = setting(64, at_least=1, help="Width of the model.")
    loops: int = setting(4, at_least=1, help="Number of times that the layer is applied.")
    attention: AttentionConfig = RetentionConfig(heads=2)


@models.register("looped_lm", LoopedConfig)
class LoopedLM(LanguageModel):
    """Computes x = x + attention(norm(x)) `loops` times."""

    def __init__(self, config: LoopedConfig, *, vocabulary: int) -> None:
        super().__init__()
        self.loops = config.loops
        self.embedding = token_embedding(vocabulary, config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.attention = attentions.build(config.attention, dim=config.dim, role=Role.CAUSAL)
        self.head = LinearHead(config.dim, vocabulary)

    def forward(self, batch: LanguageBatch, state: State = None) -> tuple[Tensor, State]:
        x_BTD, after = self.embedding(batch.previous_BT), []
        for before in state or [None] * self.loops:
            y_BTD, new = self.attention(self.norm(x_BTD), state=before)
            x_BTD = x_BTD + y_BTD
            after.append(new)
        return x_BTD, after

    def empty_state(self, batch: int, device: torch.device) -> State:
        return [self.attention.start(batch) for _ in range(self.loops)]

    def step(self, token_B: Tensor, state: State) -> tuple[Tensor, State]:
        x_B1D, after = self.embedding(token_B[:, None]), []
        for before in state:
            y_B1D, new = self.attention.step(self.norm(x_B1D), before)
            x_B1D = x_B1D + y_B1D
            after.append(new)
        return x_B1D, after
