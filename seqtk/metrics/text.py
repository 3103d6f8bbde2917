"""Metrics of generated text, computed by sacreBLEU. The signature of a score records its settings.

Validation, generation and scoring use the same metrics, so their results agree exactly.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seqtk.metrics.base import OUTPUTS, Evaluation, Metric, Score, metrics
from seqtk.metrics.outputs import Output
from seqtk.utils.errors import UserError
from seqtk.utils.suggestions import nearest

BLEU_TOKENIZERS = ("13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none", "flores200")


class TextMetric(Metric):
    """A metric that sacreBLEU computes from outputs and references. All outputs have the same number of references.

    Args:
        lowercase: Ignore case. TER always ignores it.
        tokenize: The tokenizer of BLEU.
    """

    needs = (OUTPUTS,)

    def __init__(self, *, lowercase: bool = False, tokenize: str = "13a") -> None:
        self.lowercase, self.tokenize = lowercase, tokenize

    def build(self) -> Any:
        """Returns the metric object of sacreBLEU."""
        raise NotImplementedError

    def compute(self, evaluation: Evaluation) -> Score:
        outputs = [item.output for item in evaluation.outputs]
        references = zip(*(item.references for item in evaluation.outputs), strict=True)
        metric = self.build()
        score = metric.corpus_score(outputs, [list(lines) for lines in references])
        return Score(score.score, signature=str(metric.get_signature()), line=str(score))


@metrics.register("bleu", unit="%", higher_is_better=True)
class Bleu(TextMetric):
    """BLEU (Papineni et al. 2002)."""

    def build(self) -> Any:
        from sacrebleu import BLEU  # takes 0.2 s, so only commands that score import it

        if self.tokenize not in BLEU_TOKENIZERS:
            raise UserError(
                f"tokenize={self.tokenize}: BLEU has no such tokenizer.", nearest(self.tokenize, BLEU_TOKENIZERS)
            )
        try:
            # `force` disables the warning that the text looks tokenized. It would appear at each validation.
            return BLEU(lowercase=self.lowercase, tokenize=self.tokenize, force=True)
        except (ImportError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"tokenize={self.tokenize}: this tokenizer is not installed.", reason) from None


@metrics.register("chrf", unit="%", higher_is_better=True)
class Chrf(TextMetric):
    """chrF2 (Popović 2015)."""

    def build(self) -> Any:
        from sacrebleu import CHRF

        return CHRF(lowercase=self.lowercase)


@metrics.register("ter", unit="%", higher_is_better=False)
class Ter(TextMetric):
    """Translation edit rate (Snover et al. 2006)."""

    def build(self) -> Any:
        from sacrebleu import TER

        return TER()


def corpus_scores(
    hypotheses: Sequence[str],
    *references: Sequence[str],
    names: Sequence[str] = ("bleu", "chrf"),
    lowercase: bool = False,
    tokenize: str = "13a",
) -> dict[str, Score]:
    """Scores `hypotheses` against one or more sets of references.

    Args:
        hypotheses: One line per example.
        references: The sets of references, each with one line per example.
        names: The names of the metrics, which must need only outputs.
        lowercase, tokenize: Settings of sacreBLEU's metrics (see `TextMetric`).

    Returns:
        The score of each metric by its name.

    Raises:
        UserError: If a name is not a metric of text, or if the numbers of lines differ.
    """
    check_lengths({"the hypotheses": hypotheses}, *references)
    outputs = [
        Output(index=index, source="", output=output, references=lines)
        for index, (output, lines) in enumerate(zip(hypotheses, zip(*references, strict=True), strict=True))
    ]
    evaluation = Evaluation(outputs=outputs)
    return {
        name: metric.compute(evaluation)
        for name, metric in build_metrics(names, lowercase=lowercase, tokenize=tokenize).items()
    }


@dataclass(frozen=True)
class ComparedSystem:
    """The result of one system in a paired bootstrap test."""

    system: str
    value: float
    mean: float
    half_width: float
    """The 95 % confidence interval is mean ± half_width."""
    p_value: float | None
    """The p-value of the difference from the first system; None for the first system."""


@dataclass(frozen=True)
class Comparison:
    """The results of all systems for one metric. Each system is compared with the first."""

    name: str
    signature: str
    rows: list[ComparedSystem]


def paired_bootstrap(
    systems: Mapping[str, Sequence[str]],
    *references: Sequence[str],
    names: Sequence[str] = ("bleu", "chrf", "ter"),
    lowercase: bool = False,
    tokenize: str = "13a",
    samples: int = 1000,
) -> list[Comparison]:
    """Runs sacreBLEU's paired bootstrap test (Koehn 2004) of each system against the first system.

    A system with the same lines as the first system has p = 1. (sacreBLEU would report p = 0, because it counts the
    samples whose difference is larger than the difference on the whole text, and there are none.)
    """
    check_lengths(systems, *references)
    seed = os.environ.get("SACREBLEU_SEED", "12345")
    if not (seed.isdecimal() or seed.lower() == "none"):
        raise UserError(f"SACREBLEU_SEED={seed}: must be a whole number of at least 0, or none.", "Unset it.")
    from sacrebleu.significance import PairedTest

    built = {}
    for name, metric in build_metrics(names, lowercase=lowercase, tokenize=tokenize).items():
        if not isinstance(metric, TextMetric):
            raise UserError(f"metrics={name}: the paired test supports only sacreBLEU's metrics.")
        built[name] = metric.build()
    named: list[tuple[str, Sequence[str]]] = [(name, list(lines)) for name, lines in systems.items()]
    test: Any = PairedTest(named, built, [list(lines) for lines in references], test_type="bs", n_samples=samples)
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


def build_metrics(names: Sequence[str], *, lowercase: bool = False, tokenize: str = "13a") -> dict[str, Metric]:
    """Builds metrics of text by name. Raises UserError if no metric of text has one of the names."""
    possible = metrics.available((OUTPUTS,))
    for name in names:
        if name not in possible:
            raise UserError(f"metrics={name}: there is no metric of text with this name.", nearest(name, possible))
    classes = {name: metrics[name] for name in names}
    return {
        name: kind(lowercase=lowercase, tokenize=tokenize) if issubclass(kind, TextMetric) else kind()
        for name, kind in classes.items()
    }


def check_lengths(systems: Mapping[str, Sequence[str]], *references: Sequence[str]) -> None:
    """Raises UserError unless all systems and references have the same number of lines, at least one."""
    if not references or not references[0]:
        raise UserError("There are no lines to score.")
    lines = len(references[0])
    others = {f"reference set {number}": texts for number, texts in enumerate(references[1:], start=2)}
    for name, texts in {**others, **systems}.items():
        if len(texts) != lines:
            raise UserError(
                f"The numbers of lines differ: {len(texts)} in {name}, {lines} in the first reference set.",
                "Each hypothesis needs one reference, in the same order.",
            )
