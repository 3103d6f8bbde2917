"""The demo corpus: a synchronous grammar generates English sentences with their German translations.

Each module uses the modules before it: words (types of lexicon entries), lexicon (the entries), phrases (noun phrases
in each case), clauses (word order), sampler (random clauses that make sense), sentences (kinds of sentences), corpus
(files).
"""

from seqtk.corpora.demo.corpus import DESTINATION, DemoConfig, ensure, pairs, prepare, write_corpus

__all__ = ["DESTINATION", "DemoConfig", "ensure", "pairs", "prepare", "write_corpus"]
