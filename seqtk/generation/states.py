"""A model's decoding state for the rows of a search, and how it follows them.

R rows, D width, V vocabulary.
"""

import math

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from seqtk.attention import State
from seqtk.data.batch import TranslationBatch
from seqtk.models.base import Model


class RowStates:
    """One model with the state of every row.

    A leaf that every step so far has handed back untouched, as cross-attention does with the keys of its memory, is
    equal in all beams of a sentence. It need not be copied while beams only change places within their sentence.
    """

    def __init__(self, model: Model, batch: TranslationBatch) -> None:
        self.model = model
        self.state: State = model.start(batch)
        self._untouched = [True] * len(tree_flatten(self.state)[0])

    def step(self, token_R: Tensor, *, temperature: float) -> Tensor:
        """log_p_RV after each row has read its token."""
        before = [(leaf, _version(leaf)) for leaf in tree_flatten(self.state)[0]]
        features_R1D, self.state = self.model.step(token_R, self.state)
        after = tree_flatten(self.state)[0]
        if len(after) == len(before):
            pairs = zip(self._untouched, before, after, strict=True)
            self._untouched = [was and old is new and version == _version(new) for was, (old, version), new in pairs]
        else:
            self._untouched = [False] * len(after)
        return self.model.head.log_probs(features_R1D, temperature=temperature)[:, 0]

    def reorder(self, row_R: Tensor, *, across_sentences: bool) -> None:
        """Make row i the continuation of what was row `row_R[i]`; `across_sentences` unless i is of that sentence."""
        if not across_sentences and torch.equal(row_R, torch.arange(len(row_R), device=row_R.device)):
            return
        leaves, tree = tree_flatten(self.state)
        self.state = tree_unflatten(
            [
                leaf if leaf is None or (untouched and not across_sentences) else leaf.index_select(0, row_R)
                for leaf, untouched in zip(leaves, self._untouched, strict=True)
            ],
            tree,
        )


def _version(leaf: Tensor | None) -> float:
    """A number that changes when the leaf is changed in place."""
    if leaf is None:
        return 0
    # Tensors made in inference mode do not count their changes; NaN is equal to nothing, so they pass for changed.
    return math.nan if leaf.is_inference() else leaf._version
