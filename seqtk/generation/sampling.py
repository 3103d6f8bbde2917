"""Sampling: draws each token from the model's distribution, or from its most probable tokens.

The random numbers of a sample depend only on the seed, the index of the example and the number of the sample, so they
do not depend on the batch.

B rows of the batch, R = B nbest unfinished samples, N samples in all, T tokens, V vocabulary, K candidates.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from seqtk.data.batch import LanguageBatch, TranslationBatch
from seqtk.data.vocabulary import EOS
from seqtk.generation.beams import best
from seqtk.generation.config import SearchConfig
from seqtk.generation.constraints import BANNED, Constraints
from seqtk.generation.decoder_state import PartialHypotheses
from seqtk.generation.scoring import Hypothesis, check_not_nan, finish
from seqtk.models.base import Model


@torch.no_grad()
def sample(
    models: Sequence[Model],
    batch: TranslationBatch | LanguageBatch,
    config: SearchConfig,
    constraints: Constraints,
) -> list[list[Hypothesis]]:
    """Returns `nbest` samples for each row of `batch`, in the order in which they are drawn.

    The score of a token is its log-probability at the given temperature, before `top_k`, `top_p` and `min_p`.
    """
    device = batch.ids_B.device
    rows = PartialHypotheses(models, batch)
    samples = list(range(len(batch.ids_B) * config.nbest))  # the numbers of the unfinished samples
    text_R = torch.arange(len(samples), device=device)
    rows.reorder(text_R // config.nbest, across_sentences=True)
    uniform_NT = uniform_numbers(
        batch.ids_B.tolist(), seed=config.seed, samples=config.nbest, length=int(constraints.max_B.max()) + 1
    ).to(device)
    found: list[Hypothesis | None] = [None] * len(samples)
    while samples:
        log_p_RV = rows.next_log_probs(temperature=config.temperature)
        constraints.apply(log_p_RV, tokens_RT=rows.tokens_RT, row_R=text_R // config.nbest)
        token_R = draw(
            log_p_RV,
            uniform_NT[text_R, rows.tokens_RT.shape[1]],
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
        )
        score_R = log_p_RV.gather(1, token_R[:, None]).squeeze(1)
        ends = (token_R == EOS).tolist()
        if not any(ends):
            rows.append(token_R, score_R)
            continue
        done, left = ([number for number, is_end in enumerate(ends) if is_end is kind] for kind in (True, False))
        done_N, left_R = (torch.tensor(numbers, dtype=torch.long, device=device) for numbers in (done, left))
        scores_NT = torch.cat([rows.scores_RT[done_N], score_R[done_N, None]], dim=1)
        for number, tokens, scores in zip(done, rows.tokens_RT[done_N].tolist(), scores_NT.tolist(), strict=True):
            found[samples[number]] = finish(tokens, scores, config)
        samples, text_R = [samples[number] for number in left], text_R[left_R]
        rows.reorder(left_R, across_sentences=True)
        rows.append(token_R[left_R], score_R[left_R])
    texts = [text for text in found if text is not None]
    return [texts[first : first + config.nbest] for first in range(0, len(texts), config.nbest)]


def draw(log_p_RV: Tensor, uniform_R: Tensor, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """Samples token_R, one token for each row: the first candidate whose cumulative probability exceeds `uniform_R`.

    The candidates are the tokens that pass three filters, all of which use the probabilities before filtering:

    - `top_k`: the `top_k` most probable tokens, or all tokens if it is 0.
    - `top_p`: the smallest set of most probable tokens whose total probability is at least `top_p` (nucleus sampling,
      Holtzman et al. 2020, arXiv:1904.09751).
    - `min_p`: tokens with at least `min_p` times the highest probability (arXiv:2407.01082).

    Equal probabilities are ordered by token id. If all tokens are banned, the result is EOS.

    Args:
        log_p_RV: The log-probabilities.
        uniform_R: A uniform random number from [0, 1) for each row.
        top_k, top_p, min_p: The filters.
    """
    all_banned_R = (log_p_RV == BANNED).all(dim=1)
    p_RV = log_p_RV.double().softmax(dim=1)
    p_RV.masked_fill_(all_banned_R[:, None], 0)[:, EOS].masked_fill_(all_banned_R, 1)
    check_not_nan(p_RV)
    id_RK: Tensor | None = None
    if 0 < top_k < p_RV.shape[1]:
        p_RK, id_RK = best(p_RV, count=top_k)
    elif top_p < 1:
        p_RK, id_RK = p_RV.sort(dim=1, descending=True, stable=True)
    else:
        p_RK = p_RV
    kept_RK = p_RK >= min_p * p_RK.amax(dim=1, keepdim=True)
    if top_p < 1:
        kept_RK &= p_RK.cumsum(dim=1) - p_RK < top_p
    p_RK = p_RK * kept_RK
    sum_RK = p_RK.cumsum(dim=1)
    index_R1 = torch.searchsorted(sum_RK, uniform_R[:, None] * sum_RK[:, -1:], right=True)
    # After rounding, the random number can equal the total probability. Then the last candidate is chosen.
    last_R1 = (sum_RK < sum_RK[:, -1:]).sum(dim=1, keepdim=True)
    index_R1 = torch.minimum(index_R1, last_R1)
    return (index_R1 if id_RK is None else id_RK.gather(1, index_R1)).squeeze(1)


def uniform_numbers(examples: Sequence[int], *, seed: int, samples: int, length: int) -> Tensor:
    """Returns random numbers from [0, 1), with a row of `length` numbers for each sample of each example.

    A greater `length` adds numbers at the end of each row. NumPy guarantees the same numbers in all its versions.
    """
    rows = [
        np.random.RandomState(np.random.Philox(np.random.SeedSequence([seed, example, number]))).random_sample(length)
        for example in examples
        for number in range(samples)
    ]
    return torch.from_numpy(np.stack(rows))
