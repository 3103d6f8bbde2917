"""Examples that are too long for the model are refused before the first update, with a setting that works."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from seqtk.data.indexed_writer import IndexedWriter
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import trainer

LIMITED = {"kind": "synthesizer_random", "max_length": 8}
CROSS = {"kind": "linformer", "max_length": 8, "rank": 4}
CASES: dict[str, dict[str, Any]] = {
    "encoder": {"model__encoder__self_attention": LIMITED},
    "decoder": {"model__decoder__self_attention": LIMITED},
    "cross": {"model__decoder__cross_attention": CROSS},
    "both": {"attention": LIMITED},
    "both and cross": {"attention": LIMITED, "model__decoder__cross_attention": CROSS},
    "a pattern": {"model__encoder__layers": 2, "model__encoder__self_attention": ["softmax", LIMITED]},
    "memory tokens": {"model__encoder__self_attention": LIMITED, "model__encoder__memory_tokens": 3},
    "the model": {"model__max_source_length": 8, "model__max_target_length": 9},
}


@pytest.mark.parametrize("case", CASES)
def test_suggested_settings_let_the_run_start(case: str, tiny_corpus: Path, tmp_path: Path) -> None:
    changes = dict(CASES[case])
    for _ in range(8):  # limits × splits
        with pytest.raises(UserError) as caught:
            trainer(tiny_corpus, tmp_path, **changes)
        assert str(caught.value).count("\n") <= 2
        advice = re.search(r"Set (\S+) to (\d+)", str(caught.value))
        assert advice is not None, caught.value
        changes[advice[1].replace(".", "__")] = int(advice[2])
        try:
            trainer(tiny_corpus, tmp_path, **changes)
        except UserError:
            continue
        return
    pytest.fail("the advice does not help")


def test_validation_set_named_training_hides_no_error(tiny_corpus: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, corpus)
    for lang in ("en", "de"):
        with IndexedWriter(corpus / f"short.en-de.{lang}", vocabulary_size=300) as writer:
            writer.append([5, 2])
    changes = {"validation__split": "training", "validation__sets": [{"split": "short", "name": "training"}]}
    with pytest.raises(UserError, match=r"training examples of .* are too long"):
        trainer(corpus, tmp_path / "run", model__max_source_length=3, **changes)


def test_long_examples_of_later_shards_are_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    longest = int(trainer(tiny_corpus, tmp_path / "run").train_set.sizes_ND[:, 0].max())
    short = shutil.copytree(tiny_corpus, tmp_path / "short")
    for lang in ("en", "de"):
        with IndexedWriter(short / f"train.en-de.{lang}", vocabulary_size=300) as writer:
            writer.append([5, 2])
    shards, changes = Path(f"{short},{tiny_corpus}"), {"model__max_source_length": longest - 1}
    with pytest.raises(
        UserError, match=f"training examples? of shard 2 of .* too long: .* {longest - 1} source tokens"
    ):
        trainer(shards, tmp_path / "run", validation__split=None, **changes)


def test_later_shard_without_examples_is_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_corpus, tmp_path / "other")
    shards = Path(f"{tiny_corpus},{other}")
    for lang in ("en", "de"):
        with IndexedWriter(other / f"train.en-de.{lang}", vocabulary_size=300) as writer:
            writer.append([*[5] * 400, 2])
    with pytest.raises(
        UserError, match=r"examples in shard 2 of .* longer than batch\.max_tokens=400\.\n.* 401 tokens"
    ):
        trainer(shards, tmp_path / "run")
    for lang in ("en", "de"):
        with IndexedWriter(other / f"train.en-de.{lang}", vocabulary_size=300):
            pass
    with pytest.raises(UserError, match="no training examples in shard 2 of"):
        trainer(shards, tmp_path / "run")


def test_longer_examples_of_a_mixture_are_refused_at_start(tiny_corpus: Path, tmp_path: Path) -> None:
    longest = int(trainer(tiny_corpus, tmp_path / "run").train_set.sizes_ND[:, 0].max())
    changes = {"task__mix": [{"data": str(tiny_corpus), "weight": 0.01}], "validation__split": None}
    first = trainer(tiny_corpus, tmp_path / "run", **changes)
    assert first.train_set.sizes_ND[:, 0].max() < longest
    with pytest.raises(UserError, match=f"training examples? of {tiny_corpus} (.|\n)*model.max_source_length"):
        trainer(tiny_corpus, tmp_path / "run", **changes, model__max_source_length=longest - 1)


def test_error_suggests_the_common_key_of_all_layers(tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Set attention\.max_length to"):
        trainer(tiny_corpus, tmp_path, **CASES["both"])
    with pytest.raises(UserError, match=r"Set model\.decoder\.cross_attention\.max_length to"):
        trainer(tiny_corpus, tmp_path, **CASES["cross"])


def test_error_of_a_layer_names_its_key(tiny_corpus: Path, tmp_path: Path) -> None:
    run = trainer(tiny_corpus, tmp_path, attention={"kind": "synthesizer_random", "max_length": 500})
    slots = {}
    for name, layer in run.model.attention_layers():
        if layer.max_length is not None:
            with pytest.raises(UserError) as caught:
                layer.check_length(501)
            slots[name] = re.findall(r"Raise (\S+) ", str(caught.value))
    assert slots == {
        "encoder.blocks.0.self_attention": ["model.encoder.self_attention.max_length"],
        "decoder.blocks.0.self_attention": ["model.decoder.self_attention.max_length"],
    }
