import pytest
import sacrebleu

from seqtk.metrics.text import corpus_scores, paired_bootstrap
from seqtk.utils.errors import UserError

REFERENCES = ["The cat sat on the mat .", "A dog runs through the green grass .", "Two men talk ."] * 4
GOOD = [line.replace("green", "tall") for line in REFERENCES]
BAD = [line.replace("cat", "bird").replace("talk", "speak").replace("runs", "walks") for line in REFERENCES]


def test_scores_equal_sacrebleu_exactly():
    scores = corpus_scores(GOOD, REFERENCES, names=("bleu", "chrf", "ter"))
    assert scores["bleu"].value == sacrebleu.corpus_bleu(GOOD, [REFERENCES]).score
    assert scores["chrf"].value == sacrebleu.corpus_chrf(GOOD, [REFERENCES]).score
    assert scores["ter"].value == sacrebleu.corpus_ter(GOOD, [REFERENCES]).score
    assert scores["bleu"].signature == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"


def test_score_line_has_the_sacrebleu_signature():
    bleu = corpus_scores(GOOD, REFERENCES)["bleu"]
    assert bleu.line.startswith(f"BLEU = {bleu.value:.2f} ")
    assert bleu.signed_line.startswith(f"BLEU|{bleu.signature} = {bleu.value:.2f} ")


def test_options_change_the_signature_and_the_score():
    upper = [line.upper() for line in REFERENCES]
    assert corpus_scores(upper, REFERENCES, lowercase=True)["bleu"].value == pytest.approx(100.0)
    assert "case:lc" in corpus_scores(upper, REFERENCES, lowercase=True)["chrf"].signature
    assert "tok:char" in corpus_scores(GOOD, REFERENCES, tokenize="char")["bleu"].signature


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"names": ["blue"]}, "Did you mean 'bleu'"),
        ({"tokenize": "31a"}, "Did you mean '13a'"),
    ],
)
def test_unknown_name_suggests_a_similar_name(arguments, words):
    with pytest.raises(UserError, match=words):
        corpus_scores(GOOD, REFERENCES, **arguments)


def test_unequal_numbers_of_lines_are_refused():
    with pytest.raises(UserError, match="11 in the hypotheses, 12 in"):
        corpus_scores(GOOD[1:], REFERENCES)
    with pytest.raises(UserError, match="no lines"):
        corpus_scores([], [])


def test_paired_bootstrap_distinguishes_systems():
    (bleu,) = paired_bootstrap({"good": GOOD, "bad": BAD, "copy": list(GOOD)}, REFERENCES, names=["bleu"], samples=50)
    good, bad, copy = bleu.rows
    assert bleu.name == "BLEU"
    assert "bs:50" in bleu.signature
    assert (good.system, good.p_value) == ("good", None)
    assert good.value == corpus_scores(GOOD, REFERENCES)["bleu"].value
    assert bad.value < good.value
    assert bad.p_value == pytest.approx(1 / 51)
    assert copy.p_value == 1.0


def test_scores_of_several_references_equal_sacrebleu():
    other = [line.replace("mat", "rug") for line in REFERENCES]
    scores = corpus_scores(BAD, REFERENCES, other, names=("bleu", "chrf", "ter"))
    assert scores["bleu"].value == sacrebleu.corpus_bleu(BAD, [REFERENCES, other]).score
    assert scores["chrf"].value == sacrebleu.corpus_chrf(BAD, [REFERENCES, other]).score
    assert scores["ter"].value == sacrebleu.corpus_ter(BAD, [REFERENCES, other]).score
    assert "nrefs:2" in scores["bleu"].signature
    with pytest.raises(UserError, match="reference set 2"):
        corpus_scores(BAD, REFERENCES, other[1:])
