"""Adaptive input and softmax: wide vectors for frequent words, narrow vectors for rare words.

The vocabulary is split into bands by frequency. B batch, T length, N positions (batch and length flattened), M
positions of one band, D width of the model, E width of a band, W words of a band.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqtk.config.fields import probability, setting
from seqtk.data.vocabulary import PAD, SPECIALS
from seqtk.modules.block import Dropout
from seqtk.modules.embedding import token_embedding
from seqtk.modules.head import Head, HeadLosses, picked, real_targets
from seqtk.ops.linear_cross_entropy import linear_cross_entropy
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class AdaptiveConfig:
    """Adaptive input (Baevski and Auli 2019, arXiv:1809.10853) and softmax (Grave et al. 2017, arXiv:1609.04309).

    `cutoffs` are ids, so the dictionary must be sorted from frequent words to rare ones. Word and SentencePiece
    dictionaries are sorted this way. Any other order works too, but is slower and less accurate: frequent words get
    narrow vectors and need two softmaxes each.
    """

    cutoffs: tuple[int, ...] = setting(
        (20000, 60000),
        at_least=1,
        help="First id of each band from the second band on. Ids must be sorted from frequent words to rare ones.",
    )
    input_factor: float | None = setting(
        4.0,
        at_least=1,
        help="Ratio of the embedding widths of one band and the next. null: one embedding table.",
    )
    softmax_factor: float | None = setting(
        4.0,
        at_least=1,
        help="Ratio of the widths of one band and the next in the output layer. null: one softmax over all words.",
    )
    tie_projections: bool = setting(
        True, help="Share projections between input and output. Only with tie_embeddings=true."
    )
    dropout: float = probability(0.0, help="Dropout of the adaptive softmax's input and projections.")

    def bands(self, vocabulary: int) -> "Bands":
        """Returns the bands of `vocabulary` ids. Raises UserError if the cutoffs give an empty band."""
        shown = f"model.adaptive.cutoffs={list(self.cutoffs)}"
        starts = (0, *self.cutoffs)
        sizes = tuple(end - start for start, end in zip(starts, (*self.cutoffs, vocabulary), strict=True))
        if not self.cutoffs or self.cutoffs[0] < len(SPECIALS) or min(sizes[:-1]) < 1:
            raise UserError(
                f"{shown} are not valid: cutoffs must increase, and the first must be at least {len(SPECIALS)}.",
                "A cutoff is the first id of a band of rarer words.",
            )
        if sizes[-1] < 1:
            raise UserError(
                f"{shown} are not valid: the last cutoff must be below the vocabulary size, {vocabulary:,}.",
                "Cutoffs are ids of the dictionary, which must be sorted from frequent words to rare ones.",
            )
        return Bands(starts, sizes)


@dataclass(frozen=True)
class Bands:
    """The bands of a vocabulary: band i has `sizes[i]` ids, from `starts[i]` on."""

    starts: tuple[int, ...]
    sizes: tuple[int, ...]

    def widths(self, dim: int, factor: float) -> list[int]:
        """Returns the width E of each band, D / factor^i rounded down. Raises UserError if a width is 0."""
        widths = [int(dim // factor**band) for band in range(len(self.sizes))] if factor >= 1 else [0]
        if widths[-1] < 1:
            raise UserError(
                f"model.adaptive: a factor of {factor:g} is not possible with dim={dim} and {len(self.sizes)} bands.",
                "A factor must be at least 1. Band i has vectors of width dim / factor^i, which must not be 0.",
            )
        return widths

    def number(self, ids_N: Tensor) -> Tensor:
        """Returns the band of each id."""
        return torch.stack([ids_N >= start for start in self.starts[1:]]).sum(0)

    def members(self, ids_N: Tensor) -> tuple[Tensor, ...]:
        """Returns, for each band, the positions of its ids in increasing order. Synchronizes the device once."""
        band_N = self.number(ids_N)
        sizes: list[int] = torch.bincount(band_N, minlength=len(self.sizes)).tolist()
        return torch.split(band_N.argsort(stable=True), sizes)


class AdaptiveEmbedding(nn.Module):
    """An embedding with one table per band, narrower for rarer words, and a projection to the model's width.

    The vector of a token of band b is x = P_b E_b[token] (Baevski and Auli 2019, arXiv:1809.10853, section 3). The
    first band, of full width, also has a projection. Tables are initialized from N(0, 1/E), projections with Xavier's
    uniform distribution.
    """

    def __init__(self, bands: Bands, *, dim: int, factor: float) -> None:
        super().__init__()
        self.cut = bands
        self.embedding_dim = dim
        widths = bands.widths(dim, factor)
        self.bands = nn.ModuleList(
            token_embedding(size, width, padding_idx=None if start else PAD)
            for start, size, width in zip(bands.starts, bands.sizes, widths, strict=True)
        )
        projections = [nn.Linear(width, dim, bias=False) for width in widths]
        for projection in projections:
            nn.init.xavier_uniform_(projection.weight)
        self.projections = nn.ModuleList(projections)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Returns the vectors of the tokens, x_BTD. Each uses only the table and the projection of its band."""
        tokens_N = tokens_BT.flatten()
        if torch.compiler.is_compiling():
            return self._from_all_bands(tokens_N).view(*tokens_BT.shape, -1)
        members = self.cut.members(tokens_N)
        parts = zip(self.bands, self.projections, self.cut.starts, members, strict=True)
        x_ND = torch.cat([project(table(tokens_N[at_M] - start)) for table, project, start, at_M in parts])
        return torch.empty_like(x_ND).index_copy(0, torch.cat(members), x_ND).view(*tokens_BT.shape, -1)

    def _from_all_bands(self, tokens_N: Tensor) -> Tensor:
        """Returns x_ND, computed with all tables and projections, for compiled code: no shape depends on the tokens."""
        band_N = self.cut.number(tokens_N)
        x_ND: Tensor | None = None
        for band, (table, project) in enumerate(zip(self.bands, self.projections, strict=True)):
            # Tokens of other bands read different rows: zero gradients for a single row would be added one by one.
            index_N = (tokens_N - self.cut.starts[band]).remainder(self.cut.sizes[band])
            part_ND = project(table(index_N)).where((band_N == band)[:, None], 0)
            x_ND = part_ND if x_ND is None else x_ND + part_ND
        assert x_ND is not None
        return x_ND


class AdaptiveHead(Head):
    """The adaptive softmax: rare words in two steps, p(w) = p(band) · p(w | band), with narrower vectors.

    The first softmax is over the words of the first band and one class for each other band. Each other band i has a
    separate softmax over its words, with vectors of width D / factor^i to which the features are projected (Grave et
    al. 2017, arXiv:1609.04309, section 4; no biases, as in fairseq).

    Args:
        bands: The words of each band.
        dim: D, the width of the features.
        factor: The ratio of the embedding widths of one band and the next.
        dropout: The dropout rate of the features and of their projections.
        tied_to: The embedding whose word vectors the head uses. By default, the head has separate word vectors.
        tie_projections: True if the head also uses the embedding's projections, transposed (except the first band's).
    """

    def __init__(
        self,
        bands: Bands,
        *,
        dim: int,
        factor: float,
        dropout: float = 0.0,
        tied_to: AdaptiveEmbedding | None = None,
        tie_projections: bool = False,
    ) -> None:
        super().__init__()
        self.cut = bands
        widths = bands.widths(dim, factor)
        if tied_to is not None:
            self.bands = nn.ParameterList(table.weight for table in tied_to.bands)
        else:
            self.bands = nn.ParameterList(map(_xavier_matrix, bands.sizes, widths))
        self.classes = _xavier_matrix(len(bands.sizes) - 1, dim)
        if tied_to is not None and tie_projections:
            self.projections = nn.ParameterList(linear.weight for linear in tied_to.projections[1:])
        else:
            self.projections = nn.ParameterList(_xavier_matrix(dim, width) for width in widths[1:])
        self.dropout = Dropout(dropout)

    def log_probs(self, features: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Returns float32 log-probabilities of every token. A temperature t changes p to p^(1/t), normalized.

        With a single softmax this is softmax(logits / t). Dividing the logits of each softmax by t, as fairseq does,
        gives a different distribution, in which the probability of a band is not the sum over its words.
        """
        first = _log_softmax(self._first_weight(), features)
        frequent, classes = torch.split(first, [self.cut.sizes[0], len(self.classes)], dim=-1)
        tails = zip(torch.split(classes, 1, dim=-1), self.projections, self.bands[1:], strict=True)
        log_p = torch.cat([frequent, *(band + _log_softmax(w_WE, features @ p_DE) for band, p_DE, w_WE in tails)], -1)
        return log_p if temperature == 1.0 else functional.log_softmax(log_p / temperature, dim=-1)

    def check_label_smoothing(self, label_smoothing: float) -> None:
        if label_smoothing:
            raise UserError(
                f"criterion.label_smoothing={label_smoothing:g} is not possible with an adaptive softmax.",
                "Smoothing requires the probability of every word at every position, which it does not compute.",
                "Set criterion=cross_entropy, or model.adaptive=null.",
            )

    def forward(
        self, features_BTD: Tensor, target: Tensor, *, pad_BT: Tensor | None = None, label_smoothing: float = 0.0
    ) -> HeadLosses:
        """Returns the sums of the losses. Each position uses only the softmaxes that its target requires."""
        self.check_label_smoothing(label_smoothing)
        losses: list[tuple[Tensor, Tensor]]
        if torch.compiler.is_compiling():
            losses = self._losses_of_all_bands(features_BTD.flatten(0, 1), target.flatten())
        else:
            steps = self._steps(*real_targets(features_BTD, target))
            losses = [linear_cross_entropy(x, weight, target_N) for _, x, target_N, weight in steps]
        totals, nlls = zip(*losses, strict=True)
        return HeadLosses(total=torch.stack(totals).sum(), nll=torch.stack(nlls).sum())

    def _losses_of_all_bands(self, features_ND: Tensor, target_N: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Returns (loss, unsmoothed loss) of each softmax, for compiled code: no shape depends on the targets."""
        features_ND, real_N, band_N = self.dropout(features_ND), target_N != PAD, self.cut.number(target_N)
        losses = [
            linear_cross_entropy(features_ND, self._first_weight(), self._first_target(target_N), counted_N=real_N)
        ]
        for band, (p_DE, w_WE) in enumerate(zip(self.projections, self.bands[1:], strict=True), start=1):
            losses.append(
                linear_cross_entropy(
                    self.dropout(features_ND @ p_DE),
                    w_WE,
                    target_N - self.cut.starts[band],
                    counted_N=real_N & (band_N == band),
                    few_counted=True,
                )
            )
        return losses

    def _first_target(self, target_N: Tensor) -> Tensor:
        """Returns the targets of the first softmax: a word of the first band, or the class of another band."""
        last_frequent = self.cut.sizes[0] - 1
        return torch.where(target_N <= last_frequent, target_N, last_frequent + self.cut.number(target_N))

    def target_log_probs(self, features_ND: Tensor, target_N: Tensor) -> Tensor:
        """Returns log_p_N, the float32 log-probability of each target in nats. Uses only the softmaxes of its band."""
        log_p_N = torch.zeros(len(target_N), device=target_N.device)
        for at_M, features, target_M, weight in self._steps(features_ND, target_N):
            log_p_N = log_p_N.index_add(0, at_M, picked(partial(_log_softmax, weight), features, target_M))
        return log_p_N

    def _steps(self, features_ND: Tensor, target_N: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yields (positions, inputs, targets, weight matrix) of each softmax."""
        features_ND = self.dropout(features_ND)
        first_N = self._first_target(target_N)
        yield torch.arange(len(target_N), device=target_N.device), features_ND, first_N, self._first_weight()
        members = self.cut.members(target_N)[1:]
        for start, at_M, p_DE, w_WE in zip(self.cut.starts[1:], members, self.projections, self.bands[1:], strict=True):
            yield at_M, self.dropout(features_ND[at_M] @ p_DE), target_N[at_M] - start, w_WE

    def _first_weight(self) -> Tensor:
        """Returns the weight matrix of the first softmax: rows for frequent words, then one for each other band."""
        return torch.cat([self.bands[0], self.classes])


def _xavier_matrix(rows: int, columns: int) -> nn.Parameter:
    """Returns a new parameter from Xavier's uniform distribution, as in fairseq's adaptive softmax."""
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(rows, columns)))


def _log_softmax(weight_WE: Tensor, features: Tensor) -> Tensor:
    return functional.log_softmax(functional.linear(features, weight_WE).float(), dim=-1)
