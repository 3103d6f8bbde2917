"""Corpora of translation: WMT14 English to German and to French, Multi30k English to German.

The lengths and checksums are from TensorFlow Datasets (training sets), sacreBLEU (test sets) and torchtext (Multi30k).
For the UN and Giga corpora, no lengths or checksums are published.
"""

from seqtk.corpora.spec import Corpus, RemoteFile
from seqtk.corpora.texts import Lines, Pairs

_STATMT = "https://www.statmt.org"
_TRAINING = (
    # archive, length, checksum, and its text files without the language suffix
    (
        f"{_STATMT}/wmt13/training-parallel-europarl-v7.tgz",
        657_632_379,
        "sha256:0224c7c710c8a063dfd893b0cc0830202d61f4c75c17eb8e31836103d27d96e7",
        "training/europarl-v7.{pair}.{lang}",
    ),
    (
        f"{_STATMT}/wmt13/training-parallel-commoncrawl.tgz",
        918_311_367,
        "sha256:c7a74e2ea01ac6c920123108627e35278d4ccb5701e15428ffa34de86fa3a9e5",
        "commoncrawl.{pair}.{lang}",
    ),
    (
        f"{_STATMT}/wmt14/training-parallel-nc-v9.tgz",
        80_418_416,
        "sha256:cb8953f292298e6877ae433c98912b927cb0766b303f4540512ddd286c748485",
        "training/news-commentary-v9.{pair}.{lang}",
    ),
)
_FRENCH_TRAINING = (
    (f"{_STATMT}/wmt13/training-parallel-un.tgz", None, None, "un/undoc.2000.{pair}.{lang}"),
    (f"{_STATMT}/wmt10/training-giga-fren.tar", None, None, "giga-fren.release2.fixed.{lang}.gz"),
)


def _held_out(lang: str) -> tuple[RemoteFile, RemoteFile]:
    """Returns newstest2013 and newstest2014 (the full set) from English to `lang`, as SGML files."""

    def member(name: str, year: int, side: str) -> RemoteFile:
        also = (f"{side}", f"en-{lang}.{side}", f"full.en-{lang}.{side}")
        return RemoteFile(f"{name}.{side}.sgm", also=tuple(f"newstest{year}.{ending}" for ending in also))

    valid = tuple(member("test/newstest2013-src", 2013, side) for side in ("en", lang))
    roles = {"src": "en", "ref": lang}
    test = tuple(member(f"test-full/newstest2014-{lang}en-{role}", 2014, side) for role, side in roles.items())
    return (
        RemoteFile(f"{_STATMT}/wmt13/test.tgz", digest="md5:48eca5d02f637af44e85186847141f67", members=valid),
        RemoteFile(f"{_STATMT}/wmt14/test-full.tgz", digest="md5:a8cd784e006feb32ac6f3d9ec7eb389a", members=test),
    )


def _wmt14(lang: str, about: str, training: tuple[tuple[str, int | None, str | None, str], ...]) -> Corpus:
    """Returns WMT14's news task from English to `lang`, with the training text in `training` and two newstest sets."""
    archives = tuple(
        RemoteFile(
            url,
            length,
            digest,
            members=tuple(RemoteFile(name.format(pair=f"{lang}-en", lang=side)) for side in ("en", lang)),
        )
        for url, length, digest, name in training
    )
    valid, test = _held_out(lang)
    return Corpus(
        name=f"wmt14_en_{lang}",
        about=about,
        databin=f"wmt14_en_{lang}",
        files=(*archives, valid, test),
        texts=(
            Pairs(
                ("train.en", f"train.{lang}"),
                tuple((archive.members[0].file_name, archive.members[1].file_name) for archive in archives),
            ),
            *(
                Lines(f"{split}.{side}", member.file_name, lines)
                for split, held_out, lines in (("valid", valid, 3_000), ("test", test, 3_003))
                for side, member in zip(("en", lang), held_out.members, strict=True)
            ),
        ),
        settings={
            "source_lang": "en",
            "target_lang": lang,
            "vocab_size": 32_000,
            "max_length": 250,
            "max_ratio": 1.5,
        },
    )


WMT14_EN_DE = _wmt14(
    "de",
    "WMT14 English to German: Europarl v7, Common Crawl, News Commentary v9; newstest2013, newstest2014",
    _TRAINING,
)
WMT14_EN_FR = _wmt14(
    "fr",
    "WMT14 English to French: the same corpora, UN and Giga; 41 million pairs",
    (*_TRAINING, *_FRENCH_TRAINING),
)

_MULTI30K = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw"

MULTI30K = Corpus(
    name="multi30k",
    about="Multi30k task 1, English to German: 29,000 captions; val, test_2016_flickr",
    databin="multi30k_en_de",
    files=(
        RemoteFile(f"{_MULTI30K}/train.en.gz", 568_929, "md5:0065d13af80720a55ca8153d126e6627"),
        RemoteFile(f"{_MULTI30K}/train.de.gz", 637_044, "md5:81ff90b99829c0cd4b1b587d394afd39"),
        RemoteFile(f"{_MULTI30K}/val.en.gz", 21_650, "md5:2b69aa9253948ac9f67e94917272dd40"),
        RemoteFile(f"{_MULTI30K}/val.de.gz", 24_681, "md5:6e0e229eb049e3fc99a1ef02fb2d5f91"),
        RemoteFile(f"{_MULTI30K}/test_2016_flickr.en.gz", 21_077, "md5:ff2c0fcb4893a13bd73414306bc250ae"),
        RemoteFile(f"{_MULTI30K}/test_2016_flickr.de.gz", 22_890, "md5:efd67d314d98489b716b145475101932"),
    ),
    texts=(
        Lines("train.en", "train.en.gz", 29_000),
        Lines("train.de", "train.de.gz", 29_000),
        Lines("valid.en", "val.en.gz", 1_014),
        Lines("valid.de", "val.de.gz", 1_014),
        Lines("test.en", "test_2016_flickr.en.gz", 1_000),
        Lines("test.de", "test_2016_flickr.de.gz", 1_000),
    ),
    settings={"source_lang": "en", "target_lang": "de", "vocab_size": 8_000},
)
