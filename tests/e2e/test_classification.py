"""The commands of docs/classification.md, from a labeled file to predicted classes."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from seqtk.cli.classify import main as classify
from seqtk.cli.evaluate import main as evaluate
from seqtk.cli.preprocess import main as preprocess
from seqtk.cli.train import main as train

FILLER = [f"w{number}" for number in range(20)]
SMALL = (
    *("recipe=classification_small", "task.data=data-bin/mine", "model.dim=32", "model.ffn_dim=64"),
    *("model.dropout=0", "task.head_dropout=0", "model.encoder.layers=1", "optimizer.lr=5e-3"),
    *("batch.max_tokens=512", "max_updates=80", "validation.every=40", "schedule.warmup_updates=10"),
    *("device=cpu", "log.tensorboard=false"),
)


def write_reviews(folder: Path) -> None:
    """Writes CSV files in which the word `good` or `bad` determines the class."""
    random = np.random.default_rng(1)
    folder.mkdir()
    for split, count in (("train", 300), ("valid", 40), ("test", 60)):
        lines = ["stars,review"]
        for label in random.integers(2, size=count).tolist():
            words = random.choice(FILLER, size=random.integers(3, 12)).tolist()
            words.insert(int(random.integers(len(words))), ("bad", "good")[label])
            lines.append(f'{("one, at most", "five")[label]!r},"{" ".join(words)}"'.replace("'", '"'))
        (folder / f"{split}.csv").write_text("".join(f"{line}\n" for line in lines))


def write_news(path: Path, count: int, *, seed: int) -> None:
    """Writes articles in the format of AG News, `"class","title","description"`. One word determines the class."""
    random = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        rows = csv.writer(file, quoting=csv.QUOTE_ALL)
        for label in random.integers(4, size=count).tolist():
            words = random.choice(FILLER, size=(2, 4)).tolist()
            rows.writerow([label + 1, f'{words[0][0]}, "{words[0][1]}"', f"{' '.join(words[1])} topic{label}\\."])


def test_commands_train_and_classify_from_csv_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_reviews(Path("reviews"))
    columns = ["columns.text=review", "columns.label=stars"]
    splits = [f"{split}=reviews/{split}.csv" for split in ("train", "valid", "test")]
    preprocess([*columns, *splits, "tokens=words", "destdir=data-bin/mine"])
    train(list(SMALL))
    capsys.readouterr()
    evaluate(["checkpoints/classification_small", "device=cpu", "format=json"])
    of_split = json.loads(capsys.readouterr().out)
    assert of_split["accuracy"] > 95
    assert of_split["examples"] == 60
    shutil.rmtree("data-bin")
    evaluate(["checkpoints/classification_small", "input=reviews/test.csv", *columns, "device=cpu", "format=json"])
    of_file = json.loads(capsys.readouterr().out)
    assert of_file["confusion"] == of_split["confusion"]
    assert of_file["nll"] == pytest.approx(of_split["nll"], rel=1e-4)
    Path("new.txt").write_text("w1 good w2\nbad w7\n")
    classify(["checkpoints/classification_small", "input=new.txt", "output=classes.txt", "device=cpu"])
    assert Path("classes.txt").read_text() == "five\none, at most\n"


def test_files_in_ag_news_format_train_a_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, (split, count) in enumerate({"train": 300, "valid": 40, "test": 60}.items()):
        write_news(Path(f"{split}.csv"), count, seed=seed)
    columns = ["columns.text=[2,3]", "columns.label=1", "columns.classes=[1:World,2:Sports,3:Business,4:Sci/Tech]"]
    splits = [f"{split}={split}.csv" for split in ("train", "valid", "test")]
    preprocess([*columns, *splits, "tokens=lowercase_words", "destdir=data-bin/mine"])
    train(list(SMALL))
    found = []
    for what in (["split=test"], ["input=test.csv", *columns]):
        capsys.readouterr()
        evaluate(["checkpoints/classification_small", *what, "device=cpu", "format=json"])
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["accuracy"] > 90
    assert found[1]["confusion"] == found[0]["confusion"]
    assert {row["name"] for row in found[1]["per_class"]} == {"World", "Sports", "Business", "Sci/Tech"}
    with Path("test.csv").open("a") as file:
        file.write('"5","a","b"\n')
    with pytest.raises(SystemExit):
        evaluate(["checkpoints/classification_small", "input=test.csv", *columns, "device=cpu"])
    assert "Line 61 of test.csv" in capsys.readouterr().err
