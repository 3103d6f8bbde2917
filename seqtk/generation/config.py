"""Settings of beam search and sampling. Commands can check them without importing torch, which takes seconds."""

from dataclasses import dataclass

from seqtk.config.fields import check as check_ranges
from seqtk.config.fields import setting
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class SearchConfig:
    """Settings of beam search and sampling."""

    beam: int | None = setting(None, at_least=1, help="Beam size. 1: greedy search. null: 5. Not used for sampling.")
    nbest: int = setting(
        1, at_least=1, at_most=10_000, help="Number of outputs for each input. Without sampling, at most the beam size."
    )
    length_penalty: float = setting(
        1.0,
        at_least=-50,  # beyond these limits, a power of the maximum length overflows
        at_most=50,
        help="Hypotheses are ranked by Σ log p / tokens^length_penalty, including EOS. Larger values favor longer "
        "hypotheses.",
    )
    normalize_scores: bool = setting(True, help="Apply the length penalty. false: hypotheses are ranked by Σ log p.")
    unk_penalty: float | None = setting(
        None,
        infinite=True,
        help="Subtracted from the log-probability of <unk>. inf: <unk> is never produced. "
        "null: 0, or inf for language models.",
    )
    min_length: int = setting(1, at_least=0, help="Minimum number of tokens before EOS.")
    max_length_a: float = setting(
        0.0,
        at_least=0,
        at_most=1e6,
        help="Maximum number of tokens before EOS: max_length_a × source tokens + max_length_b.",
    )
    max_length_b: int = setting(
        200, at_least=0, at_most=1_000_000, help="See max_length_a. Language models count the tokens after the prompt."
    )
    no_repeat_ngram: int = setting(0, at_least=0, help="No n-gram of this size is repeated in an output. 0: no limit.")
    temperature: float = setting(1.0, above=0, help="Divides the logits. Lower values make outputs more predictable.")
    sampling: bool | None = setting(None, help="Sample tokens by their probability. null: true for language models.")
    top_k: int = setting(0, at_least=0, help="Sample from the k most probable tokens. 0: from all.")
    top_p: float = setting(
        1.0,
        above=0,
        at_most=1,
        help="Sample from the smallest set of most probable tokens with a total probability of at least top_p.",
    )
    min_p: float = setting(
        0.0, at_least=0, at_most=1, help="Sample from tokens with at least min_p times the highest probability."
    )
    seed: int = setting(1, at_least=0, help="Seed of sampling.")

    @property
    def width(self) -> int:
        """The beam size: `beam` or, if it is None, 5."""
        return 5 if self.beam is None else self.beam

    def check(self, *, key: str = "") -> None:
        """Raises UserError if a value is out of range, or if settings contradict each other.

        `key` is the prefix of the settings' names in errors, such as `validation.search`.
        """
        check_ranges(self, key=key)
        at = f"{key}." if key else ""
        if self.nbest > self.width and not self.sampling:
            raise UserError(
                f"{at}nbest={self.nbest} is more than {at}beam={self.width}.",
                f"Set {at}beam={self.nbest} or {at}sampling=true.",
            )
        if self.sampling and self.beam is not None:
            raise UserError(
                f"{at}beam={self.beam} has no effect on sampling, the default of language models.",
                f"Set {at}sampling=false, or remove {at}beam=; {at}nbest= is the number of samples.",
            )
        if not self.sampling and (self.top_k, self.top_p, self.min_p) != (0, 1.0, 0.0):
            raise UserError(
                f"{at}top_k=, {at}top_p= and {at}min_p= require {at}sampling=true.",
                "They have no effect on beam search.",
            )
        if self.max_length_a == 0 and self.min_length > max(self.max_length_b, 1):
            raise UserError(
                f"{at}min_length={self.min_length} is more than the maximum, {at}max_length_b={self.max_length_b}.",
                f"Raise {at}max_length_b, or lower {at}min_length.",
            )
