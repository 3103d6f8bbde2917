"""Classification and matching: reading, class weights, truncation, errors, and learning the classes of key words."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seqtk.checkpoint import model_file
from seqtk.cli import average as average_command
from seqtk.config import schema
from seqtk.criterions import CriterionConfig, criterions
from seqtk.data.batch import Batch
from seqtk.data.encoder_batches import PairBatch
from seqtk.data.labelled import PIXELS, Arrays, write_arrays
from seqtk.data.plan import BatchingConfig
from seqtk.data.sources import GivenText
from seqtk.data.vocabulary import EOS, PAD
from seqtk.models import Model, ModelConfig
from seqtk.pipelines import load
from seqtk.tasks import tasks
from seqtk.tasks.classification import ClassificationConfig, ClassificationTask, ClassReport
from seqtk.training.checks import banner
from seqtk.training.logging import Jsonl
from seqtk.training.parallel import TrainStep
from seqtk.training.replay import Failure, repeat
from seqtk.utils.errors import UserError
from tests.unit.tasks.labelled import task_of, write_pairs, write_texts
from tests.unit.tasks.trained import MODEL, trainer
from tests.unit.training.helpers import losses


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def model_of(task: ClassificationTask, **settings: Any) -> Model:
    torch.manual_seed(1)
    return task.model(schema.from_dict(ModelConfig, {**MODEL, **settings})).eval()


def batch_of(task: ClassificationTask, indices: Sequence[int]) -> Batch:
    dataset = task.dataset("test")
    return task.collate([dataset[index] for index in indices])


class TestImages:
    """A model for images accepts only images of the size of the training images."""

    @pytest.fixture
    def task(self, tmp_path: Path) -> ClassificationTask:
        pixels = np.arange(12) * 20
        arrays = Arrays(pixels, sizes=np.full(3, 4), labels=np.array([0, 1, 0]))
        write_arrays(tmp_path / "images", ["a", "b"], PIXELS, {"train": [arrays]})
        return ClassificationTask(ClassificationConfig(data=str(tmp_path / "images")))

    def test_image_size_is_stored_in_the_assets(self, task: ClassificationTask) -> None:
        again = ClassificationTask(ClassificationConfig(), assets=task.assets())
        assert (task.pixels, again.pixels) == (4, 4)

    @pytest.mark.parametrize(("text", "words"), [("0 1 2", "3 pixels"), ("0 1 2 300", "0 to 255"), ("0 1 2 x", "255")])
    def test_image_of_wrong_size_or_range_is_refused(self, task: ClassificationTask, text: str, words: str) -> None:
        with pytest.raises(UserError, match=f"Line 7 .*{words}"):
            task.check_image(task.encode(text), "Line 7")
        with pytest.raises(UserError, match=f"Example 1 .*{words}"):
            task.collate([(0, task.encode(text), 0)])

    def test_split_with_an_image_of_another_size_is_refused(self, tmp_path: Path) -> None:
        images = {
            name: [Arrays(np.arange(sum(sizes)), sizes=np.array(sizes), labels=np.array([0, 1]))]
            for name, sizes in {"train": [4, 4], "valid": [4, 3]}.items()
        }
        write_arrays(tmp_path / "images", ["a", "b"], PIXELS, images)
        task = ClassificationTask(ClassificationConfig(data=str(tmp_path / "images")))
        with pytest.raises(UserError, match="Example 2 of split 'valid' has 3 pixels"):
            task.dataset("valid")

    def test_image_of_the_training_size_is_accepted(self, task: ClassificationTask) -> None:
        assert task.collate([(0, task.encode("0 255 7 7"), 1)]).target.tolist() == [1]


class TestReading:
    def test_eos_is_removed_by_default(self, texts: Path) -> None:
        without, kept = task_of(texts).dataset("test"), task_of(texts, eos=True).dataset("test")
        assert (kept.sizes_ND - without.sizes_ND == 1).all()
        assert kept[3][1][0][-1] == EOS
        np.testing.assert_array_equal(kept[3][1][0][:-1], without[3][1][0])

    def test_empty_text_keeps_its_eos(self, tmp_path: Path) -> None:
        folder = write_texts(tmp_path)
        (folder / "test.txt").write_text("yes\t\nno\tk1\n")
        dataset = task_of(folder).dataset("test")
        assert dataset.sizes_ND.tolist() == [[1], [1]]
        assert dataset[0][1][0].tolist() == [EOS]

    def test_batch_of_equal_lengths_has_no_mask(self, texts: Path) -> None:
        task = task_of(texts)
        assert batch_of(task, [0]).pad is None
        assert batch_of(task, range(8)).pad is not None

    def test_both_texts_of_pairs_are_padded_to_one_length(self, pairs: Path) -> None:
        batch = batch_of(task_of(pairs, "matching"), range(8))
        assert isinstance(batch, PairBatch)
        assert batch.source_BS.shape == batch.second_BS.shape
        assert batch.texts.shape[0] == 16
        assert batch.as_empty().texts.shape[0] == 16

    def test_assets_rebuild_the_task(self, texts: Path) -> None:
        task = task_of(texts, class_weights=[1, 2.5, 3])
        again = tasks.build(task.config, assets=task.assets())
        assert isinstance(again, ClassificationTask)
        assert again.vocabulary == task.vocabulary
        assert again.classes == ["yes", "no", "both"]
        assert again.class_weights == [1, 2.5, 3]

    def test_classes_in_data_are_mapped_to_the_model_classes(self, texts: Path, tmp_path: Path) -> None:
        task = task_of(texts)
        other = write_texts(tmp_path)
        wanted = task.dataset("test").label_N
        (other / "classes.txt").write_text("both\nyes\nno\n")
        task.open(str(other))
        np.testing.assert_array_equal(task.dataset("test").label_N, wanted)


class TestRefusals:
    def test_data_with_one_class_is_refused(self, tmp_path: Path) -> None:
        folder = write_texts(tmp_path)
        (folder / "train.txt").write_text("yes\tw1\nyes\tw2\n")
        with pytest.raises(UserError, match="same class: 'yes'"):
            task_of(folder)

    def test_unknown_class_is_refused(self, texts: Path, tmp_path: Path) -> None:
        other = write_texts(tmp_path)
        (other / "classes.txt").write_text("yes\nno\nboth\nnone\n")
        with pytest.raises(UserError, match="none"):
            task_of(texts).open(str(other))

    def test_data_without_labels_is_refused(self, texts: Path) -> None:
        with pytest.raises(UserError, match="no labels"):
            task_of(texts).open(GivenText(["w1 w2"]))

    def test_classification_of_pairs_is_refused(self, pairs: Path) -> None:
        with pytest.raises(UserError, match="task=matching"):
            task_of(pairs, "classification", source="labelled_pairs")

    def test_wrong_number_of_class_weights_is_refused(self, texts: Path) -> None:
        with pytest.raises(UserError, match=r"task\.class_weights"):
            task_of(texts, class_weights=[1, 2])

    def test_error_names_the_first_example_that_is_too_long(self, texts: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"task\.truncate=true") as caught:
            trainer(texts, tmp_path / "run", model__max_source_length=8)
        assert "model.max_source_length" in str(caught.value)
        assert "The first is example" in str(caught.value)
        assert not (tmp_path / "run").exists()

    def test_error_names_max_length_of_the_attention(self, texts: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"attention\.max_length"):
            trainer(texts, tmp_path / "run", attention="synthesizer_random", attention__max_length=8)

    def test_numeric_input_of_text_is_refused(self, texts: Path) -> None:
        with pytest.raises(UserError, match=r"model\.input=values"):
            model_of(task_of(texts), input="values")


class TestTruncation:
    def test_run_prints_the_number_of_truncated_examples(self, texts: Path, tmp_path: Path) -> None:
        run = trainer(texts, tmp_path, task__truncate=True, model__max_source_length=6)
        lines = banner(run, run._planned)
        counted = [line for line in lines if line.startswith("Truncated")]
        for split, line in zip(("train", "valid"), counted, strict=True):
            assert str(run.task.dataset(split).truncated) in line

    def test_texts_are_truncated_at_the_end(self, texts: Path) -> None:
        whole, task = task_of(texts).dataset("train"), task_of(texts, truncate=True)
        model_of(task, max_source_length=6)
        cut = task.dataset("train")
        assert cut.sizes_ND.max() == 6
        assert cut.truncated == int((whole.sizes_ND > 6).sum()) > 0
        longest = int(whole.sizes_ND.argmax())
        np.testing.assert_array_equal(cut[longest][1][0], whole[longest][1][0][:6])

    @pytest.mark.parametrize("pool", ["mean", "cls"])
    def test_shorter_layer_is_refused_with_settings_that_work(self, texts: Path, tmp_path: Path, pool: str) -> None:
        """Texts are truncated to `model.max_source_length`, not to the `max_length` of a layer."""
        settings = {"attention": "synthesizer_random", "attention__max_length": 5, "model__max_source_length": 6}
        settings |= {"task__truncate": True, "task__pool": pool}
        with pytest.raises(UserError) as caught:
            trainer(texts, tmp_path / "run", **settings)
        advice = dict(re.findall(r"(attention\.max_length|model\.max_source_length) to (\d+)", str(caught.value)))
        for number, (key, value) in enumerate(advice.items()):
            run = trainer(texts, tmp_path / str(number), **settings | {key.replace(".", "__"): int(value)})
            assert run.train_set.sizes_ND.max() == run.config.model.max_source_length
        assert len(advice) == 2

    def test_validation_set_named_training_hides_no_error(self, texts: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(texts, tmp_path / "texts")
        (folder / "short.txt").write_text("yes\tk0\n")
        settings = {"attention": "synthesizer_random", "attention__max_length": 5, "model__max_source_length": 6}
        settings |= {"task__truncate": True, "task__pool": "mean", "validation__split": "training"}
        with pytest.raises(UserError, match=r"would truncate .* training examples"):
            trainer(folder, tmp_path, **settings, validation__sets=[{"split": "short", "name": "training"}])

    def test_class_vector_counts_toward_max_length(self, texts: Path) -> None:
        task = task_of(texts, pool="cls")
        model = model_of(task, attention={"kind": "synthesizer_random", "max_length": 9})
        assert model.length_limit("source") == 8


class TestWeights:
    def loss(self, task: ClassificationTask, indices: Sequence[int], smoothing: float = 0.0) -> tuple[Any, Any]:
        kind = {"kind": "label_smoothed_cross_entropy", "label_smoothing": smoothing}
        criterion = criterions.build(schema.from_dict(CriterionConfig, kind))
        model, batch = model_of(task), batch_of(task, indices)
        return criterion(model, batch), (model.head.logits(model(batch)[0], pad_BT=batch.pad), batch.target)

    def test_weighted_loss_equals_torch(self, texts: Path) -> None:
        weights = [0.5, 2.0, 1.5]
        loss, (logits_BC, target_B) = self.loss(task_of(texts, class_weights=weights), range(16))
        wanted = torch.nn.functional.cross_entropy(logits_BC, target_B, weight=torch.tensor(weights))
        torch.testing.assert_close(loss.total / loss.weight, wanted)

    def test_class_weights_do_not_change_metrics(self, texts: Path) -> None:
        plain, _ = self.loss(task_of(texts), range(16))
        weighted, _ = self.loss(task_of(texts, class_weights=[0.5, 2.0, 1.5]), range(16))
        for name in ("nll", "correct"):
            torch.testing.assert_close(plain.stats[name], weighted.stats[name])
            assert weighted.stats[name][1] == 16
        assert weighted.stats["loss"][1] == pytest.approx(weighted.weight) != 16

    def test_balanced_weights_give_classes_equal_total_weight(self, texts: Path) -> None:
        task = task_of(texts, class_weights="balanced")
        counts = np.bincount(task.dataset("train").label_N)
        mass = counts * np.array(task.class_weights)
        np.testing.assert_allclose(mass, mass[0])
        assert mass.sum() == pytest.approx(counts.sum())

    def test_micro_batches_have_the_gradient_of_one_batch(self, texts: Path) -> None:
        task = task_of(texts, class_weights=[0.5, 2.0, 1.5])
        criterion = criterions.build(schema.from_dict(CriterionConfig, {"kind": "cross_entropy"}))
        step = TrainStep(model_of(task), criterion)
        gradients = []
        for parts in ([range(8)], [range(4), range(4, 8)]):
            step.zero_grad()
            batches = [batch_of(task, part) for part in parts]
            weight = sum(batch.weight for batch in batches)
            for batch in batches:
                (step(batch)[0] / weight).backward()
            gradients.append([parameter.grad.clone() for parameter in step.parameters() if parameter.grad is not None])
        for whole, split in zip(*gradients, strict=True):
            torch.testing.assert_close(whole, split, atol=1e-6, rtol=1e-4)

    def test_scale_of_class_weights_does_not_change_losses(self, texts: Path, tmp_path: Path) -> None:
        found = []
        for scale in (1.0, 1e-4):
            weights = [0.5 * scale, 2.0 * scale, 1.5 * scale]
            run = trainer(texts, tmp_path / f"{scale}", max_updates=1, validation__every=1, task__class_weights=weights)
            failure = Failure(0, training=True, scale=1.0, ranks=[[(batch_of(run.task, range(8)), None)]])
            repeated = repeat(failure, run.step, run.config, engine=run.engine)[:2]
            run.optimizer.zero_grad()
            run.fit()
            logged = [losses(tmp_path / f"{scale}", kind)[0][1] for kind in ("train", "valid")]
            found.append([*repeated, *logged])
        assert found[0] == pytest.approx(found[1], rel=1e-4)


class TestEvaluation:
    def test_report_scores_equal_scores_of_its_outputs(self, texts: Path) -> None:
        task = task_of(texts)
        report = task.evaluate(model_of(task))
        assert isinstance(report, ClassReport)
        right = [output.output == output.references[0] for output in report.outputs]
        assert report.scores["accuracy"].value == pytest.approx(100 * np.mean(right))
        assert report.confusion_CC.sum() == report.counts["examples"] == 60
        assert np.trace(report.confusion_CC) == sum(right)
        for score in (report.scores[name] for name in ("accuracy", "macro_f1", "ece", "nll")):
            assert score.interval is not None
            assert score.interval[0] < score.interval[1]
        assert [output.index for output in report.outputs] == list(range(60))
        assert report.outputs[0].source == task.open().lines("test", "text")[0]  # type: ignore[index]

    def test_evaluation_does_not_depend_on_batch_size(self, texts: Path) -> None:
        task = task_of(texts)
        model = model_of(task)
        alone, together = (
            task.evaluate(model, batching=BatchingConfig(max_sentences=size)).outputs for size in (1, 60)
        )
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-5)  # type: ignore[attr-defined]

    def test_bfloat16_is_close_to_float32(self, texts: Path) -> None:
        task = task_of(texts, head_dim=16)
        model = model_of(task)
        exact, rough = (task.evaluate(model, bf16=bf16, resamples=0).scores["nll"].value for bf16 in (False, True))
        assert rough == pytest.approx(exact, rel=0.02)
        assert rough != exact


class TestRuns:
    def test_resuming_is_bit_exact(self, texts: Path, tmp_path: Path) -> None:
        settings = {"task__class_weights": "balanced", "task__pool": "cls", "model__dropout": 0.1, "log__every": 1}
        whole, halves = tmp_path / "whole", tmp_path / "halves"
        trainer(texts, whole, max_updates=6, **settings).fit()
        for updates in (3, 6):
            trainer(texts, halves, max_updates=updates, **settings).fit()
        one, other = (model_file.read(folder / "update_00000006").tensors for folder in (whole, halves))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_resuming_with_different_classes_is_refused(self, texts: Path, tmp_path: Path) -> None:
        data, run = shutil.copytree(texts, tmp_path / "texts"), tmp_path / "run"
        trainer(data, run, max_updates=1).fit()
        path, other = data / "train.txt", {"yes": "no", "no": "yes", "both": "both"}
        examples = [line.partition("\t") for line in path.read_text().splitlines()]
        path.write_text("".join(f"{other[name]}\t{text}\n" for name, _, text in examples))
        with pytest.raises(UserError, match="300 examples in both, but different contents"):
            trainer(data, run)

    @pytest.mark.parametrize("max_tokens", ["auto", 400])
    def test_label_smoothing_above_uniform_is_refused(self, texts: Path, tmp_path: Path, max_tokens: Any) -> None:
        smoothed = {"kind": "label_smoothed_cross_entropy", "label_smoothing": 0.7}
        for criterion in (smoothed, {"kind": "sum", "parts": [{"criterion": smoothed, "weight": 1.0}]}):
            with pytest.raises(UserError, match=r"criterion\.label_smoothing=0\.7 (.|\n)*0\.66 or less"):
                trainer(texts, tmp_path, criterion=criterion, batch__max_tokens=max_tokens)

    def test_padding_of_pairs_is_logged(self, pairs: Path, tmp_path: Path) -> None:
        run = trainer(pairs, tmp_path / "run", "matching", max_updates=1, log__every=1)
        (indices,) = run.plan()[0].indices
        assert indices is not None
        batch = run.task.collate([run.train_set[index] for index in indices.tolist()])
        assert isinstance(batch, PairBatch)
        run.fit()
        first = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[0])
        assert first["padding"] == pytest.approx(float((batch.texts == PAD).double().mean()))

    @pytest.mark.parametrize("decode", [False, True])
    def test_samples_are_logged_if_outputs_are_decoded(
        self, texts: Path, tmp_path: Path, decode: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        logged: list[str] = []
        monkeypatch.setattr(Jsonl, "text", lambda sink, name, update, markdown: logged.append(markdown))
        changes = {"max_updates": 1, "validation__every": 1, "log__samples": 2, "validation__decode": decode}
        trainer(texts, tmp_path / "run", **changes).fit()
        assert len(logged) == 2 * decode
        assert not any("**source** \n" in text for text in logged)

    def test_log_has_the_examples_per_update(self, texts: Path, tmp_path: Path) -> None:
        trainer(texts, tmp_path / "run", max_updates=10, log__every=10).fit()
        first = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[0])
        assert first["examples_per_update"] == pytest.approx(30)

    def test_average_of_checkpoints_can_classify(self, texts: Path, tmp_path: Path) -> None:
        save_dir = tmp_path / "run"
        trainer(texts, save_dir, max_updates=4, validation__every=2, task__class_weights="balanced").fit()
        average_command.main([f"checkpoint={save_dir}", "last=2", f"output={save_dir / 'mean.safetensors'}"])
        model = load(save_dir / "mean.safetensors", device="cpu")
        assert set(model.classify(["k0", "k1"])) <= {"yes", "no", "both"}


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
class TestLearning:
    @pytest.mark.parametrize("pool", ["mean", "cls", "max"])
    def test_classifier_learns_to_find_key_words(self, texts: Path, tmp_path: Path, seed: int, pool: str) -> None:
        run = trainer(texts, tmp_path / "run", seed=seed, task__pool=pool, model__encoder__layers=2)
        result = run.fit()
        assert result.best is not None
        assert result.best > 90

    def test_matching_model_learns_to_compare_key_words(self, pairs: Path, tmp_path: Path, seed: int) -> None:
        run = trainer(pairs, tmp_path / "run", "matching", seed=seed, max_updates=250, validation__every=125)
        result = run.fit()
        assert result.best is not None
        assert result.best > 90
