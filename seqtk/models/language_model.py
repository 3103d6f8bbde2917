"""A Transformer language model: a causal stack with any attention layers that have a causal form.

B batch, T length, D width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from seqtk.attention import Scope, State
from seqtk.attention.softmax import SoftmaxConfig
from seqtk.config.fields import probability, setting
from seqtk.data.batch import LanguageBatch
from seqtk.data.vocabulary import PAD
from seqtk.models.base import Model, models
from seqtk.models.stacks import BlocksConfig, Decoder, DecoderConfig, Pattern
from seqtk.modules.adaptive import AdaptiveConfig, AdaptiveEmbedding, AdaptiveHead
from seqtk.modules.embedding import token_embedding
from seqtk.modules.head import Head, LinearHead
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class TransformerLMConfig(BlocksConfig):
    """fairseq's transformer_lm: 6 causal blocks of width 512 with 8 heads, post-norm, ReLU, sinusoidal positions."""

    layers: int = setting(6, at_least=0, at_most=10_000, help="Number of blocks.")
    attention: Pattern = setting((SoftmaxConfig(),), help="One layer, or a list that repeats through the blocks.")
    max_length: int = setting(
        1024,
        at_least=1,
        help="Maximum number of tokens in a sample, and number of learned positions. Ignored with positions=none if "
        "all attention layers have a recurrent state.",
    )
    tie_embeddings: bool = setting(
        True, help="Share one embedding table between input and output. With an adaptive softmax: one table per band."
    )
    adaptive: AdaptiveConfig | None = setting(
        None, help="Adaptive input and softmax, which use narrower vectors for rarer words. null: neither."
    )
    final_norm: bool = setting(True, help="With pre_norm: add a norm after the last block.")
    bias: bool = setting(
        True, help="Use biases in feed-forward networks and norms. For attention layers, set attention.bias."
    )
    layer_drop: float = probability(0.0, help="Probability that a block is skipped in training.")


def token_table(config: TransformerLMConfig, vocabulary: int) -> nn.Embedding | AdaptiveEmbedding:
    """Builds the token embedding."""
    adaptive = config.adaptive
    if adaptive is None or adaptive.input_factor is None:
        return token_embedding(vocabulary, config.dim)
    return AdaptiveEmbedding(adaptive.bands(vocabulary), dim=config.dim, factor=adaptive.input_factor)


def output_head(config: TransformerLMConfig, vocabulary: int, tokens: nn.Embedding | AdaptiveEmbedding) -> Head:
    """Builds the output head. With `tie_embeddings`, the head shares the weights of `tokens`."""
    adaptive = config.adaptive
    if adaptive is not None and config.tie_embeddings and adaptive.input_factor != adaptive.softmax_factor:
        raise UserError(
            f"model.adaptive has input_factor={adaptive.input_factor or 'null'} and "
            f"softmax_factor={adaptive.softmax_factor or 'null'}, so input and output cannot share their embeddings.",
            "Make them equal, or set model.tie_embeddings=false.",
        )
    tied = tokens if config.tie_embeddings else None
    if adaptive is None or adaptive.softmax_factor is None:
        assert not isinstance(tied, AdaptiveEmbedding)
        return LinearHead(config.dim, vocabulary, tied_to=tied)
    assert not isinstance(tied, nn.Embedding)
    return AdaptiveHead(
        adaptive.bands(vocabulary),
        dim=config.dim,
        factor=adaptive.softmax_factor,
        dropout=adaptive.dropout,
        tied_to=tied,
        tie_projections=adaptive.tie_projections,
    )


class LanguageModel(Model):
    """Base class of language models.

    `forward` reads `previous_BT` of a LanguageBatch. The feature of position t depends only on tokens 0 to t.
    """

    reads = LanguageBatch

    def start(self, batch: LanguageBatch) -> State:
        """Returns the state after reading the prompt of each row, `batch.previous_BT`, which may be empty.

        The first token that a model reads is EOS, as in training. All prompts of a batch must have the same length.
        """
        if bool((batch.previous_BT == PAD).any()):
            raise ValueError("all prompts of a batch must have the same length")
        state = self.empty_state(len(batch.ids_B), batch.ids_B.device)
        for token_B in batch.previous_BT.unbind(1):
            _, state = self.step(token_B, state)
        return state

    def empty_state(self, batch: int, device: torch.device) -> State:
        """Returns the decoding state of `batch` rows before the first token."""
        raise NotImplementedError


@models.register("transformer_lm", TransformerLMConfig)
class TransformerLM(LanguageModel):
    """A Transformer language model: embeddings, causal blocks and a head. Parameter counts equal fairseq's."""

    def __init__(self, config: TransformerLMConfig, *, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        tokens = token_table(config, vocabulary)
        self.embedding = config.embedding(tokens, max_length=config.max_length)
        options = replace(config.options(), bias=config.bias, final_norm=config.final_norm)
        stack = DecoderConfig(layers=config.layers, self_attention=config.attention)
        self.decoder = Decoder(stack, options=options, layer_drop=config.layer_drop, slot="model.attention")
        self.head = output_head(config, vocabulary, tokens)
        recurrent = all(layer.scope is Scope.SEGMENT for _, layer in self.attention_layers())
        if config.positions != "none" or not recurrent:  # in all other cases, a text may have any length
            self.max_target_length = config.max_length

    def forward(self, batch: LanguageBatch, state: State = None) -> tuple[Tensor, State]:
        """Returns (features_BTD, recurrent state). Only layers with the scope SEGMENT have a recurrent state."""
        if any(leaf is not None for leaf in tree_leaves(state)):
            self.check_supports_recurrent_state()
        return self.decoder(self.embedding(batch.previous_BT), state=state)  # type: ignore[no-any-return]

    def check_supports_recurrent_state(self) -> None:
        recurrent = any(layer.scope is Scope.SEGMENT for _, layer in self.attention_layers())
        if recurrent and self.config.positions != "none":
            raise UserError(
                f"model.positions={self.config.positions}: positions would restart in every segment of a stream.",
                "The attention has recurrent state and encodes distances itself.",
                "Set model.positions=none.",
            )

    def empty_state(self, batch: int, device: torch.device) -> State:
        return {
            "position_B1": torch.zeros(batch, 1, dtype=torch.long, device=device),
            "blocks": self.decoder.start(batch),
        }

    def step(self, token_B: Tensor, state: State) -> tuple[Tensor, State]:
        x_B1D = self.embedding(token_B[:, None], state["position_B1"])
        y_B1D, blocks = self.decoder.step(x_B1D, state["blocks"])
        return y_B1D, {"position_B1": state["position_B1"] + 1, "blocks": blocks}
