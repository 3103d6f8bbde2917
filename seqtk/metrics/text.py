"""Scores of a whole corpus by sacreBLEU, each with the signature that says how it was computed.

Validation, generation and scoring all come here, so they agree to the last digit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seqtk.utils.errors import UserError, nearest

METRICS = ("bleu", "chrf", "ter")
BLEU_TOKENIZERS = ("13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none", "flores200")


@dataclass(frozen=True)
class MetricScore:
    """One figure of a corpus."""

    value: float
    signature: str
    """sacreBLEU's, as in `nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:…`."""
    line: str
    """As sacreBLEU prints it, without the signature: `BLEU = 28.1 …`."""

    @property
    def signed_line(self) -> str:
        """As sacreBLEU prints it, with the signature: `BLEU|nrefs:1|… = 28.1 …`."""
        name, equals, rest = self.line.partition(" = ")
        return f"{name}|{self.signature}{equals}{rest}"


def corpus_scores(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    metrics: Sequence[str] = ("bleu", "chrf"),
    lowercase: bool = False,
    tokenize: str = "13a",
) -> dict[str, MetricScore]:
    """The scores of `hypotheses`, line by line against `references`, by the names in `metrics`."""
    check_lengths({"the hypotheses": hypotheses}, references)
    scores = {}
    for name, metric in build_metrics(metrics, lowercase=lowercase, tokenize=tokenize).items():
        score = metric.corpus_score(list(hypotheses), [list(references)])
        signature = str(metric.get_signature())
        scores[name] = MetricScore(value=score.score, signature=signature, line=str(score))
    return scores


@dataclass(frozen=True)
class ComparedSystem:
    """One system in a paired test."""

    system: str
    value: float
    mean: float
    half_width: float
    """95 % of the samples' scores lie within mean ± half_width."""
    p_value: float | None
    """How likely a difference from the first system so large is by chance; None for the first itself."""


@dataclass(frozen=True)
class Comparison:
    """All systems by one metric, the first being what the others are tested against."""

    name: str
    signature: str
    rows: list[ComparedSystem]


def paired_bootstrap(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[str],
    *,
    metrics: Sequence[str] = METRICS,
    lowercase: bool = False,
    tokenize: str = "13a",
    samples: int = 1000,
) -> list[Comparison]:
    """sacreBLEU's paired bootstrap test (Koehn 2004) of each system against the first.

    A system that says the same in every line gets p = 1, where sacreBLEU, which counts samples that differ by more
    than the systems do, finds none and calls the difference certain.
    """
    check_lengths(systems, references)
    from sacrebleu.significance import PairedTest

    built = build_metrics(metrics, lowercase=lowercase, tokenize=tokenize)
    named: list[tuple[str, Sequence[str]]] = [(name, list(lines)) for name, lines in systems.items()]
    test: Any = PairedTest(named, built, [list(references)], test_type="bs", n_samples=samples)
    signatures, table = test()
    return [
        Comparison(
            name=name,
            signature=str(signature),
            rows=[
                ComparedSystem(
                    system,
                    result.score,
                    float(result.mean),
                    float(result.ci),
                    1.0 if place and lines == named[0][1] else result.p_value,
                )
                for place, ((system, lines), result) in enumerate(zip(named, table[name], strict=True))
            ],
        )
        for name, signature in signatures.items()
    ]


def build_metrics(metrics: Sequence[str], *, lowercase: bool = False, tokenize: str = "13a") -> dict[str, Any]:
    """sacreBLEU's metric objects by name. Raises UserError for a name or a tokenizer that it has not."""
    from sacrebleu import BLEU, CHRF, TER  # 0.2 s, which a command that scores nothing need not wait

    for known, names in ((METRICS, metrics), (BLEU_TOKENIZERS, [tokenize])):
        for name in names:
            if name not in known:
                kind = "metric" if known is METRICS else "tokenizer of BLEU"
                raise UserError(f"There is no {kind} called '{name}'.", nearest(name, known))
    makers: dict[str, Callable[[], Any]] = {
        # `force` silences the warning that the text looks tokenised, which a validation would repeat for ever.
        "bleu": lambda: BLEU(lowercase=lowercase, tokenize=tokenize, force=True),
        "chrf": lambda: CHRF(lowercase=lowercase),
        "ter": TER,
    }
    try:
        return {name: makers[name]() for name in metrics}
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"BLEU's tokenizer '{tokenize}' is not installed.", str(error).strip().splitlines()[0]
        ) from None


def check_lengths(systems: Mapping[str, Sequence[str]], references: Sequence[str]) -> None:
    """Raises UserError unless every system has one line for each reference, and there is a line at all."""
    for name, lines in systems.items():
        if len(lines) != len(references):
            raise UserError(
                f"The lines do not pair up: {len(lines)} in {name}, {len(references)} references.",
                "Each hypothesis needs one reference, in the same order.",
            )
    if not references:
        raise UserError("There is no line to score.")
