"""A vocabulary cut into bands by frequency: many parameters for the few frequent words, few for the many rare ones.

N positions, M of them in one band, D width of the model, E width of a band.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from seqtk.config.fields import probability, setting
from seqtk.data.vocabulary import SPECIALS
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class AdaptiveConfig:
    """Adaptive input (Baevski and Auli 2019, arXiv:1809.10853) and softmax (Grave et al. 2017, arXiv:1609.04309).

    `cutoffs` count ids, so the dictionary has to go from frequent words to rare ones, as those of words and of
    SentencePiece do. With any other order the model is as right, but frequent words get the narrow vectors and cost
    two softmaxes each: it is slower and worse.
    """

    cutoffs: tuple[int, ...] = setting(
        (20000, 60000),
        at_least=1,
        help="First id of the second band, the third, and so on. Ids go from frequent to rare.",
    )
    input_factor: float | None = setting(
        4.0,
        at_least=1,
        help="How many times narrower the vectors of a band are than those of the band before. null: one table.",
    )
    softmax_factor: float | None = setting(
        4.0, at_least=1, help="The same for the output. null: one softmax over all words."
    )
    tie_projections: bool = setting(
        True, help="Share projections between input and output where tables are tied (tie_embeddings)."
    )
    dropout: float = probability(0.0, help="Dropout of the input of the adaptive softmax, and of its projections.")

    def bands(self, vocabulary: int) -> "Bands":
        """The bands of `vocabulary` ids. Raises UserError for cutoffs that leave one empty."""
        shown = f"model.adaptive.cutoffs={list(self.cutoffs)}"
        starts = (0, *self.cutoffs)
        sizes = tuple(end - start for start, end in zip(starts, (*self.cutoffs, vocabulary), strict=True))
        if not self.cutoffs or self.cutoffs[0] < len(SPECIALS) or min(sizes[:-1]) < 1:
            raise UserError(
                f"{shown} are no cutoffs: they must rise, from {len(SPECIALS)} on.",
                "Each is the first id of a band of rarer words, after the special symbols and the frequent words.",
            )
        if sizes[-1] < 1:
            raise UserError(
                f"{shown} do not fit a vocabulary of {vocabulary:,}: the last must be below it.",
                "They count the ids of the dictionary, which has to go from frequent words to rare ones.",
            )
        return Bands(starts, sizes)


@dataclass(frozen=True)
class Bands:
    """Ids from `starts[i]` on, `sizes[i]` of them, are band i."""

    starts: tuple[int, ...]
    sizes: tuple[int, ...]

    def widths(self, dim: int, factor: float) -> list[int]:
        """E of each band, D / factor^i rounded down. Raises UserError where that leaves nothing."""
        widths = [int(dim // factor**band) for band in range(len(self.sizes))] if factor >= 1 else [0]
        if widths[-1] < 1:
            raise UserError(
                f"model.adaptive: a factor of {factor:g} is not possible with dim={dim} and {len(self.sizes)} bands.",
                "It is at least 1, and dim / factor^i is the width of the vectors of band i, from 0.",
            )
        return widths

    def number(self, ids_N: Tensor) -> Tensor:
        """Which band each id is in."""
        return torch.stack([ids_N >= start for start in self.starts[1:]]).sum(0)

    def members(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        """For each band the positions of its ids, rising. The device is waited for once, not once a band."""
        band_N = self.number(ids_N)
        sizes: list[int] = torch.bincount(band_N, minlength=len(self.sizes)).tolist()
        return torch.split(band_N.argsort(stable=True), sizes)
