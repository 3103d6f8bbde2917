"""How a search is configured; apart from it, so that a command can check its arguments before torch is loaded."""

from dataclasses import dataclass

from seqtk.errors import UserError


@dataclass(frozen=True)
class SearchConfig:
    """How translations are searched and ranked."""

    beam: int = 5  # hypotheses kept at each step; 1 is greedy search
    nbest: int = 1  # hypotheses given for each sentence, at most beam
    length_penalty: float = 1.0  # score = Σ log p / tokens^length_penalty, EOS counted; more favours longer ones
    normalize_scores: bool = True  # false: score = Σ log p
    unk_penalty: float = 0.0  # taken off the log-probability of <unk>
    min_length: int = 1  # tokens before EOS, at least
    max_length_a: float = 0.0  # tokens before EOS, at most: a · source tokens (EOS counted) + b, …
    max_length_b: int = 200  # … and never more than the model can write
    no_repeat_ngram: int = 0  # no n tokens in a row occur twice; 0: they may
    temperature: float = 1.0  # divides the logits

    def check(self) -> None:
        """Raises UserError where the values make no search."""
        if not 1 <= self.nbest <= self.beam:
            raise UserError(f"nbest={self.nbest} hypotheses cannot come from beam={self.beam}.", "Raise beam.")
        if self.temperature <= 0:
            raise UserError(f"temperature={self.temperature} must be more than 0.")
        for key in ("min_length", "max_length_a", "max_length_b", "no_repeat_ngram"):
            if getattr(self, key) < 0:
                raise UserError(f"{key}={getattr(self, key)} cannot be negative.")
