"""How a search is configured; apart from it, so that a command can check its arguments before torch is loaded."""

import math
from dataclasses import dataclass

from seqtk.config.fields import setting
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class SearchConfig:
    """How translations, and texts of language models, are searched and ranked, or drawn at random."""

    beam: int | None = None  # hypotheses kept at each step, 5 where null; 1 is greedy search; sampling keeps none
    nbest: int = 1  # hypotheses given for each sentence: at most beam, or so many samples
    length_penalty: float = 1.0  # score = Σ log p / tokens^length_penalty, EOS counted; more favours longer ones
    normalize_scores: bool = True  # false: score = Σ log p
    unk_penalty: float | None = setting(
        None,
        infinite=True,
        help="Subtracted from the log-probability of <unk>. inf: <unk> is never produced. "
        "null: 0, or inf for language models.",
    )
    min_length: int = 1  # tokens before EOS, at least
    max_length_a: float = 0.0  # tokens before EOS, at most: a · source tokens (EOS counted) + b, …
    max_length_b: int = 200  # … and never more than the model can write; of language models: behind a prompt
    no_repeat_ngram: int = 0  # no n tokens in a row occur twice; 0: they may
    temperature: float = 1.0  # divides the logits
    sampling: bool | None = None  # draw tokens by their probability; null: for language models alone
    top_k: int = 0  # sampling: from the k most probable tokens; 0: from all
    top_p: float = 1.0  # sampling: from the fewest tokens whose probabilities add up to p
    min_p: float = 0.0  # sampling: from tokens of at least so many times the greatest probability
    seed: int = 1  # sampling: another one draws other texts

    @property
    def width(self) -> int:
        """The hypotheses that a search keeps at each step."""
        return 5 if self.beam is None else self.beam

    def check(self) -> None:
        """Raises UserError where the values make no search."""
        if self.nbest < 1 or (self.nbest > self.width and not self.sampling):
            raise UserError(
                f"nbest={self.nbest} hypotheses cannot come from beam={self.width}.",
                "Raise beam, or set sampling=true." if self.nbest > 0 else "Give at least one.",
            )
        if self.sampling and self.beam is not None:
            raise UserError(
                f"beam={self.beam} is for a search, and this draws at random, as language models do by default.",
                "Set sampling=false, or leave beam out: nbest= says how many texts are drawn.",
            )
        if not self.temperature > 0:
            raise UserError(f"temperature={self.temperature} must be more than 0.", "top_k=1 takes the best token.")
        if not (0 < self.top_p <= 1 and 0 <= self.min_p <= 1):
            raise UserError(f"top_p={self.top_p} and min_p={self.min_p} are shares: 0 < top_p <= 1, 0 <= min_p <= 1.")
        if not self.sampling and (self.top_k, self.top_p, self.min_p) != (0, 1.0, 0.0):
            raise UserError("top_k=, top_p= and min_p= are for sampling=true.", "A beam search takes the best tokens.")
        for key, value in (("length_penalty", self.length_penalty), ("max_length_a", self.max_length_a)):
            if not math.isfinite(value):
                raise UserError(f"{key}={value} must be a finite number.")
        if self.unk_penalty is not None and math.isnan(self.unk_penalty):
            raise UserError("unk_penalty=nan is no number.", "unk_penalty=inf leaves <unk> out.")
        if self.max_length_a == 0 and self.min_length > max(self.max_length_b, 1):
            raise UserError(
                f"min_length={self.min_length} is more than max_length_b={self.max_length_b} allows.",
                "Raise max_length_b, or lower min_length.",
            )
        for key in ("min_length", "max_length_a", "max_length_b", "no_repeat_ngram", "top_k", "seed"):
            if getattr(self, key) < 0:
                raise UserError(f"{key}={getattr(self, key)} cannot be negative.")
