"""The demo corpus: a synchronous grammar that writes English and German sentences together.

words (what an entry holds) → lexicon (the entries) → phrases (noun phrases in each case) → clauses (word order) →
sampler (what is said) → sentences (kinds of sentence) → corpus (files).
"""

from seqtk.corpora.demo.corpus import DESTINATION, DemoConfig, ensure, pairs, prepare, write_corpus

__all__ = ["DESTINATION", "DemoConfig", "ensure", "pairs", "prepare", "write_corpus"]
