"""Published corpora: which there are, and how they are downloaded, checked and cut into splits."""

from seqtk.corpora.language import ENWIK8, PTB, WIKITEXT103, WIKITEXT103_BPE
from seqtk.corpora.parallel import MULTI30K, WMT14_EN_DE, WMT14_EN_FR
from seqtk.corpora.spec import Corpus

CORPORA: dict[str, Corpus] = {
    corpus.name: corpus for corpus in (ENWIK8, WIKITEXT103, WIKITEXT103_BPE, PTB, WMT14_EN_DE, WMT14_EN_FR, MULTI30K)
}
