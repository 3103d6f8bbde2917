"""`init_from`: a new run starts from the weights of a trained model, which may have a different architecture."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from seqtk.checkpoint import model_file, trained_model
from seqtk.checkpoint.model_file import ModelFile, set_tensors, tensors_of
from seqtk.checkpoint.transfer import Fate, Transfer, transfer
from seqtk.config import schema
from seqtk.corpora import demo
from seqtk.data.batch import LanguageBatch, TranslationBatch
from seqtk.data.encoder_batches import ClassBatch, MaskedBatch
from seqtk.data.plan import Position
from seqtk.data.vocabulary import Vocabulary
from seqtk.models import Model, ModelConfig, build_model
from seqtk.modules.pooled_head import PooledHead
from seqtk.utils.errors import UserError
from tests.unit.training.helpers import trainer
from tests.unit.training.test_resume import flip


@pytest.fixture(scope="module")
def trained(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    trainer(tiny_corpus, folder, max_updates=2).fit()
    return folder


@pytest.mark.slow
def test_fine_tuning_beats_training_from_scratch(tiny_corpus: Path, tmp_path: Path) -> None:
    other = demo.DemoConfig(destdir=str(tmp_path / "other"), pairs=300, vocab_size=200)
    demo.prepare(other)
    trainer(tiny_corpus, tmp_path / "base", max_updates=80, validation__every=80).fit()
    few: dict[str, Any] = {"max_updates": 16, "validation__every": 16}
    scratch = trainer(Path(other.destdir), tmp_path / "scratch", **few).fit()
    tuned = trainer(Path(other.destdir), tmp_path / "tuned", init_from=str(tmp_path / "base"), **few).fit()
    assert scratch.best is not None
    assert tuned.best is not None
    assert tuned.best < scratch.best - 0.2


class TestRuns:
    def test_new_run_starts_from_the_weights_of_the_model(
        self, trained: Path, tiny_corpus: Path, tmp_path: Path
    ) -> None:
        run = trainer(tiny_corpus, tmp_path, init_from=str(trained), seed=2)
        saved = model_file.read(trained).tensors
        assert all(torch.equal(tensor, saved[name]) for name, tensor in tensors_of(run.model).items())
        assert run.state.update == 0

    def test_resumed_run_ignores_init_from(self, trained: Path, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path, init_from=str(trained), max_updates=2).fit()
        again = trainer(tiny_corpus, tmp_path, init_from=str(trained), max_updates=3)
        own = model_file.read(tmp_path / "update_00000002").tensors
        assert all(torch.equal(tensor, own[name]) for name, tensor in tensors_of(again.model).items())

    def test_model_of_a_different_width_is_refused(self, trained: Path, tiny_corpus: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"(?s)init_from.*model\.dim"):
            trainer(tiny_corpus, tmp_path, init_from=str(trained), model__dim=8)

    def test_token_counts_in_dictionaries_may_differ(self, trained: Path, tiny_corpus: Path, tmp_path: Path) -> None:
        contents = model_file.read(trained)
        dictionary = Vocabulary.from_text(contents.assets["source.dict"])
        contents.assets["source.dict"] = Vocabulary(dictionary.tokens[4:]).to_text()
        model_file.write(tmp_path / "other.safetensors", contents)
        run = trainer(tiny_corpus, tmp_path / "run", init_from=str(tmp_path / "other.safetensors"))
        assert all(torch.equal(tensor, contents.tensors[name]) for name, tensor in tensors_of(run.model).items())

    def test_fine_tuned_model_file_can_be_loaded(self, trained: Path, tiny_corpus: Path, tmp_path: Path) -> None:
        attention = [{"kind": "synthesizer_dense", "max_length": 64}]
        run = trainer(tiny_corpus, tmp_path, init_from=str(trained), attention=attention, max_updates=2)
        run.fit()
        assert trained_model.load(tmp_path).task.assets() == run.task.assets()


def weights(save_dir: Path) -> dict[str, torch.Tensor]:
    return model_file.read(save_dir / "update_00000008").tensors


@pytest.fixture(scope="module")
def run(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trainer(tiny_corpus, folder).fit()
    return folder


class TestReset:
    def test_resetting_nothing_equals_resuming(self, run: Path, tiny_corpus: Path, tmp_path: Path) -> None:
        trainer(tiny_corpus, tmp_path, init_from=str(run / "update_00000003"), reset=[]).fit()
        ours, theirs = weights(tmp_path), weights(run)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())

    @pytest.mark.parametrize("part", ["optimizer", "schedule", "data", "best"])
    def test_each_part_can_be_reset_alone(self, run: Path, tiny_corpus: Path, tmp_path: Path, part: str) -> None:
        new = trainer(tiny_corpus, tmp_path, init_from=str(run / "update_00000006"), reset=part)
        state = new.state
        reset = {
            "optimizer": not new.optimizer.state,
            "schedule": state.update == 0,
            "data": state.position == Position(),
            "best": state.best is None,
        }
        assert {name for name, is_reset in reset.items() if is_reset} == {part}

    def test_run_folder_selects_its_latest_checkpoint(self, run: Path, tiny_corpus: Path, tmp_path: Path) -> None:
        new = trainer(tiny_corpus, tmp_path, init_from=str(run), reset="schedule")
        assert all(torch.equal(tensor, weights(run)[name]) for name, tensor in tensors_of(new.model).items())

    @pytest.mark.parametrize(
        ("reset", "changes", "key"),
        [
            ("data", {"optimizer": "sgd"}, "add optimizer to reset"),
            ("best", {"seed": 2}, "add data to reset"),
            ("data", {"validation__metric": "nll"}, "Add best to reset"),
            ("data", {"max_updates": 6}, "max_updates"),
        ],
    )
    def test_reset_that_omits_a_changed_part_is_refused(
        self, run: Path, tiny_corpus: Path, tmp_path: Path, reset: str, changes: dict[str, Any], key: str
    ) -> None:
        with pytest.raises(UserError, match=key):
            trainer(tiny_corpus, tmp_path, init_from=str(run / "update_00000006"), reset=reset, **changes)

    def test_reset_with_a_model_file_is_refused(self, run: Path, tiny_corpus: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="contains only weights"):
            trainer(tiny_corpus, tmp_path, init_from=str(run / "best.safetensors"), reset="data")

    def test_reset_without_init_from_is_refused(self, tiny_corpus: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="reset=data has no effect"):
            trainer(tiny_corpus, tmp_path, reset="data")


class TestSharedTables:
    """If source, target and head share an embedding table, a file stores it once, under the name of the source."""

    SHARED = ("none", "decoder", "all")

    @pytest.mark.parametrize("before", SHARED)
    @pytest.mark.parametrize("now", SHARED)
    def test_every_embedding_table_is_copied(self, before: str, now: str) -> None:
        old, new = translation(8, 8, share=before), translation(8, 8, share=now)
        result = copied(old, new)
        assert not names_of(result, Fate.FRESH)
        their_tables = tables_of(old, tensors_of(old))
        first = {"none": (0, 1, 2), "decoder": (0, 1, 1), "all": (0, 0, 0)}[now]
        for table, source in zip(tables_of(new, result.tensors), first, strict=True):
            assert torch.equal(table, their_tables[source])
        assert ("target_embedding.tokens.weight: not in the old model" in "\n".join(result.lines())) == (
            before == "all" != now
        )

    def test_joint_table_has_rows_of_both_dictionaries(self) -> None:
        old, new = translation(7, 6, share="decoder"), translation(9, 9, share="all")
        old_assets = {"source.dict": Vocabulary(list("abc")).to_text(), "target.dict": Vocabulary(list("cd")).to_text()}
        joint = Vocabulary(list("dcbax")).to_text()
        contents = ModelFile(tensors_of(old), {}, old_assets, {})
        assets = {"source.dict": joint, "target.dict": joint}
        result = transfer(contents, new, drawn=tensors_of(new), assets=assets, source="old")
        table, (source, target, _) = result.tensors["source_embedding.tokens.weight"], tables_of(old, contents.tensors)
        assert torch.equal(table[[0, 1, 2, 3, 5, 6, 7]], source[[0, 1, 2, 3, 6, 5, 4]])
        assert torch.equal(table[4], target[5])
        assert torch.equal(table[8], tensors_of(new)["source_embedding.tokens.weight"][8])
        assert "copied 8 of 9 rows, 1 are new; the old model has 7 + 6." in "\n".join(result.lines())
        assert "target_embedding.tokens.weight" not in names_of(result, Fate.NOT_USED)

    def test_separate_head_copies_rows_of_a_shared_table(self) -> None:
        old, new = language_model("abcd"), language_model("dxab", tie_embeddings=False)
        result = copied(old, new, now="dxab")
        table = tensors_of(old)["embedding.tokens.weight"]
        assert torch.equal(result.tensors["head.weight"][[4, 6, 7]], table[[7, 4, 5]])

    @pytest.mark.parametrize("separate", ["tie_embeddings", "tie_projections"])
    def test_separate_adaptive_head_copies_shared_weights(self, separate: str) -> None:
        """The new model computes what the old model computes."""
        adaptive = {"cutoffs": [5, 6], "input_factor": 2.0, "softmax_factor": 2.0}
        old = language_model("abcd", adaptive=adaptive)
        if separate == "tie_embeddings":
            new = language_model("abcd", adaptive=adaptive, tie_embeddings=False)
        else:
            new = language_model("abcd", adaptive={**adaptive, "tie_projections": False})
        result = copied(old, new)
        assert names_of(result, Fate.FRESH) == []
        assert (
            "head.projections.1: not in the old model; copied from embedding.tokens.projections.2.weight."
            in result.notes
        )
        set_tensors(new, result.tensors, source="old")
        features_BTD = torch.randn(2, 3, old.config.dim)
        assert torch.equal(new.head.log_probs(features_BTD), old.head.log_probs(features_BTD))

    def test_adaptive_head_is_new_if_the_old_model_had_none(self) -> None:
        """The projections of the old model were not those of a softmax."""
        factors = {"cutoffs": [6], "input_factor": 2.0}
        old = language_model("abcd", adaptive={**factors, "softmax_factor": None}, tie_embeddings=False)
        new = language_model("abcd", adaptive={**factors, "softmax_factor": 2.0}, tie_embeddings=False)
        fresh = names_of(copied(old, new), Fate.FRESH)
        assert {"head.classes", "head.projections.0"} <= set(fresh)

    def test_head_is_not_copied_from_a_classifier(self) -> None:
        """A classifier has no output layer over the vocabulary: neither a separate one nor its embedding table."""
        old, new = classifier("abcd", 2), masked_lm("abcd", tie_embeddings=False)
        assert names_of(copied(old, new), Fate.FRESH) == ["head.weight"]

    def test_optimizer_state_is_kept_for_common_tables(self, run: Path, tiny_corpus: Path, tmp_path: Path) -> None:
        changes = {"model__share_embeddings": "none", "reset": ["schedule", "data", "best"], "max_updates": 1}
        new = trainer(tiny_corpus, tmp_path, init_from=str(run), **changes)
        assert set(new.optimizer.state) < set(new.model.parameters())
        new.fit()


class TestDamage:
    @pytest.fixture
    def damaged(self, run: Path, tmp_path: Path) -> Path:
        """A run whose latest checkpoint is damaged."""
        folder = shutil.copytree(run, tmp_path / "damaged")
        for name in ("model", "optimizer"):
            flip(folder / "update_00000008" / f"{name}.safetensors")
        return folder

    @pytest.mark.parametrize("reset", ["schedule", ["optimizer", "schedule", "data", "best"]])
    def test_older_checkpoint_is_used(self, damaged: Path, tiny_corpus: Path, tmp_path: Path, reset: Any) -> None:
        (damaged / "best.safetensors").unlink()
        new = trainer(tiny_corpus, tmp_path / "new", init_from=str(damaged), reset=reset)
        older = model_file.read(damaged / "update_00000006").tensors
        assert all(torch.equal(tensor, older[name]) for name, tensor in tensors_of(new.model).items())
        assert "update_00000008/model.safetensors is damaged" in new.notes[0]
        assert "Using the checkpoint before it, update_00000006." in new.notes[0]

    def test_intact_best_model_is_used(self, damaged: Path, tiny_corpus: Path, tmp_path: Path) -> None:
        new = trainer(tiny_corpus, tmp_path / "new", init_from=str(damaged))
        best = model_file.read(damaged / "best.safetensors").tensors
        assert all(torch.equal(tensor, best[name]) for name, tensor in tensors_of(new.model).items())

    def test_best_model_is_used_if_latest_is_damaged(self, damaged: Path, tiny_corpus: Path, tmp_path: Path) -> None:
        (damaged / "latest").write_text("")
        new = trainer(tiny_corpus, tmp_path / "new", init_from=str(damaged))
        best = model_file.read(damaged / "best.safetensors").tensors
        assert all(torch.equal(tensor, best[name]) for name, tensor in tensors_of(new.model).items())

    @pytest.mark.parametrize("reset", ["schedule", ["optimizer", "schedule", "data", "best"]])
    def test_damaged_latest_file_is_refused(self, damaged: Path, tiny_corpus: Path, tmp_path: Path, reset: Any) -> None:
        (damaged / "best.safetensors").unlink()
        (damaged / "latest").write_text("")
        with pytest.raises(
            UserError, match=r"latest is empty(.|\n)*\nSet init_from to one of these checkpoints, or to"
        ):
            trainer(tiny_corpus, tmp_path / "new", init_from=str(damaged), reset=reset)

    @pytest.mark.parametrize("name", ["update_00000008", "update_00000008/model.safetensors", "best.safetensors"])
    def test_damaged_model_file_in_init_from_is_refused(
        self, damaged: Path, tiny_corpus: Path, tmp_path: Path, name: str
    ) -> None:
        if name == "best.safetensors":
            flip(damaged / name)
        with pytest.raises(UserError, match=r"damaged.*\.safetensors is damaged(.|\n)*use another checkpoint"):
            trainer(tiny_corpus, tmp_path / "new", init_from=str(damaged / name))

    def test_run_with_only_damaged_checkpoints_is_refused(
        self, damaged: Path, tiny_corpus: Path, tmp_path: Path
    ) -> None:
        for path in damaged.glob("update_*/optimizer.safetensors"):
            path.unlink()
        with pytest.raises(UserError, match=r"Set init_from to a different model"):
            trainer(tiny_corpus, tmp_path / "new", init_from=str(damaged), reset=[])


SIZES: dict[str, Any] = {"dim": 8, "ffn_dim": 16, "heads": 2}


def language_model(words: str, **changes: Any) -> Model:
    tree = {"kind": "transformer_lm", **SIZES, "layers": 2, "positions": "learned", "max_length": 12, **changes}
    return build_model(schema.from_dict(ModelConfig, tree), LanguageBatch, vocabulary=4 + len(words))


def masked_lm(words: str, **changes: Any) -> Model:
    tree = {"kind": "transformer_masked_lm", **SIZES, "encoder": {"layers": 2}, **changes}
    return build_model(schema.from_dict(ModelConfig, tree), MaskedBatch, vocabulary=4 + len(words))


def translation(source: int, target: int, *, share: str) -> Model:
    """Returns a translation model with vocabularies of these sizes."""
    tree = {
        **SIZES,
        "kind": "transformer",
        "encoder": {"layers": 1},
        "decoder": {"layers": 1},
        "share_embeddings": share,
    }
    return build_model(
        schema.from_dict(ModelConfig, tree), TranslationBatch, source_vocabulary=source, target_vocabulary=target
    )


def tables_of(model: Model, tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Returns the embedding tables of source, target and head. In `tensors`, a shared table has only its first name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    own = dict(model.named_parameters(remove_duplicate=False))
    tables = ("source_embedding.tokens.weight", "target_embedding.tokens.weight", "head.weight")
    return [tensors[names[id(own[table])]] for table in tables]


def classifier(words: str, classes: int, *, values: list[float] | None = None, **changes: Any) -> Model:
    tree = {"kind": "transformer_classifier", **SIZES, "encoder": {"layers": 2}, **changes}
    head: Callable[[int], PooledHead] = lambda dim: PooledHead(dim, classes)  # noqa: E731
    return build_model(
        schema.from_dict(ModelConfig, tree), ClassBatch, vocabulary=4 + len(words), head=head, values=values
    )


def copied(
    old: Model, new: Model, *, before: str = "abcd", now: str = "abcd", classes: tuple[str, str] = ("", "")
) -> Transfer:
    """Transfers the weights of `old` to `new`. Their vocabularies are the letters of `before` and `now`."""
    old_assets, assets = (
        {"text.dict": Vocabulary(list(words)).to_text()} | ({"classes": "\n".join(names)} if names else {})
        for words, names in zip((before, now), classes, strict=True)
    )
    contents = ModelFile({name: tensor.clone() for name, tensor in tensors_of(old).items()}, {}, old_assets, {})
    return transfer(contents, new, drawn=tensors_of(new), assets=assets, source="old")


def names_of(result: Transfer, fate: Fate) -> list[str]:
    return [name for name, its_fate in result.fates.items() if its_fate is fate]


class TestVocabulary:
    def test_embedding_rows_are_matched_by_token(self) -> None:
        old, new = language_model("abcd"), language_model("dxaby")
        result = copied(old, new, now="dxaby")
        before, table, drawn = (
            each["embedding.tokens.weight"] for each in (tensors_of(old), result.tensors, tensors_of(new))
        )
        assert torch.equal(table[[0, 1, 2, 3, 4, 6, 7]], before[[0, 1, 2, 3, 7, 4, 5]])
        assert torch.equal(table[[5, 8]], drawn[[5, 8]])
        assert "7 of 9 rows" in "\n".join(result.lines())

    def test_rows_of_untied_heads_are_matched_by_token(self) -> None:
        old, new = (language_model("abcd", tie_embeddings=False) for _ in range(2))
        result = copied(old, new, now="bcda")
        assert torch.equal(result.tensors["head.weight"][4:], tensors_of(old)["head.weight"][[5, 6, 7, 4]])

    def test_rows_of_adaptive_bands_are_matched_by_token(self) -> None:
        adaptive = {"cutoffs": [6], "input_factor": 2.0, "softmax_factor": 2.0}
        old, new = language_model("abcd", adaptive=adaptive), language_model("adcbe", adaptive=adaptive)
        result = copied(old, new, now="adcbe")
        rare, before = (
            result.tensors["embedding.tokens.bands.1.weight"],
            tensors_of(old)["embedding.tokens.bands.1.weight"],
        )
        drawn = tensors_of(new)
        assert torch.equal(rare[0], before[0])  # c is in the second band of both models
        assert torch.equal(
            rare[1:], drawn["embedding.tokens.bands.1.weight"][1:]
        )  # b was in the first band, and e is new
        assert torch.equal(result.tensors["head.classes"], tensors_of(old)["head.classes"])

    def test_rows_of_different_tokens_are_not_copied(self) -> None:
        old, new = language_model("abcd"), language_model("wxyz")
        table = copied(old, new, now="wxyz").tensors["embedding.tokens.weight"]
        assert torch.equal(table[:4], tensors_of(old)["embedding.tokens.weight"][:4])
        assert torch.equal(table[4:], tensors_of(new)["embedding.tokens.weight"][4:])


class TestOtherModels:
    def test_classifier_copies_all_weights_of_a_masked_lm(self) -> None:
        result = copied(masked_lm("abcd"), classifier("abcd", 5))
        assert names_of(result, Fate.FRESH) == ["head.linear.weight", "head.linear.bias"]
        assert not names_of(result, Fate.NOT_USED)

    @pytest.mark.parametrize(("now", "rows"), [("xzy", {0: 0, 2: 1}), ("uvw", {}), ("zy", {1: 1})])
    def test_rows_of_the_head_are_matched_by_class(self, now: str, rows: dict[int, int]) -> None:
        old, new = classifier("abcd", 3), classifier("abcd", len(now))
        result = copied(old, new, classes=("xy-", now))
        for name in ("head.linear.weight", "head.linear.bias"):
            expected = tensors_of(new)[name].clone()
            for here, there in rows.items():
                expected[here] = tensors_of(old)[name][there]
            assert torch.equal(result.tensors[name], expected)
            assert result.fates[name] is (Fate.RESIZED if rows else Fate.FRESH)

    def test_model_with_numeric_input_is_copied_completely(self) -> None:
        old, new = (classifier("0123", 3, values=[0.0, 1.0, 2.0, 3.0]) for _ in range(2))
        assert set(copied(old, new, before="0123", now="0123").fates.values()) == {Fate.TAKEN}

    def test_common_part_of_learned_positions_is_copied(self) -> None:
        old, new = language_model("abcd", max_length=12), language_model("abcd", max_length=20)
        result = copied(old, new)
        table = result.tensors["embedding.positions.table.weight"]
        assert torch.equal(table[:12], tensors_of(old)["embedding.positions.table.weight"])
        assert torch.equal(table[12:], tensors_of(new)["embedding.positions.table.weight"][12:])

    @pytest.mark.parametrize("kind", ["synthesizer_random", "synthesizer_dense", "linformer", "gmlp", "aft_full"])
    @pytest.mark.parametrize("length", [5, 13])
    def test_layers_with_max_length_are_resized(self, kind: str, length: int) -> None:
        old, new = (classifier("abcd", 3, attention=[{"kind": kind, "max_length": limit}]) for limit in (8, length))
        result = copied(old, new)
        assert names_of(result, Fate.RESIZED)
        assert not names_of(result, Fate.FRESH)
        new.load_state_dict(result.tensors, strict=False)
        tokens_BS = torch.randint(4, 8, (2, 5))
        batch = ClassBatch(torch.arange(2), 2, tokens_BS, torch.zeros(2, dtype=torch.long))
        torch.testing.assert_close(new.eval()(batch)[0], old.eval()(batch)[0])

    def test_different_width_is_refused(self) -> None:
        old = classifier("abcd", 3, attention=[{"kind": "synthesizer_random", "max_length": 8}])
        new = classifier("abcd", 3, dim=16, attention=[{"kind": "synthesizer_random", "max_length": 16}])
        with pytest.raises(UserError, match="old has no weight matrix"):
            copied(old, new)

    def test_different_attention_layer_copies_matching_weights(self) -> None:
        old, new = (
            classifier("abcd", 3),
            classifier("abcd", 3, attention=[{"kind": "synthesizer_random", "max_length": 9}]),
        )
        result = copied(old, new)
        layer = "encoder.blocks.0.self_attention"
        assert result.fates[f"{layer}.value.weight"] is Fate.TAKEN
        assert result.fates[f"{layer}.query.weight"] is Fate.NOT_USED
        assert result.fates[f"{layer}.logits.matrix"] is Fate.FRESH

    def test_additional_layers_are_initialized(self) -> None:
        result = copied(language_model("abcd"), language_model("abcd", layers=3))
        assert all(name.startswith("decoder.blocks.2.") for name in names_of(result, Fate.FRESH))
        lines = [line.split() for line in result.lines()]
        assert ["fresh", "decoder.blocks.2", "16", "tensors", "600", "parameters"] in lines

    def test_model_without_matching_weights_is_refused(self) -> None:
        with pytest.raises(UserError, match="old has no weight matrix"):
            copied(language_model("abcd", dim=16), classifier("abcd", 3))
