"""seqtk-score: computes BLEU, chrF and TER of translations, and tests if differences are significant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from seqtk.cli.command import command
from seqtk.cli.loading import split_paths
from seqtk.config.fields import setting
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class ScoreConfig:
    """Settings of seqtk-score: the translations, the references, and the metrics."""

    hypothesis: str = setting(
        "", help="File with translations. If there are several, separated by commas, each is compared with the first."
    )
    reference: str = setting("", help="File with the references, one per line. Commas separate several files.")
    metrics: str = setting("bleu,chrf,ter", help="Metrics of text, separated by commas.")
    lowercase: bool = setting(False, help="Ignore case. TER always ignores case.")
    tokenize: str = setting(
        "13a", help="The tokenizer of BLEU: 13a, intl, char, zh, ja-mecab, ko-mecab, flores200, none."
    )
    bootstrap: int = setting(
        1000,
        at_least=1,
        at_most=1_000_000,
        help="With several hypotheses: the number of bootstrap samples of the paired test.",
    )


@command("seqtk-score", ScoreConfig)
def main(config: ScoreConfig) -> None:
    """Score translations with sacreBLEU: seqtk-score hypothesis=FILE[,FILE…] reference=FILE[,FILE…].

    With several files of translations, a paired bootstrap test (Koehn 2004) compares each file with the first.
    """
    if not config.hypothesis or not config.reference:
        missing = "reference" if config.hypothesis else "hypothesis"
        raise UserError(f"{missing}= is not set.", "Usage: seqtk-score hypothesis=FILE reference=FILE")
    hypotheses, references = split_paths(config.hypothesis), split_paths(config.reference)
    _check_distinct(hypotheses, references)
    from seqtk.metrics.text import check_lengths
    from seqtk.utils.text_io import read_lines

    systems = {path: list(read_lines(path)) for path in hypotheses}
    given = [list(read_lines(path)) for path in references]
    check_lengths(systems, *given)
    if len(hypotheses) == 1:
        _one(config, systems[hypotheses[0]], given)
    else:
        _compare(config, systems, given)


def _check_distinct(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Raises UserError if the same file is set twice, because scoring a text against itself is a mistake."""
    seen: dict[str, str] = {}
    for key, paths in (("hypothesis", hypotheses), ("reference", references)):
        for path in paths:
            real = path if path == "-" else str(Path(path).resolve())
            if real in seen:
                where = f"{key}= twice" if seen[real] == key else f"both hypothesis= and reference= ({path})"
                raise UserError(f"The same file is set in {where}.", "Set each file only once.")
            seen[real] = key


def _one(config: ScoreConfig, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    from seqtk.metrics.text import corpus_scores

    scores = corpus_scores(
        hypotheses,
        *references,
        names=config.metrics.split(","),
        lowercase=config.lowercase,
        tokenize=config.tokenize,
    )
    for name, score in scores.items():
        print(score.signed_line if score.line else f"{name} = {score.value:.2f}")


def _compare(config: ScoreConfig, systems: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]]) -> None:
    from seqtk.metrics.text import paired_bootstrap

    compared = paired_bootstrap(
        systems,
        *references,
        names=config.metrics.split(","),
        lowercase=config.lowercase,
        tokenize=config.tokenize,
        samples=config.bootstrap,
    )
    width = max(map(len, systems))
    for metric in compared:
        print(f"{metric.name}|{metric.signature}")
        for row in metric.rows:
            verdict = "baseline" if row.p_value is None else f"p = {row.p_value:.4f}{'*' * (row.p_value < 0.05)}"
            interval = f"({row.mean:.2f} ± {row.half_width:.2f})"
            print(f"  {row.system:{width}}  {row.value:6.2f}  {interval:16}  {verdict}")
    print(
        "In parentheses: mean ± half the 95 % interval of the bootstrap samples. *: p < 0.05 against the first system."
    )


if __name__ == "__main__":
    main()
