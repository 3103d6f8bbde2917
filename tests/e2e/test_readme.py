"""What README.md and the pages on extending show is run at a tiny size; the README's table is what is registered."""

import configparser
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from seqtk.cli.recipe_files import recipe_names
from seqtk.registry import REGISTRIES
from seqtk.tasks.demo import DemoTask  # importing a task imports all that registers anything but optimizers
from seqtk.training.trainer import Trainer
from tests.unit.interop.test_fairseq import fairseq_state, save, tiny

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

TRAIN = (
    "threads=1 device=cpu max_updates=2 log.every=1 log.tensorboard=false validation.every=2 batch.max_tokens=600 "
    "model.dim=16 model.ffn_dim=16 model.encoder.layers=1 model.decoder.layers=1 task.pairs=300 task.vocab_size=300 "
    "validation.search.max_length_a=0 validation.search.max_length_b=3"
)
TRAIN_LANGUAGE_MODEL = (
    "threads=1 device=cpu max_updates=2 log.every=1 log.tensorboard=false validation.every=2 batch.max_tokens=600 "
    "model.dim=16 model.ffn_dim=16 model.layers=1"
)
TINY = {
    "seqtk-train": TRAIN,
    "torchrun": TRAIN,
    "seqtk-preprocess": "vocab_size=300 workers=1",
    "seqtk-prepare": "",
    "seqtk-generate": "beam=2 max_length_a=0 max_length_b=3 device=cpu",
    "seqtk-interactive": "beam=2 max_length_a=0 max_length_b=3 device=cpu",
    "seqtk-eval-lm": "device=cpu",
    "seqtk-average": "",
    "seqtk-resize": "",
    "seqtk-score": "",
    "seqtk-recipes": "",
    "seqtk-import-fairseq": "",
}
"""Program → what is appended to its line, so that it ends in seconds."""


def blocks(language: str, page: str = README) -> Iterator[str]:
    """The text of the code blocks in `language`."""
    yield from re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)


def commands(page: str = README) -> list[str]:
    """Every command line of the shell blocks, without comments."""
    lines = "".join(blocks("sh", page)).replace("\\\n", " ").splitlines()
    return [line for line in (line.split(" #")[0].strip() for line in lines) if line and not line.startswith("#")]


def program(line: str) -> str:
    """What the last command of a pipeline is called."""
    return shlex.split(line.split("|")[-1])[0]


def made_tiny(line: str) -> str:
    """What makes the line end in seconds."""
    return TRAIN_LANGUAGE_MODEL if "recipe=wikipedia_bytes" in line else TINY[program(line)]


def make_target_exists(line: str) -> bool:
    return bool(re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def pip_would_install(line: str) -> bool:
    words = shlex.split(line)
    return words[:4] == ["pip", "install", "-e", "."] and (ROOT / words[words.index("-c") + 1]).is_file()


def test_the_readme_shows_every_command_and_none_that_is_not_tested() -> None:
    shown = {program(line) for line in commands()}
    assert shown - {"make", "pip"} == set(TINY)
    assert shown >= {script.split(" = ")[0] for script in console_scripts()}


@pytest.mark.slow
def test_every_command_of_the_readme_runs(tmp_path: Path) -> None:
    (tmp_path / "fairseq" / "data-bin").mkdir(parents=True)
    model = tiny()
    save(tmp_path / "fairseq" / "checkpoint_best.pt", fairseq_state(model))
    for lang in ("en", "de"):
        (tmp_path / "fairseq" / "data-bin" / f"dict.{lang}.txt").write_text("".join(f"w{i} 1\n" for i in range(12)))
    for line in commands():
        if program(line) == "make":
            assert make_target_exists(line), line
        elif program(line) == "pip":
            assert pip_would_install(line), line
        else:
            shell(line if "--cfg" in line else f"{line} {made_tiny(line)}", folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adding-an-attention", "adding-a-task"])
def test_what_a_page_adds_works(name: str, tmp_path: Path) -> None:
    """Its files are written and its commands run; a file's path is in its first line."""
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for source in blocks("python", page):
        path = tmp_path / source.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(source, encoding="utf-8")
    for line in commands(page):
        if "pytest" in line:
            shell(f"PYTHONPATH=mine:{ROOT} python -m pytest -q {line.split()[-1]}", folder=tmp_path)
        else:
            tiny_train = TRAIN if "recipe=demo" in line else TRAIN.split("task.pairs")[0]
            shell(f"{line} {tiny_train if program(line) == 'seqtk-train' else TINY[program(line)]}", folder=tmp_path)


def shell(line: str, *, folder: Path) -> None:
    """Run one line as a user would in `folder`; it must succeed."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    command = ["bash", "-o", "pipefail", "-c", line]
    ran = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, timeout=120)
    assert ran.returncode == 0, f"{line}\n{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"


def console_scripts() -> list[str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup["options.entry_points"]["console_scripts"].strip().splitlines()


def test_the_table_is_what_is_there() -> None:
    assert DemoTask
    assert Trainer
    rows: dict[str, set[str]] = {}
    for kind, names in re.findall(r"^\| (\w+) \| (.*) \|$", README, flags=re.MULTILINE):
        rows.setdefault(kind, set()).update(re.findall(r"`([\w-]+)`", names))
    # Other tests register layers of their own in this process.
    there = {
        kind: {
            name for name in registry if registry.class_of(registry.config_type(name)).__module__.startswith("seqtk.")
        }
        for kind, registry in REGISTRIES.items()
        if registry.config_base.__module__.startswith("seqtk.")
    }
    there["recipe"] = set(recipe_names())
    there["command"] = {script.split(" = ")[0] for script in console_scripts()}
    assert {kind: names for kind, names in rows.items() if kind != "kind"} == there


def test_what_a_text_block_shows_was_asked_for() -> None:
    """Outputs stand in blocks of text, and commands in them after a `$`."""
    asked = [line for block in blocks("text") for line in block.splitlines() if line.startswith("$ ")]
    assert all(program(line.removeprefix("$ ")) in TINY for line in asked)


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)#\s]+)", prose):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
