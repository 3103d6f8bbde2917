"""seqtk-score: BLEU, chrF and TER of translations, and which of several systems is better."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seqtk.cli.command import command
from seqtk.utils.errors import UserError


@dataclass(frozen=True)
class ScoreConfig:
    """What is scored against what."""

    hypothesis: str = ""  # a file of translations; several, with commas: each is compared with the first
    reference: str = ""  # the file of their references, line by line
    metrics: str = "bleu,chrf,ter"  # any of bleu, chrf, ter
    lowercase: bool = False  # score without regard to case (TER never regards it)
    tokenize: str = "13a"  # BLEU's tokenizer: 13a, intl, char, zh, ja-mecab, ko-mecab, flores200, none
    bootstrap: int = 1000  # with several files: samples of the paired test


@command("seqtk-score", ScoreConfig)
def main(config: ScoreConfig) -> None:
    """Score translations with sacreBLEU: seqtk-score hypothesis=FILE[,FILE…] reference=FILE.

    With several files, each is tested against the first by paired bootstrap (Koehn 2004).
    """
    if not config.hypothesis or not config.reference:
        raise UserError("hypothesis= and reference= must both name a file.")
    if config.bootstrap < 1:
        raise UserError(f"bootstrap={config.bootstrap} must be at least 1.")
    paths = config.hypothesis.split(",")
    if len(set(paths)) < len(paths) or [*paths, config.reference].count("-") > 1:
        raise UserError("A file is named twice.", f"hypothesis={config.hypothesis} reference={config.reference}")
    from seqtk.metrics.text import check_lengths
    from seqtk.utils.text_io import read_lines

    systems = {path: list(read_lines(path)) for path in paths}
    references = list(read_lines(config.reference))
    check_lengths(systems, references)
    if len(paths) == 1:
        _one(config, systems[paths[0]], references)
    else:
        _compare(config, systems, references)


def _one(config: ScoreConfig, hypotheses: Sequence[str], references: Sequence[str]) -> None:
    from seqtk.metrics.text import corpus_scores

    scores = corpus_scores(
        hypotheses,
        references,
        names=config.metrics.split(","),
        lowercase=config.lowercase,
        tokenize=config.tokenize,
    )
    for score in scores.values():
        print(score.signed_line)


def _compare(config: ScoreConfig, systems: Mapping[str, Sequence[str]], references: Sequence[str]) -> None:
    from seqtk.metrics.text import paired_bootstrap

    compared = paired_bootstrap(
        systems,
        references,
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
        "In brackets: mean of the samples ± half the interval that holds 95 % of them. *: p < 0.05 against the first."
    )


if __name__ == "__main__":
    main()
