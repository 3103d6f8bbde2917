"""Beam search with fairseq's models, data and settings finds the hypotheses of fairseq.

Hypotheses have equal tokens and the same order. Scores are in base 2. fairseq prints float32 numbers, which differ
between batch sizes by 1e-6 if divided by the length, and by 3e-5 otherwise (see index.json).
"""

import functools
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from seqtk.cli import generate as generate_command
from seqtk.cli import import_fairseq as import_fairseq_command
from seqtk.data.batch import TranslationBatch, collate_pairs
from seqtk.data.sources.databin import DataBin
from seqtk.data.tokenizer import Tokenizer
from seqtk.data.vocabulary import Vocabulary
from seqtk.generation.scoring import score
from seqtk.generation.search import Hypothesis, SearchConfig, search
from seqtk.interop.fairseq import import_fairseq
from seqtk.metrics.text import corpus_scores
from seqtk.models import Model

# file → settings. Two options have bugs in fairseq, so that the test uses files without them: no-repeat has no
# effect (except in …_intended), and max_len_a counts the padding of the batch (…_batch1 has no padding).
SEARCHES = {
    "beam5_lenpen1": SearchConfig(),
    "beam4_lenpen0.6_nbest3": SearchConfig(beam=4, length_penalty=0.6, nbest=3),
    "beam5_unkpen2": SearchConfig(unk_penalty=2.0),
    "beam5_unkpen-3": SearchConfig(unk_penalty=-3.0),
    "beam5_prefix2": SearchConfig(),
    "greedy": SearchConfig(beam=1),
    "beam3_unnormalized": SearchConfig(beam=3, normalize_scores=False),
    "beam5_temperature0.7_lenpen2": SearchConfig(temperature=0.7, length_penalty=2.0),
    "beam5_norepeat2_intended": SearchConfig(no_repeat_ngram=2),
    "beam5_maxlen_batch1": SearchConfig(max_length_a=0.5, max_length_b=3, min_length=6),
}
MODELS = {
    "transformer_postnorm": "joined",
    "transformer_prenorm": "separate",
    "lightconv_lightweight": "joined",
    "lightconv_dynamic": "joined",
}
OPTIONS = {
    "beam": "width",
    "nbest": "nbest",
    "lenpen": "length_penalty",
    "unkpen": "unk_penalty",
    "max-len-a": "max_length_a",
    "max-len-b": "max_length_b",
    "min-len": "min_length",
    "no-repeat-ngram-size": "no_repeat_ngram",
    "temperature": "temperature",
}


@dataclass
class Sentence:
    """The output of fairseq for one sentence."""

    reference: str = ""
    tokens: list[list[str]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    detokenized: list[str] = field(default_factory=list)
    token_scores: list[list[float]] = field(default_factory=list)


def printed(path: Path) -> list[Sentence]:
    sentences: dict[int, Sentence] = defaultdict(Sentence)
    for line in path.read_text().splitlines():
        if "\t" not in line:
            continue  # the lines at the end
        label, *rest = line.split("\t")
        kind, number = label.split("-")
        sentence = sentences[int(number)]
        if kind == "T":
            sentence.reference = rest[0]
        elif kind == "H":
            sentence.scores.append(float(rest[0]))
            sentence.tokens.append(rest[1].split())
        elif kind == "D":
            sentence.detokenized.append(rest[1])
        elif kind == "P":
            sentence.token_scores.append([float(text) for text in rest[0].split()])
    return [sentences[number] for number in sorted(sentences)]


@functools.cache
def loaded(golden: Path, name: str) -> tuple[Model, Vocabulary, TranslationBatch]:
    """Returns the model, the target vocabulary, and the test set as one batch."""
    data = DataBin(golden / "data-bin" / MODELS[name], source_lang="en", target_lang="de")
    sources, targets = data.split("test", "en"), data.split("test", "de")
    pairs = [(index, sources[index], targets[index]) for index in range(len(sources))]
    model = import_fairseq(golden / "models" / name / "checkpoint.pt").model()
    return model, data.vocabulary("de"), collate_pairs(pairs)


def stored_searches(name: str) -> Iterator[str]:
    absent = {"beam5_unkpen-3", "beam5_temperature0.7_lenpen2", "beam5_maxlen_batch1"}
    return (file for file in SEARCHES if name == "transformer_postnorm" or file not in absent)


QUICK = {  # every option except temperature at least once; the slow tests run the others
    ("transformer_postnorm", "greedy"),
    ("transformer_postnorm", "beam5_norepeat2_intended"),
    ("transformer_postnorm", "beam5_maxlen_batch1"),
    ("transformer_prenorm", "beam5_lenpen1"),
    ("transformer_prenorm", "beam4_lenpen0.6_nbest3"),
    ("transformer_prenorm", "beam5_unkpen2"),
    ("transformer_prenorm", "beam5_prefix2"),
    ("transformer_prenorm", "beam3_unnormalized"),
    ("lightconv_lightweight", "greedy"),
    ("lightconv_dynamic", "beam4_lenpen0.6_nbest3"),
}
CASES = [
    pytest.param(name, file, marks=() if (name, file) in QUICK else pytest.mark.slow)
    for name in MODELS
    for file in stored_searches(name)
]


BEST = [name if (name, "beam5_lenpen1") in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


@functools.cache
def found(golden: Path, name: str, file: str) -> list[list[Hypothesis]]:
    model, vocabulary, batch = loaded(golden, name)
    prefix_BP = batch.target_BT[:, :2] if "prefix2" in file else None
    return search([model], batch, SEARCHES[file], vocabulary=vocabulary, prefix_BP=prefix_BP)


def test_settings_equal_the_options_of_fairseq(golden: Path) -> None:
    for name in MODELS:
        index = json.loads((golden / "models" / name / "generate" / "index.json").read_text())
        for file in stored_searches(name):
            command = index[file]["command"]
            for option, key in OPTIONS.items():
                given = re.search(rf"--{option} (\S+)", command)
                assert getattr(SEARCHES[file], key) == (float(given[1]) if given else getattr(SearchConfig(), key)), (
                    file,
                    option,
                )
            assert ("--unnormalized" in command) is not SEARCHES[file].normalize_scores


@pytest.mark.parametrize(("name", "file"), CASES)
def test_hypotheses_and_scores_equal_fairseq(golden: Path, name: str, file: str) -> None:
    _, vocabulary, _ = loaded(golden, name)
    wanted = printed(golden / "models" / name / "generate" / f"{file}.txt")
    assert len(wanted) == 100
    per_length = SEARCHES[file].normalize_scores
    for sentence, hypotheses in zip(wanted, found(golden, name, file), strict=True):
        assert [vocabulary.decode(hypothesis.tokens) for hypothesis in hypotheses] == sentence.tokens
        for hypothesis, score_, token_scores in zip(hypotheses, sentence.scores, sentence.token_scores, strict=True):
            # a sum of up to 200 float32 numbers has six exact digits
            tolerance = pytest.approx(score_, abs=2e-5 if per_length else 1e-4, rel=0 if per_length else 1e-6)
            assert hypothesis.score / math.log(2) == tolerance
            ours = [token_score / math.log(2) for token_score in hypothesis.token_scores]
            assert ours == pytest.approx(token_scores, abs=1e-4)  # printed with four decimals


def test_scores_of_references_equal_fairseq(golden: Path) -> None:
    model, _, batch = loaded(golden, "transformer_postnorm")
    wanted = printed(golden / "models" / "transformer_postnorm" / "generate" / "score_reference.txt")
    for sentence, hypothesis in zip(wanted, score([model], batch), strict=True):
        assert hypothesis.score / math.log(2) == pytest.approx(sentence.scores[0], abs=2e-5)
        ours = [token_score / math.log(2) for token_score in hypothesis.token_scores]
        assert ours == pytest.approx(sentence.token_scores[0], abs=1e-4)


@pytest.mark.parametrize("name", BEST)
def test_detokenized_hypotheses_equal_fairseq(golden: Path, name: str) -> None:
    _, vocabulary, _ = loaded(golden, name)
    tokenizer = Tokenizer.plain("sentencepiece")
    ours = [tokenizer.decode(vocabulary.decode(best.tokens)) for best, *_ in found(golden, name, "beam5_lenpen1")]
    wanted = printed(golden / "models" / name / "generate" / "beam5_removebpe.txt")
    assert ours == [sentence.detokenized[0] for sentence in wanted]


@pytest.mark.slow
def test_bleu_equals_bleu_of_fairseq(golden: Path) -> None:
    folder = golden / "models" / "transformer_postnorm" / "generate"
    last_line = json.loads((folder / "index.json").read_text())["beam5_sacrebleu"]["last_line"]
    wanted = re.search(r"BLEU = (\S+)", last_line)
    assert wanted
    _, vocabulary, _ = loaded(golden, "transformer_postnorm")
    tokenizer = Tokenizer.plain("sentencepiece")
    best = [hypotheses[0] for hypotheses in found(golden, "transformer_postnorm", "beam5_lenpen1")]
    ours = [tokenizer.decode(vocabulary.decode(hypothesis.tokens)) for hypothesis in best]
    references = [sentence.reference for sentence in printed(folder / "beam5_sacrebleu.txt")]
    assert round(corpus_scores(ours, references)["bleu"].value, 2) == float(wanted[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer_postnorm_old_style", *list(MODELS)[1:]])
def test_commands_print_the_hypotheses_of_fairseq(golden: Path, tmp_path: Path, name: str) -> None:
    model = name.removesuffix("_old_style")
    data = golden / "data-bin" / MODELS[model]
    import_fairseq_command.main(
        [
            f"checkpoint={golden / 'models' / name / 'checkpoint.pt'}",
            f"data={data}",
            "remove_bpe=sentencepiece",
            f"output={tmp_path / 'model'}",
        ]
    )
    generate_command.main(
        [f"checkpoint={tmp_path / 'model'}", f"data={data}", "format=fairseq", f"output={tmp_path / 'translations'}"]
    )
    ours = printed(tmp_path / "translations")
    wanted = printed(golden / "models" / model / "generate" / "beam5_lenpen1.txt")
    assert [sentence.tokens for sentence in ours] == [sentence.tokens for sentence in wanted]
    for sentence, reference in zip(ours, wanted, strict=True):
        assert sentence.scores == pytest.approx(reference.scores, abs=2e-5)


@pytest.mark.parametrize("name", BEST)
def test_search_is_batch_invariant_with_fairseq_models(golden: Path, name: str) -> None:
    model, vocabulary, batch = loaded(golden, name)
    for row in range(3):
        source_1S = batch.source_BS[row : row + 1]
        source_1S = source_1S[:, : int((source_1S != 1).sum())]
        alone = TranslationBatch(
            ids_B=batch.ids_B[row : row + 1],
            weight=0,
            source_BS=source_1S,
            previous_BT=batch.previous_BT[row : row + 1],
            target_BT=batch.target_BT[row : row + 1],
        )
        [[best, *_]] = search([model], alone, SearchConfig(), vocabulary=vocabulary)
        together = found(golden, name, "beam5_lenpen1")[row][0]
        assert best.tokens == together.tokens
        torch.testing.assert_close(
            torch.tensor(best.token_scores), torch.tensor(together.token_scores), atol=1e-5, rtol=0
        )
