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
"""Published text of language models and translation."""


@dataclass(frozen=True)
class LabelledSet:
    """What `seqtk-prepare NAME` needs for data-bin/NAME, a labelled data-bin.

    Attributes:
        about: A description of one line.
        recipe: A recipe that trains on it.
        config: The config class of its settings. A property `recipe` of it names the recipe for other settings.
        make: The function that makes it from settings, a folder and a `reporter`. It returns the report.
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
        "ListOps, generated: nested operations on digits, with their value",
        "lra_listops_small",
        ListOpsConfig,
        prepare_listops,
    ),
    "mini_listops": LabelledSet(
        "short expressions of ListOps, generated", "mini_listops", MiniListOpsConfig, prepare_listops
    ),
    "lra_pathfinder": LabelledSet(
        "Pathfinder, generated: do two dots lie on one path; hard, 32 x 32 pixels as tokens",
        "lra_pathfinder_small",
        PathfinderConfig,
        prepare_pathfinder,
    ),
    "lra_pathx": LabelledSet("Path-X, generated: the same, 128 x 128", "lra_pathx_s4", PathXConfig, prepare_pathfinder),
    "mini_pathfinder": LabelledSet(
        "easy images of Pathfinder, generated", "mini_pathfinder", MiniPathfinderConfig, prepare_pathfinder
    ),
}
"""Sets for classification, published or generated, in the order of `seqtk-prepare ls`."""
