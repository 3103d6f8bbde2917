import pytest
import sacrebleu

from seqtk.cli.score import main

REFERENCE = ["The cat sat on the mat.", "A dog runs through the green grass.", "Two men talk."] * 3
GOOD = [line.replace("green", "tall") for line in REFERENCE]
BAD = [line.replace("cat", "bird").replace("men", "women") for line in REFERENCE]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, lines in (("reference", REFERENCE), ("good", GOOD), ("bad", BAD), ("short", GOOD[1:])):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    return tmp_path


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as raised:
        main(list(arguments))
    assert raised.value.code == 2
    return capsys.readouterr().err


def test_printed_scores_equal_sacrebleu(folder, capsys):
    main(["hypothesis=good", "reference=reference"])
    bleu, chrf, ter = capsys.readouterr().out.splitlines()
    expected = sacrebleu.corpus_bleu(GOOD, [REFERENCE])
    assert bleu.startswith("BLEU|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert bleu.endswith(str(expected).removeprefix("BLEU"))
    assert chrf.startswith("chrF2|")
    assert ter.startswith("TER|")


def test_metric_case_and_tokenizer_can_be_chosen(folder, capsys):
    (folder / "upper").write_text("".join(f"{line.upper()}\n" for line in REFERENCE))
    main(["hypothesis=upper", "reference=reference", "metrics=bleu", "lowercase=true", "tokenize=intl"])
    (line,) = capsys.readouterr().out.splitlines()
    assert "case:lc" in line
    assert "tok:intl" in line
    assert "= 100.00 " in line


def test_systems_are_compared_with_the_first_system(folder, capsys):
    main(["hypothesis=good,bad", "reference=reference", "metrics=bleu", "bootstrap=100"])
    head, good, bad, _ = capsys.readouterr().out.splitlines()
    assert "bs:100" in head
    assert good.split()[0] == "good"
    assert good.endswith("baseline")
    assert bad.split()[0] == "bad"
    assert 0 < float(bad.split("p = ")[1].rstrip("*")) < 1


def test_hypotheses_are_read_from_standard_input(folder, capsys, monkeypatch):
    with open("good") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        main(["hypothesis=-", "reference=reference", "metrics=chrf"])
    piped = capsys.readouterr().out
    main(["hypothesis=good", "reference=reference", "metrics=chrf"])
    assert piped == capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hypothesis=short", "reference=reference"], "8 in short, 9 in"),
        (["hypothesis=goood", "reference=reference"], "Did you mean 'good'"),
        (["hypothesis=good", "reference=reference", "metrics=blue"], "Did you mean 'bleu'"),
        (["hypothesis=good", "reference=reference", "tokenize=31a"], "Did you mean '13a'"),
        (["hypothesis=good,good", "reference=reference"], "hypothesis= twice"),
        (["reference=reference"], "hypothesis= is not set"),
        (["hypothesis=good"], "reference= is not set"),
        (["hypothesis=reference", "reference=./reference"], "both hypothesis= and reference="),
        (["hypothesis=good,bad", "reference=reference", "bootstrap=0"], "bootstrap=0"),
    ],
)
def test_error_names_the_key(folder, capsys, arguments, words):
    assert words in refused(capsys, *arguments)


def test_several_references_are_scored(folder, capsys):
    main(["hypothesis=good", "reference=reference,bad", "metrics=bleu"])
    expected = sacrebleu.corpus_bleu(GOOD, [REFERENCE, BAD])
    line = capsys.readouterr().out.strip()
    assert line.startswith("BLEU|nrefs:2|")
    assert line.endswith(str(expected).removeprefix("BLEU"))


def test_existing_path_may_contain_a_comma(folder, capsys):
    (folder / "a,b").write_text((folder / "good").read_text())
    main(["hypothesis=a,b", "reference=reference", "metrics=bleu"])
    piped = capsys.readouterr().out
    main(["hypothesis=good", "reference=reference", "metrics=bleu"])
    assert piped == capsys.readouterr().out


def test_sacrebleu_seed_must_be_a_number(folder, capsys, monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "abc")
    assert "SACREBLEU_SEED=abc" in refused(capsys, "hypothesis=good,bad", "reference=reference", "metrics=bleu")
