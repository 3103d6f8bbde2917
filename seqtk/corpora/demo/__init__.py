"""The parallel corpus of the demo: a synchronous grammar that writes English and German sentences at once.

words (what an entry holds) → lexicon (the entries) → phrases (noun phrases in each case) → clauses (word order) →
sampler (what is said) → sentences (kinds of sentence) → corpus (files).
"""

from seqtk.corpora.demo.corpus import pairs, write_corpus

__all__ = ["pairs", "write_corpus"]
