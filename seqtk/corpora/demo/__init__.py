"""The demo corpus: a synchronous grammar that writes English and German sentences together.

The modules build on each other: words (the types of entries), lexicon (the entries), phrases (noun phrases in each
case), clauses (word order), sampler (random clauses that make sense), sentences (kinds of sentences), corpus (files).
"""

from seqtk.corpora.demo.corpus import DESTINATION, DemoConfig, ensure, pairs, prepare, write_corpus

__all__ = ["DESTINATION", "DemoConfig", "ensure", "pairs", "prepare", "write_corpus"]
