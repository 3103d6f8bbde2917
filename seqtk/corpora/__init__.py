"""Downloads, checks and splits published corpora, and generates synthetic data sets."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from seqtk.corpora.classification import LABELLED, prepare_labelled
from seqtk.corpora.language import ENWIK8, PTB, WIKITEXT103, WIKITEXT103_BPE
from seqtk.corpora.lra.sets import (
    ListOpsConfig,
    MiniListOpsConfig,
    MiniPathfinderConfig,
    PathfinderConfig,
    PathXConfig,
    prepare_listops,
    prepare_pathfinder,
)
from seqtk.corpora.parallel import MULTI30K, WMT14_EN_DE, WMT14_EN_FR
from seqtk.corpora.spec import Corpus

CORPORA: dict[str, Corpus] = {
    corpus.name: corpus for corpus in (ENWIK8, WIKITEXT103, WIKITEXT103_BPE, PTB, WMT14_EN_DE, WMT14_EN_FR, MULTI30K)
}
"""Maps names to published corpora of text, for language models and translation."""


@dataclass(frozen=True)
class LabelledSet:
    """A data set for classification, which `seqtk-prepare NAME` writes to data-bin/NAME.

    Attributes:
        about: A one-line description.
        recipe: The name of a recipe that trains on it.
        config: The class of the settings. If its property `recipe` exists and is not None, this recipe is used instead
            of the attribute `recipe`.
        make: The function that writes the data-bin, given the settings, the folder and a `reporter`. It returns a
            report.
    """

    about: str
    recipe: str
    config: type[Any]
    make: Callable[..., str]


LABELLED_SETS: dict[str, LabelledSet] = {
    name: LabelledSet(corpus.about, corpus.recipe, corpus.config, partial(prepare_labelled, corpus=corpus))
    for name, corpus in LABELLED.items()
} | {
    "listops": LabelledSet(
        "ListOps, generated: the value of nested operations on digits",
        "lra_listops_small",
        ListOpsConfig,
        prepare_listops,
    ),
    "mini_listops": LabelledSet(
        "short expressions of ListOps, generated", "mini_listops", MiniListOpsConfig, prepare_listops
    ),
    "lra_pathfinder": LabelledSet(
        "Pathfinder (hard), generated: do two dots lie on one path? 32 x 32 pixels as tokens",
        "lra_pathfinder_small",
        PathfinderConfig,
        prepare_pathfinder,
    ),
    "lra_pathx": LabelledSet(
        "Path-X, generated: Pathfinder with 128 x 128 pixels", "lra_pathx_s4", PathXConfig, prepare_pathfinder
    ),
    "mini_pathfinder": LabelledSet(
        "easy images of Pathfinder, generated", "mini_pathfinder", MiniPathfinderConfig, prepare_pathfinder
    ),
}
"""Maps names to data sets for classification (published or generated), in the order of `seqtk-prepare ls`."""
