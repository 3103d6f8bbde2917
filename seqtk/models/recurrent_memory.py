"""The Recurrent Memory Transformer as a language model. Memory tokens pass information from segment to segment.

B batch, T length of a sample, S tokens of a segment, M memory tokens, N = S + 2 M, D width.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seqtk.attention import Attention, State
from seqtk.config.fields import setting
from seqtk.data.batch import LanguageBatch
from seqtk.models.base import Side, models
from seqtk.models.language_model import TransformerLM, TransformerLMConfig
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class RecurrentMemoryLMConfig(TransformerLMConfig):
    """A transformer_lm that reads segments of 512 tokens and passes memory tokens from each segment to the next."""

    max_length: int = setting(
        1024,
        at_least=1,
        help="Number of learned positions, at least segment_length + 2 × memory_tokens.",
    )
    segment_length: int = setting(
        512, at_least=1, help="Number of tokens in a segment. Samples are split into segments; gradients cross them."
    )
    memory_tokens: int = setting(
        10, at_least=0, help="Number of memory vectors that a segment reads before its tokens and writes after them."
    )


@models.register("recurrent_memory_lm", RecurrentMemoryLMConfig)
class RecurrentMemoryLM(TransformerLM):
    """A `transformer_lm` that reads [memory; segment; memory] (Bulatov et al. 2022, arXiv 2207.06881).

    Both copies of the memory are the outputs of the previous segment at its last M positions. The first segment reads
    learned vectors (M D parameters). Memory tokens have positions like other tokens, and attention is causal, so any
    causal layer can be used. Gradients flow back to the start of a sample, through the memory of all its segments.
    """

    config: RecurrentMemoryLMConfig

    def __init__(self, config: RecurrentMemoryLMConfig, *, vocabulary: int) -> None:
        super().__init__(config, vocabulary=vocabulary)
        self.max_target_length = None  # a sample may have any number of segments
        length = config.segment_length + 2 * config.memory_tokens
        limits = [("model", config.max_length), *(("attention", x.max_length) for _, x in self.attention_layers())]
        for owner, limit in limits:
            if limit is not None and length > limit:
                raise UserError(
                    f"model.segment_length={config.segment_length} + 2 × model.memory_tokens={config.memory_tokens} "
                    f"exceeds {owner}.max_length={limit}.",
                    f"Set {owner}.max_length={length}, or lower model.segment_length or model.memory_tokens.",
                )
        # Memory vectors have the same initial scale as token vectors.
        deviation = self.embedding.scale / math.sqrt(config.dim)
        self.memory_MD = nn.Parameter(torch.randn(config.memory_tokens, config.dim) * deviation)

    def length_limited_layers(self, side: Side) -> Iterable[Attention]:
        """Returns no layers: a layer sees one segment at a time, and the constructor checks the length of segments."""
        return ()

    def separate_blocks(self) -> list[nn.Module]:
        """Returns no modules, so that all weights are sharded as one unit.

        A block is called once per segment, and the processes may have different numbers of segments.
        """
        return []

    def check_supports_recurrent_state(self) -> None:
        """Never fails: a recurrent state is always supported, because positions restart in each segment."""

    def forward(self, batch: LanguageBatch, state: State = None) -> tuple[Tensor, State]:
        """Returns (features_BTD, memory of the last segment). Padding is allowed only at the end of a text."""
        memory_BMD = self.memory_MD.expand(len(batch.previous_BT), -1, -1)
        if state is not None:
            memory_BMD = memory_BMD * 0 + state  # data parallelism expects a gradient for every parameter
        features = []
        for tokens_BS in torch.split(batch.previous_BT, self.config.segment_length, dim=1):
            y_BND, _ = self.decoder(self.embedding(tokens_BS, around_BMD=memory_BMD))
            sizes = [len(self.memory_MD), tokens_BS.shape[1], len(self.memory_MD)]
            _, features_BSD, memory_BMD = torch.split(y_BND, sizes, dim=1)
            features.append(features_BSD)
        return torch.cat(features, dim=1), memory_BMD

    def empty_state(self, batch: int, device: torch.device) -> State:
        return self._begin(self.memory_MD.expand(batch, -1, -1))

    def step(self, token_B: Tensor, state: State) -> tuple[Tensor, State]:
        """Reads the next token (see `Model.step`). The first step of a segment also computes the segment's memory."""
        if int(state["position_B1"][0]) == len(self.memory_MD) + self.config.segment_length:
            written_BMD, _ = self._step_through(state["memory_BMD"], state)
            state = self._begin(written_BMD)
        return self._step_through(self.embedding.vectors(token_B[:, None]), state)

    def _begin(self, memory_BMD: Tensor) -> State:
        """Reads the memory, and returns the state before the first token of a segment."""
        empty = super().empty_state(len(memory_BMD), memory_BMD.device)
        return self._step_through(memory_BMD, {**empty, "memory_BMD": memory_BMD})[1]

    def _step_through(self, x_BTD: Tensor, state: State) -> tuple[Tensor, State]:
        """Runs the decoder on the positions of x one by one. Returns (features_BTD, state after the last position)."""
        features = [x_BTD[:, :0]]
        for x_BD in x_BTD.unbind(1):
            placed_B1D = self.embedding.place(x_BD[:, None], state["position_B1"])
            y_B1D, blocks = self.decoder.step(placed_B1D, state["blocks"])
            state = {**state, "position_B1": state["position_B1"] + 1, "blocks": blocks}
            features.append(y_B1D)
        return torch.cat(features, dim=1), state
