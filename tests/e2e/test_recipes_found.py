"""The recipes of seqtk are valid, train two updates, and are found in a checkout and in an installed package."""

import functools
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from seqtk.cli import compose, recipes
from seqtk.cli.recipe_files import find_recipe, recipe_names
from seqtk.config import schema
from seqtk.corpora.demo import write_corpus
from seqtk.data.indexed_writer import IndexedWriter
from seqtk.data.preprocess import PreprocessConfig, preprocess
from seqtk.data.vocabulary import EOS, Vocabulary
from seqtk.tasks.classification import ClassificationConfig, MatchingConfig
from seqtk.tasks.language_modeling import LanguageModelingConfig
from seqtk.tasks.masked_lm import MaskedLMConfig
from seqtk.training.config import TrainConfig
from seqtk.training.trainer import train
from seqtk.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = {
    *("demo", "multi30k_base", "multi30k_synth", "wmt14_base", "wmt14_synth"),
    *("enwik8_base", "enwik8_synth", "enwik8_xl", "ptb_word", "shakespeare_chars", "wikipedia_bytes"),
    *("wikitext103_adaptive", "wikitext103_base", "wikitext103_synth"),
    *(f"lra_{task}_{protocol}" for task in ("listops", "text", "image") for protocol in ("tay", "small", "s4")),
    *("imdb", "ag_news", "mlm_imdb", "mlm_ag_news", "mlm_wikitext"),
    *("mini_listops", "mini_text", "mini_image", "mini_pathfinder"),
}
LABELLED = {"classification": ("",), "matching": (".first", ".second")}
"""The suffixes of the files of each text in a data-bin, by task."""
HEADINGS = ("# Data ", "# Score ", "# Time ", "# Hardware ")


def composed(name: str, *arguments: str) -> TrainConfig:
    defaults = compose.with_default_save_dir(find_recipe(name), TrainConfig())
    return compose.compose(defaults, layers_of(name), compose.parse_overrides(arguments))


@functools.cache
def layers_of(name: str) -> list[compose.Layer]:
    return compose.recipe_layers(find_recipe(name))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Returns small data-bins by name: sentence pairs, text in bytes for language models, and labeled data."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, train=60, valid=4, test=4)
    pairs = PreprocessConfig(
        source_lang="en",
        target_lang="de",
        train=str(folder / "train"),
        valid=(str(folder / "valid"),),
        test=(str(folder / "test"),),
        destdir=str(folder / "pairs"),
        vocab_size=200,
        workers=1,
    )
    preprocess(pairs)
    monolingual = replace(pairs, target_lang=None, tokens="bytes", vocab_size=PreprocessConfig.vocab_size)
    preprocess(replace(monolingual, destdir=str(folder / "text")))
    labelled = {name: write_labelled(folder / name, sides=sides) for name, sides in LABELLED.items()}
    return {"pairs": folder / "pairs", "text": folder / "text", **labelled}


def write_labelled(folder: Path, *, sides: tuple[str, ...]) -> Path:
    """Writes a labeled data-bin of random pixels, with one or two images for each example."""
    random = np.random.default_rng(1)
    folder.mkdir()
    (folder / "classes.txt").write_text("no\nyes\n")
    for side in sides:
        Vocabulary([str(pixel) for pixel in range(256)]).save(folder / f"dict{side}.txt")
        for split in ("train", "valid", "test"):
            np.save(folder / f"{split}.labels.npy", np.arange(12, dtype=np.int32) % 2)
            name = f"{split}.first-second{side}" if side else split
            with IndexedWriter(folder / name, vocabulary_size=260) as writer:
                for size in random.integers(5, 20, 12):
                    writer.append([*random.integers(4, 260, size), EOS])
    return folder


def test_documented_recipes_exist() -> None:
    assert set(recipe_names()) >= SHIPPED


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_has_its_headings_and_is_valid(name: str) -> None:
    lines = find_recipe(name).read_text(encoding="utf-8").splitlines()
    assert len(recipes.summary(find_recipe(name))) > 20
    for heading in HEADINGS:
        assert any(line.startswith(heading) for line in lines), f"{name} does not state its {heading.strip('# ')}"
    config = composed(name)
    assert config.save_dir == f"checkpoints/{name}"
    assert config.task.made_by
    assert schema.from_dict(TrainConfig, schema.to_dict(config)) == config
    again = yaml.safe_load(compose.to_yaml(config))
    assert again["save_dir"] == config.save_dir


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_overrides_a_value_of_its_parents(name: str) -> None:
    """Each file of the defaults list changes a value of the files before it."""
    layers = layers_of(name)
    for shorter, longer in zip(range(len(layers)), range(1, len(layers) + 1), strict=True):
        before = compose.compose(TrainConfig(), layers[:shorter], [])
        assert compose.compose(TrainConfig(), layers[:longer], []) != before


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_trains_two_updates(name: str, corpora: dict[str, Path], tmp_path: Path) -> None:
    small = ["model.dim=32", "model.ffn_dim=32", "max_updates=2", "threads=1"]
    small += ["batch.max_tokens=200", "update_freq=1", "batch.tokens_per_update=null"]
    corpus = corpora["pairs"]
    if isinstance(composed(name).task, ClassificationConfig):
        corpus = corpora["matching" if isinstance(composed(name).task, MatchingConfig) else "classification"]
        small += ["model.encoder.layers=2", "batch.max_sentences=4"]
    if isinstance(composed(name).task, LanguageModelingConfig):
        corpus = corpora["text"]
        layers = "model.encoder.layers" if isinstance(composed(name).task, MaskedLMConfig) else "model.layers"
        small += ["task.tokens_per_sample=50", f"{layers}=2"]
        if composed(name).batch.streams:
            small += ["batch.streams=7"]  # of 42 samples
        if getattr(composed(name).model, "adaptive", None):
            small += ["model.adaptive.cutoffs=[40,100]"]  # of 260 tokens
    config = composed(
        name, *small, f"task.data={corpus}", f"save_dir={tmp_path}", "device=cpu", "validation.every=2", "log.every=1"
    )
    assert train(replace(config, log=replace(config.log, tensorboard=False))).signal == 0


def test_arguments_override_recipe_settings() -> None:
    config = composed(
        "wmt14_synth",
        "attention=synthesizer_dense",
        "attention.max_length=128",
        "model.dim=256",
        "model.encoder.self_attention=[softmax,softmax,synthesizer_random]",
    )
    tree = schema.to_dict(config)["model"]
    assert tree["dim"] == 256
    assert [layer["kind"] for layer in tree["encoder"]["self_attention"]] == [
        "softmax",
        "softmax",
        "synthesizer_random",
    ]
    assert tree["decoder"]["self_attention"] == [{**tree["decoder"]["self_attention"][0], "max_length": 128}]
    assert tree["decoder"]["self_attention"][0]["kind"] == "synthesizer_dense"
    assert tree["decoder"]["cross_attention"][0]["kind"] == "softmax"


def test_user_recipe_extends_shipped_and_local_recipes(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text("max_updates: 7\n")
    (tmp_path / "mine.yaml").write_text("defaults: [wmt14_synth, short, _self_]\nseed: 3\n")
    config = composed(str(tmp_path / "mine"))
    assert config == replace(composed("wmt14_synth"), max_updates=7, seed=3, save_dir="checkpoints/mine")


def test_copied_recipe_equals_the_shipped_recipe(tmp_path: Path) -> None:
    assert recipes.run(["cp", "wmt14_synth", str(tmp_path)]) == f"{tmp_path}/wmt14_synth.yaml\n"
    assert composed(str(tmp_path / "wmt14_synth.yaml")) == composed("wmt14_synth")


def test_recipes_are_listed_shown_and_copied(tmp_path: Path) -> None:
    listed = recipes.run(["ls"]).splitlines()
    assert [line.split()[0] for line in listed] == recipe_names()
    assert "Synthesizer" in next(line for line in listed if line.startswith("wmt14_synth"))
    assert recipes.run(["show", "demo"]) == (ROOT / "recipes" / "demo.yaml").read_text(encoding="utf-8")
    (tmp_path / "latin1.yaml").write_bytes(b"# caf\xe9\n")
    assert recipes.run(["show", str(tmp_path / "latin1.yaml")]) == "# caf\N{REPLACEMENT CHARACTER}\n"
    recipes.run(["cp", "demo", str(tmp_path / "new" / "folder")])
    assert (tmp_path / "new" / "folder" / "demo.yaml").read_bytes() == (ROOT / "recipes" / "demo.yaml").read_bytes()
    assert recipes.run([]) == recipes.run(["--help"]) == recipes.USAGE
    assert recipes.run(["--version"]).startswith("seqtk-recipes 0.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "demmo"], "Did you mean 'demo'?"),
        (["show"], "Usage: seqtk-recipes show NAME"),
        (["cp", "demo"], "Usage: seqtk-recipes cp NAME FOLDER"),
        (["show", "."], "There is no recipe called '.'."),
        (["show", ""], "There is no recipe called ''."),
        (["show", "my/kid.yml"], "Rename it to kid.yaml."),
        (["ls", "foo"], "Usage: seqtk-recipes ls"),
        (["lss"], "Did you mean 'ls'?"),
        (["cp", "demo", str(ROOT / "recipes")], "already exists"),
        (["show", "no/such.yaml"], "There is no recipe at"),
    ],
)
def test_bad_arguments_of_seqtk_recipes_are_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        recipes.run(arguments)
    assert words in str(caught.value)


def listed_by(python_path: Path, cwd: Path) -> set[str]:
    """Returns the recipes that a new process lists. The process imports seqtk from `python_path`."""
    environment = {**os.environ, "PYTHONPATH": str(python_path), "PYTHONDONTWRITEBYTECODE": "1"}
    program = (
        "import seqtk, sys; from seqtk.cli.recipes import main;"
        f"assert seqtk.__file__.startswith({str(python_path)!r}), seqtk.__file__; main(['ls'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, env=environment, capture_output=True, text=True, check=True
    )
    return {line.split()[0] for line in done.stdout.splitlines()}


def test_recipes_are_found_in_a_checkout(tmp_path: Path) -> None:
    assert listed_by(ROOT, tmp_path) >= SHIPPED


@pytest.mark.slow
def test_recipes_are_found_in_an_installed_wheel(tmp_path: Path) -> None:
    """pip builds the wheel in a separate environment, from the files that git tracks."""
    source, target = tmp_path / "source", tmp_path / "target"
    tracked = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(tracked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(source)], check=True, cwd=tmp_path)
    wheel = next(tmp_path.glob("*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    assert not (target / "seqtk" / "conf" / "recipe").is_symlink()
    assert listed_by(target, tmp_path) >= SHIPPED
    subprocess.run(
        [sys.executable, "-m", "seqtk.cli.train", "recipe=wmt14_synth", "--cfg", "job"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(target)}, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
