"""The masked language model: loss, fine-tuning, bit-exact resuming, workers and learning."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import seqtk
from seqtk.attention import Role, attentions
from seqtk.checkpoint import model_file
from seqtk.checkpoint.model_file import tensors_of
from seqtk.cli.classify import main as classify
from seqtk.cli.evaluate import main as evaluate
from seqtk.config import schema
from seqtk.criterions import criterions
from seqtk.criterions.cross_entropy import CrossEntropyConfig
from seqtk.data.encoder_batches import MaskedBatch
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.data.vocabulary import PAD
from seqtk.models import build_model
from seqtk.models.masked_lm import TransformerMaskedLM, TransformerMaskedLMConfig
from seqtk.tasks.masked_lm import MaskedLMConfig, MaskedLMTask
from seqtk.training.config import TrainConfig
from seqtk.training.parallel import start_engine
from seqtk.training.trainer import Trainer
from seqtk.training.validation import validate
from seqtk.utils.errors import UserError

SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "max_updates": 9,
    "batch": {"max_tokens": 128},
    "model": {"kind": "transformer_masked_lm", "dim": 16, "ffn_dim": 32, "heads": 2, "encoder": {"layers": 1}},
    "criterion": "cross_entropy",
    "schedule": {"warmup_updates": 4},
    "optimizer": {"lr": 0.01},
    "checkpoint": {"every": 4},
    "validation": {"every": 5, "metric": "accuracy"},
    "log": {"every": 1, "tensorboard": False},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a data-bin with lines of 12 word pairs such as `a3 b3`, in which each word determines the other one."""
    folder = tmp_path_factory.mktemp("text")
    generator = torch.Generator().manual_seed(1)
    for split, lines in (("train", 300), ("valid", 40)):
        pairs = torch.randint(0, 20, (lines, 12), generator=generator).tolist()
        text = "".join(" ".join(f"a{pair} b{pair}" for pair in line) + "\n" for line in pairs)
        (folder / split).write_text(text)
    destination = str(folder / "data-bin")
    train, valid = str(folder / "train"), (str(folder / "valid"),)
    preprocess(PreprocessConfig(tokens="words", train=train, valid=valid, destdir=destination, workers=1))
    (Path(destination) / "classes.txt").write_text("no\nyes\n")
    for split, lines in (("train", 300), ("valid", 40)):
        np.save(f"{destination}/{split}.labels.npy", np.arange(lines, dtype=np.int32) % 2)
    return Path(destination)


def trainer(corpus: Path, save_dir: Path, **changes: Any) -> Trainer:
    task = {"kind": "masked_lm", "data": str(corpus), "tokens_per_sample": 25}
    config = schema.from_dict(TrainConfig, {**SETTINGS, "save_dir": str(save_dir), "task": task})
    for key, value in changes.items():
        config = schema.update(config, key.replace("__", "."), value)
    return Trainer(config, engine=start_engine(device="cpu"))


def model(**settings: Any) -> TransformerMaskedLM:
    torch.manual_seed(1)
    tree = {"dim": 16, "ffn_dim": 16, "heads": 2, "encoder": {"layers": 2}, "dropout": 0.0}
    config = schema.from_dict(TransformerMaskedLMConfig, {**tree, **settings})
    built = build_model(config, MaskedBatch, vocabulary=20)
    assert isinstance(built, TransformerMaskedLM)
    return built


def batch(seed: int = 1) -> MaskedBatch:
    source_BS = torch.randint(4, 20, (3, 8), generator=torch.Generator().manual_seed(seed))
    target_BS = torch.full_like(source_BS, PAD)
    target_BS[0, 2], target_BS[1, 5] = 7, 9
    return MaskedBatch(torch.arange(3), 2, source_BS=source_BS, target_BS=target_BS)


class TestLoss:
    def test_loss_is_summed_over_predicted_positions(self) -> None:
        network, criterion = model(), criterions.build(CrossEntropyConfig())
        features_BSD, _ = network(batch())
        log_p_BSV = network.head.log_probs(features_BSD)
        expected = -(log_p_BSV[0, 2, 7] + log_p_BSV[1, 5, 9])
        torch.testing.assert_close(criterion(network, batch()).total, expected)

    def test_positions_without_a_target_have_no_gradient(self) -> None:
        network = model()
        features_BSD = torch.randn(3, 8, 16, requires_grad=True)
        network.head(features_BSD, batch().target).total.backward()
        assert features_BSD.grad is not None
        touched_BS = features_BSD.grad.abs().sum(2) > 0
        assert touched_BS.nonzero().tolist() == [[0, 2], [1, 5]]

    def test_accuracy_counts_correct_predictions(self) -> None:
        network, criterion = model().eval(), criterions.build(CrossEntropyConfig())
        features_BSD, _ = network(batch())
        best_BS = network.head.log_probs(features_BSD).argmax(-1)
        target_BS = batch().target.clone()
        target_BS[0, 2] = best_BS[0, 2]
        target_BS[1, 5] = (best_BS[1, 5] + 1) % 20
        loss = criterion(network, replace(batch(), target_BS=target_BS))
        assert tuple(loss.stats) == criterion.stats_of(network)
        assert [float(part) for part in loss.stats["correct"]] == [1.0, 2.0]


class TestFineTuning:
    def test_classifier_is_initialized_from_a_masked_lm(self, corpus: Path, tmp_path: Path) -> None:
        trainer(corpus, tmp_path / "masked").fit()
        own = model_file.read(tmp_path / "masked" / "update_00000009").tensors
        tree = {
            **SETTINGS,
            "save_dir": str(tmp_path / "classifier"),
            "init_from": str(tmp_path / "masked" / "update_00000009"),
            "task": {"kind": "classification", "data": str(corpus)},
            "model": {**SETTINGS["model"], "kind": "transformer_classifier"},
        }
        run = Trainer(schema.from_dict(TrainConfig, tree), engine=start_engine(device="cpu"))
        now = tensors_of(run.model)
        taken = {name for name in now if name in own and torch.equal(now[name], own[name])}
        assert set(now) - taken == {"head.linear.weight", "head.linear.bias"}
        assert run.fit().update == 9

    def test_seqtk_classify_error_suggests_init_from(
        self, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trainer(corpus, tmp_path, max_updates=1, validation__every=0).fit()
        with pytest.raises(SystemExit) as raised:
            classify([str(tmp_path), "device=cpu"])
        assert raised.value.code == 2
        assert f"init_from={tmp_path}" in capsys.readouterr().err


ENCODERS = [name for name in attentions if Role.ENCODER in attentions.class_of(attentions.config_type(name)).roles]


@pytest.mark.parametrize("attention", ENCODERS)
def test_every_attention_layer_has_a_gradient(attention: str) -> None:
    network = model(attention=attention).train()
    criterions.build(CrossEntropyConfig())(network, batch()).total.backward()
    gradients = [weight.grad for name, weight in network.named_parameters() if name.startswith("encoder")]
    assert any(gradient is not None and float(gradient.abs().sum()) > 0 for gradient in gradients)


class TestDeterminism:
    @pytest.mark.slow
    def test_resuming_is_bit_exact(self, corpus: Path, tmp_path: Path) -> None:
        trainer(corpus, tmp_path / "whole", max_updates=100, validation__every=0).fit()
        for updates in (30, 70, 100):  # the second epoch begins in between
            trainer(corpus, tmp_path / "parts", max_updates=updates, validation__every=0).fit()
        whole, parts = (model_file.read(tmp_path / name / "update_00000100").tensors for name in ("whole", "parts"))
        assert all(torch.equal(whole[name], parts[name]) for name in whole)

    @pytest.mark.slow
    def test_masks_do_not_depend_on_workers_and_batches(self, corpus: Path, tmp_path: Path) -> None:
        def read(**changes: Any) -> dict[int, list[int]]:
            run = trainer(corpus, tmp_path / "none", **changes)
            found = {}
            for update, batches in run._updates():
                for loaded in batches:
                    rows = zip(loaded.ids_B.tolist(), loaded.source_BS, strict=True)  # type: ignore[attr-defined]
                    found |= {index: row[row != PAD].tolist() for index, row in rows}
                if update.position_after.epoch > 1:
                    return found
            raise AssertionError

        alone = read()
        assert len(alone) == 300
        assert read(batch__workers=2) == alone
        assert read(batch__max_tokens=300) == alone

    def test_each_epoch_has_different_masks(self, corpus: Path) -> None:
        task = MaskedLMTask(MaskedLMConfig(data=str(corpus), tokens_per_sample=25))
        first, second = (task.training_set(epoch) for epoch in (1, 2))
        assert sum((first[index][2] == second[index][2]).all() for index in range(300)) < 10
        again = task.dataset("valid")
        assert all((task.dataset("valid")[index][1] == again[index][1]).all() for index in range(len(again)))


class TestRun:
    @pytest.mark.slow
    def test_model_learns_to_predict_masked_words(self, corpus: Path, tmp_path: Path) -> None:
        """A masked word can be inferred from its neighbor. Random guesses have an accuracy of 1/40."""
        run = trainer(
            corpus,
            tmp_path,
            max_updates=400,
            batch__max_tokens=800,
            model__dim=32,
            model__dropout=0.0,
            model__pre_norm=True,
            optimizer__lr=0.01,
            schedule={"kind": "cosine", "warmup_updates": 40},
            validation__every=400,
            log__every=400,
        )
        run.fit()
        values, _ = validate(run.step, run.task, run.config, engine=run.engine)
        assert float(values["accuracy"]) > 75
        assert float(values["bits_per_token"]) < 2
        assert float(values["bits_per_token"]) == pytest.approx(float(values["nll"]) / 0.6931, rel=1e-3)

    def test_report_has_bits_per_token_and_accuracy(
        self, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trainer(corpus, tmp_path).fit()
        capsys.readouterr()
        report = seqtk.load(tmp_path).evaluate(split="valid")
        assert {"bits_per_token", "accuracy", "nll"} <= report.scores.keys()
        assert 0.1 * 960 < report.counts["targets"] < 0.2 * 960
        text = tmp_path / "text"
        text.write_text("a1 b1 a2 b2\n" * 8)
        evaluate([str(tmp_path), f"input={text}", "format=json", "device=cpu"])
        printed = json.loads(capsys.readouterr().out)
        assert 0 <= printed["accuracy"] <= 100

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"task__masking__random": 0.5}, "task.masking.random=0.5"),
            ({"model": "transformer_classifier"}, "model=transformer_classifier"),
            ({"model": "transformer_lm"}, "transformer_masked_lm"),
            ({"batch__streams": 2}, "batch.streams"),
            ({"model__max_source_length": 8}, "model.max_source_length"),
            ({"validation__metric": "bits_per_byte"}, "bits_per_byte"),
        ],
    )
    def test_invalid_settings_are_refused(
        self, corpus: Path, tmp_path: Path, changes: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(UserError) as caught:
            trainer(corpus, tmp_path, **changes)
        assert words in str(caught.value)
        assert str(caught.value).count("\n") < 3


def test_error_about_long_samples_names_tokens_per_sample(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task\.tokens_per_sample"):
        trainer(corpus, tmp_path / "run", model__max_source_length=8)
