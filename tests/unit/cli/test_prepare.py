"""seqtk-prepare: the list of corpora, arguments, errors, and the recipes that use a corpus."""

from pathlib import Path

import pytest

from seqtk.cli.prepare import main
from seqtk.cli.recipe_files import recipe_names
from seqtk.corpora import CORPORA, LABELLED_SETS
from seqtk.corpora.images import read_png
from seqtk.corpora.lra.sets import MiniListOpsConfig, MiniPathfinderConfig
from seqtk.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from seqtk.utils.errors import UserError


def failed(*arguments: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("seqtk-prepare")
    assert len(lines) <= 3
    return lines


def test_ls_prints_every_corpus_and_its_data_bin(capsys: pytest.CaptureFixture[str]) -> None:
    main(["ls"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*CORPORA, *LABELLED_SETS, "demo"]
    assert {"enwik8", "wikitext103", "ptb", "wmt14_en_de", "wmt14_en_fr", "multi30k"} <= set(CORPORA)
    for line, corpus in zip(lines, CORPORA.values(), strict=False):
        assert line.endswith(f"data-bin/{corpus.databin}")
    for line, name in zip(lines[len(CORPORA) :], LABELLED_SETS, strict=False):
        assert line.endswith(f"data-bin/{name}")


def test_demo_accepts_pairs_and_vocab_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["demo", "pairs=60", "vocab_size=200", f"destdir={tmp_path}/demo"])
    assert "60" in capsys.readouterr().out
    assert failed("demo", "pairs=0", capsys=capsys)[0].startswith("seqtk-prepare demo: pairs=0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "No corpus is set"),
        (["enwik9"], "Did you mean 'enwik8'?"),
        (["ptb", "sorce=x"], "Did you mean 'source'?"),
        (["ptb", "source=nowhere"], "source=nowhere does not exist"),
        (["ptb", "--source", "x"], "seqtk-prepare corpus=ptb source=x"),
        (["ptb", "enwik8"], "one corpus at a time, not ptb and enwik8"),
        (["ls", "ptb"], "one corpus at a time"),
        (["workers=2", "enwik9"], "Did you mean 'enwik8'?"),
        (["ptb", "destdir=/proc/x"], "destdir=/proc/x cannot be written"),
        (["ptb", "workers=-1", "source=."], "workers=-1"),
        (["ptb", "downloads=/proc/x"], "downloads=/proc/x"),
        (["imbd"], "Did you mean 'imdb'?"),
        (["lra_pathfindr"], "Did you mean 'lra_pathfinder'?"),
        (["listops", "imdb"], "one corpus at a time, not listops and imdb"),
        (["listops", "max_lenth=9"], "Did you mean 'max_length'?"),
        (["listops", "train=0"], "train=0: must be a whole number of at least 1"),
        (["listops", "max_length=501"], "min_length=500 and less than max_length=501"),
        (["listops", "max_depth=2"], "min_length=500 is too large: with max_depth=2"),
        (["listops", "source=nowhere"], "There is no basic_train.tsv in source=nowhere"),
        (["mini_listops", "destdir=/proc/x"], "destdir=/proc/x cannot be written"),
        (["lra_pathfinder", "size=64"], "size=64: must be 16, 32 or 128"),
        (["lra_pathfinder", "contour_length=2"], "contour_length=2"),
        (["lra_pathfinder", "sheet=/proc/x/y.png"], "sheet=/proc/x cannot be written"),
        (["lra_pathfinder", "sheet=sheet.jpg"], "sheet=sheet.jpg"),
        (["lra_pathfinder", "source=nowhere"], "There is no folder pathfinder32/curv_contour_length_14"),
        (["lra_pathx", "source=.", "contour_length=7"], "contour_length=7"),
        (["lra_retrieval"], "lra_retrieval"),
        (["lra_text", "source=nowhere"], "source=nowhere does not exist"),
        (["imdb", "tokens=bytes"], "tokens=bytes"),
        (["imdb", "valid_share=1"], "valid_share=1"),
        (["corpus=ag_news", "source=x", "mirror=http://x"], "are both set"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in "\n".join(failed(*arguments, capsys=capsys))
    assert not list(tmp_path.iterdir())


def test_corpus_key_and_first_argument_are_equivalent(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    assert "seqtk-prepare NAME" in capsys.readouterr().out
    for arguments in (["ptb", "--cfg", "job"], ["corpus=ptb", "--cfg", "job"]):
        main(arguments)
        assert "corpus: ptb" in capsys.readouterr().out


def test_ptb_is_prepared_from_a_local_copy(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["ptb", f"source={tmp_path},{real_data / 'ptb'}", "workers=1"])
    printed = capsys.readouterr()
    assert "929,589" in printed.out
    assert printed.out.endswith("wrote data-bin/ptb\n")
    assert "length and md5 as published" in printed.err
    assert "data-bin/ptb already contains a data-bin." in failed("ptb", capsys=capsys)[0]


def test_unfinished_corpus_error_names_the_command(tmp_path: Path) -> None:
    (tmp_path / "ptb" / "text").mkdir(parents=True)
    with pytest.raises(UserError, match="seqtk-prepare ptb"):
        LanguageModelingTask(LanguageModelingConfig(data=str(tmp_path / "ptb"), made_by="seqtk-prepare ptb"))


def test_recipe_of_every_labelled_set_exists() -> None:
    assert {labelled.recipe for labelled in LABELLED_SETS.values()} <= set(recipe_names())


def test_printed_recipe_depends_on_the_lengths() -> None:
    assert (MiniListOpsConfig().recipe, MiniListOpsConfig(max_length=130).recipe) == (None, "lra_listops_small")


def test_printed_recipe_depends_on_the_image_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet, sizes = tmp_path / "sheet.png", ["train=3", "valid=1", "test=1", "workers=1"]
    printed_recipes = {size: MiniPathfinderConfig(size=size).recipe for size in (16, 32, 128)}
    assert printed_recipes == {16: "mini_pathfinder", 32: "lra_pathfinder_small", 128: "lra_pathx_s4"}
    assert {*printed_recipes.values()} <= set(recipe_names())
    main(["mini_pathfinder", f"destdir={tmp_path / 'small'}", f"sheet={sheet}", *sizes])
    printed = capsys.readouterr().out
    assert "recipe=mini_pathfinder" in printed
    assert "the distance between the dots" in printed
    assert read_png(sheet.read_bytes(), "sheet").shape == (70, 274)  # space for two rows of eight images
