"""Computes the log-probability of every token of a stream with language models.

B batch, T length, D width, N targets.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seqtk.attention import State
from seqtk.data.batch import LanguageBatch
from seqtk.data.blocks import ContextBlocks, collate_windows
from seqtk.data.loader import load_batches
from seqtk.data.plan import BatchingConfig, ordered_batches
from seqtk.data.sources import Items
from seqtk.data.streams import stream_rows
from seqtk.data.vocabulary import PAD, UNK, Vocabulary
from seqtk.generation.length_limits import length_limit
from seqtk.generation.scoring import check_not_nan
from seqtk.models.base import Model, rows_of
from seqtk.utils.errors import UserError
from seqtk.utils.memory import trimming

SUM_CHUNK = 1 << 20


@dataclass(frozen=True)
class StreamScores:
    """The log-probabilities of the tokens of a stream."""

    log_p_N: npt.NDArray[np.float32]
    """The log-probability of each token in nats; NaN for tokens outside all blocks, such as document separators."""
    unknown: int
    """The number of scored tokens that are UNK."""

    @property
    def tokens(self) -> int:
        """The number of scored tokens."""
        return int(np.count_nonzero(~np.isnan(self.log_p_N)))

    @property
    def nll(self) -> float:
        """The sum of -log p over the scored tokens, in float64."""
        chunks = (self.log_p_N[at : at + SUM_CHUNK] for at in range(0, len(self.log_p_N), SUM_CHUNK))
        return -float(sum(float(np.nansum(chunk, dtype=np.float64)) for chunk in chunks))


@torch.no_grad()
def score_stream(
    models: Sequence[Model],
    blocks: ContextBlocks,
    *,
    batching: BatchingConfig,
    device: torch.device,
    bf16: bool = False,
    streams: int | None = None,
    advance: Callable[[int], object] = lambda tokens: None,
) -> StreamScores:
    """Computes the log-probability of every token in the blocks of a stream.

    Args:
        models: One language model, or several, whose probabilities are averaged. They must be in evaluation mode.
        blocks: The blocks (samples) of the stream.
        batching: The maximum size of a batch. Not used with `streams`.
        device: The device of the models.
        bf16: True to compute under bfloat16 autocast.
        streams: The number of contiguous streams into which the blocks are split, each with a recurrent state (see
            `seqtk.data.plan`). The blocks must have no context. If it is None, the blocks are independent.
        advance: Called after each batch with its number of scored tokens.

    Raises:
        UserError: If a block is longer than a model allows, or a log-probability is NaN.
    """
    _check(models, blocks)
    if streams is not None:
        for model in models:
            model.check_supports_recurrent_state()
    log_p_N = np.full(blocks.items.total, np.nan, dtype=np.float32)
    unknown = 0
    batches = ordered_batches(blocks.sizes_ND, batching) if streams is None else stream_rows(len(blocks), streams)
    states: list[State] = [None] * len(models)
    for batch in trimming(load_batches(batches, blocks, collate_windows)):
        position_N = _stream_positions(blocks, batch)
        batch = batch.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            results = [
                _target_scores(model, batch, rows_of(state, slice(len(batch.ids_B))))
                for model, state in zip(models, states, strict=True)
            ]
        if streams is not None:
            states = [state for _, state in results]
        scores_MN = torch.stack([scores_N for scores_N, _ in results])
        scores_N = scores_MN.logsumexp(dim=0) - np.log(len(models))
        check_not_nan(scores_N)
        log_p_N[position_N] = scores_N.float().cpu().numpy()
        unknown += int((batch.target_BT == UNK).sum())
        advance(len(position_N))
    return StreamScores(log_p_N, unknown)


def _target_scores(model: Model, batch: LanguageBatch, state: State) -> tuple[Tensor, State]:
    """Returns log_p_N, the log-probability of each target except PAD, row by row; and the state after the batch."""
    kept_BT = batch.target_BT != PAD
    features_BTD, state = model(batch, state)
    return model.head.target_log_probs(features_BTD[kept_BT], batch.target_BT[kept_BT]), state


def _stream_positions(blocks: ContextBlocks, batch: LanguageBatch) -> npt.NDArray[np.int64]:
    """Returns the positions of the batch's targets in the stream, in the order of `_target_scores`."""
    row_N, column_N = (batch.target_BT != PAD).nonzero(as_tuple=True)
    index_B = batch.ids_B.numpy()
    # The last target of a row is the last token of its block.
    first_B = blocks.bounds_K2[index_B, 1] - blocks.sizes_ND[index_B, 0]
    positions: npt.NDArray[np.int64] = first_B[row_N.numpy()] + column_N.numpy()
    return positions


def _check(models: Sequence[Model], blocks: ContextBlocks) -> None:
    if any(model.training for model in models):
        raise ValueError("the models must be in eval mode")
    longest, limit = int(blocks.sizes_ND.max(initial=0)), length_limit(models, "target")
    if limit is not None and longest > limit:
        raise UserError(
            f"A sample has {longest:,} tokens, but the model reads at most {limit:,}.",
            f"Set tokens_per_sample={limit} or less. To split longer lines, set break_mode=none.",
        )


def score_lines(items: Items, scores: StreamScores, vocabulary: Vocabulary) -> Iterator[str]:
    """Yields a line of JSON for each item of the stream, with its tokens and their log-probabilities.

    The log-probability of a token that was not scored is null.
    """
    names = np.array(vocabulary.tokens, dtype=object)
    ends_N = np.cumsum(items.sizes, dtype=np.int64)
    for index, (end, size) in enumerate(zip(ends_N.tolist(), items.sizes.tolist(), strict=True)):
        log_p_T = scores.log_p_N[end - size : end].astype(np.float64)
        token_scores = [None if score != score else score for score in log_p_T.tolist()]
        yield json.dumps(
            {
                "index": index,
                "score": float(np.nansum(log_p_T)),
                "tokens": names[items[index]].tolist(),
                "token_scores": token_scores,
            },
            ensure_ascii=False,
        )
