import json
import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from seqtk.data.tokenizer import Tokenizer
from seqtk.data.vocabulary import EOS, UNK, Vocabulary
from seqtk.generation.decode import Sentence, Translation
from seqtk.generation.formats import TEXT_SEPARATOR, Writer
from seqtk.generation.search import Hypothesis

WORDS = Vocabulary(["ein@@", "e", "Frau", "a", "woman", "x\ny"])


@dataclass
class Languages:
    source_vocabulary: Vocabulary = field(default_factory=lambda: WORDS)
    target_vocabulary: Vocabulary = field(default_factory=lambda: WORDS)
    source_tokenizer: Tokenizer = field(default_factory=lambda: Tokenizer.plain("@@ "))
    target_tokenizer: Tokenizer = field(default_factory=lambda: Tokenizer.plain("@@ "))


def translation(**known) -> Translation:
    probabilities = (1.0, 0.5, 0.25, 0.5)
    hypotheses = [
        Hypothesis(tokens=(4, 5, 6, EOS), score=-math.log(2), token_scores=tuple(map(math.log, probabilities))),
        Hypothesis(tokens=(6, EOS), score=-2 * math.log(2), token_scores=(-math.log(4), -math.log(4))),
    ]
    sentence = Sentence(np.array([7, 8, EOS]), target=np.array([4, UNK, EOS]), index=3, **known)
    return Translation(sentence, hypotheses, truncated=False)


def lines(item, format, **options):
    return list(Writer(Languages(), **options).lines(item, format))


def test_text_format_writes_the_best_hypothesis():
    assert lines(translation(), "text") == ["eine Frau"]
    assert lines(translation(), "text", detokenize=False) == ["ein@@ e Frau"]


def test_fairseq_format_equals_fairseq():
    assert lines(translation(), "fairseq") == [
        "S-3\ta woman",
        "T-3\tein<<unk>>",
        "H-3\t-1.0\tein@@ e Frau",
        "D-3\t-1.0\teine Frau",
        "P-3\t0.0000 -1.0000 -2.0000 -1.0000",
        "H-3\t-2.0\tFrau",
        "D-3\t-2.0\tFrau",
        "P-3\t-2.0000 -2.0000",
    ]
    assert lines(translation(), "fairseq", detokenize=False)[1:4:2] == ["T-3\tein@@ <<unk>>", "D-3\t-1.0\tein@@ e Frau"]


def test_json_has_all_hypotheses_and_scores_in_nats():
    (line,) = lines(translation(), "json")
    read = json.loads(line)
    assert read["index"] == 3
    assert (read["source"], read["reference"]) == ("a woman", "ein<unk>")
    assert [hypothesis["text"] for hypothesis in read["hypotheses"]] == ["eine Frau", "Frau"]
    assert read["hypotheses"][0]["score"] == pytest.approx(-math.log(2))
    assert read["hypotheses"][0]["tokens"] == ["ein@@", "e", "Frau", "</s>"]
    assert len(read["hypotheses"][0]["token_scores"]) == 4


def test_source_and_reference_are_printed_unchanged():
    item = translation(source_text="A  Woman", references=("Eine Frau, ja",))
    assert lines(item, "fairseq")[:2] == ["S-3\tA  Woman", "T-3\tEine Frau, ja"]
    assert lines(item, "fairseq", detokenize=False)[:2] == ["S-3\ta woman", "T-3\tein@@ <<unk>>"]


def test_line_feeds_in_a_translation_become_spaces():
    hypothesis = Hypothesis(tokens=(9, EOS), score=-1.0, token_scores=(-1.0, -1.0))
    item = Translation(Sentence(np.array([7, EOS])), [hypothesis], truncated=False)
    assert lines(item, "text") == ["x y"]
    assert all("\n" not in line for line in lines(item, "fairseq"))


def test_infinite_score_is_null_in_json():
    hypothesis = Hypothesis(tokens=(EOS,), score=-math.inf, token_scores=(-math.inf,))
    (line,) = lines(Translation(Sentence(np.array([EOS])), [hypothesis], truncated=False), "json")
    assert json.loads(line)["hypotheses"][0] == {"text": "", "score": None, "tokens": ["</s>"], "token_scores": [None]}


def test_all_references_are_written():
    item = translation(references=("Eine Frau", "Die Frau"))
    assert lines(item, "fairseq")[1:3] == ["T-3\tEine Frau", "T-3\tDie Frau"]
    (line,) = lines(item, "json")
    assert json.loads(line)["references"] == ["Eine Frau", "Die Frau"]


def test_prefix_is_written_as_given():
    item = Translation(
        Sentence(np.array([7, EOS]), prefix=np.array([UNK]), prefix_text="Ōin"),
        [Hypothesis(tokens=(UNK, 6, EOS), score=-1.0, token_scores=(-1.0,) * 3)],
    )
    assert lines(item, "text") == ["Ōin Frau"]


def test_separator_line_follows_each_generated_text():
    assert lines(translation(), "text", free_text=True) == ["eine Frau", TEXT_SEPARATOR, "Frau", TEXT_SEPARATOR]
