"""Runs the commands and examples of README.md and docs/adding-an-attention.md, at tiny sizes.

The output shown in the README is compared with what the commands print, line by line, ignoring numbers.
"""

import configparser
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.unit.interop.test_fairseq import fairseq_state, save, tiny
from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

TRAIN = (
    "threads=1 device=cpu max_updates=2 log.every=1 log.tensorboard=false validation.every=2 batch.max_tokens=600 "
    "model.dim=16 model.ffn_dim=16 model.encoder.layers=1 model.decoder.layers=1 "
    "validation.search.max_length_a=0 validation.search.max_length_b=3"
)
TRAIN_LANGUAGE_MODEL = (
    "threads=1 device=cpu max_updates=2 log.every=1 log.tensorboard=false validation.every=2 batch.max_tokens=600 "
    "model.dim=16 model.ffn_dim=16 model.layers=1"
)
TRAIN_CLASSIFIER = (
    "threads=1 device=cpu max_updates=2 log.every=1 log.tensorboard=false validation.every=2 batch.max_sentences=8 "
    "model.dim=16 model.ffn_dim=16 model.encoder.layers=1"
)
TINY = {
    "seqtk-train": TRAIN,
    "torchrun": TRAIN,
    "seqtk-preprocess": "vocab_size=300 workers=1",
    "seqtk-prepare": "",
    "seqtk-generate": "beam=2 max_length_a=0 max_length_b=3 device=cpu",
    "seqtk-interactive": "beam=2 max_length_a=0 max_length_b=3 device=cpu",
    "seqtk-eval-lm": "device=cpu",
    "seqtk-evaluate": "device=cpu",
    "seqtk-classify": "device=cpu",
    "seqtk-export": "",
    "seqtk-import": "",
    "seqtk-plot": "",
    "seqtk-inspect": "",
    "seqtk-average": "",
    "seqtk-resize": "",
    "seqtk-score": "",
    "seqtk-recipes": "",
    "seqtk-import-fairseq": "",
}
"""Arguments by program, which are appended to a command so that it takes only seconds."""

TINY_DEMO = "seqtk-prepare demo pairs=300 vocab_size=300"
"""Makes a small version of the corpus that `recipe=demo` reads."""

LEARNT = ("Gestern haben wir eine Frau besucht.",)
"""Lines that only a trained model prints. The tests do not compare them."""


def blocks(language: str, page: str = README) -> Iterator[str]:
    """Yields the code blocks in `language`."""
    yield from re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)


def commands(page: str = README) -> list[str]:
    """Returns all commands of the shell blocks, without comments."""
    lines = "".join(blocks("sh", page)).replace("\\\n", " ").splitlines()
    return [line for line in (line.split(" #")[0].strip() for line in lines) if line and not line.startswith("#")]


def with_output(page: str = README) -> Iterator[tuple[list[str], list[str]]]:
    """Yields the commands of each shell block, and the lines of output in the text block after the shell block."""
    kind_and_text = re.findall(r"^```(sh|text)\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    for (kind, text), (next_kind, shown) in itertools.pairwise([*kind_and_text, ("", "")]):
        if kind == "sh":
            is_output = next_kind == "text" and not shown.startswith("$ ")
            yield commands(f"```sh\n{text}```"), shown.splitlines() if is_output else []


def shape(line: str) -> str:
    """Returns a line of output without numbers, and without the text of a model after a tab."""
    masked = re.sub(r"-?\d[\d,.]*(e[+-]?\d+)?\**", "#", " ".join(line.split("\t")[0].split()))
    return re.sub(r"(\S*#)( \1)+", r"\1", re.sub(r"# (\w+?)s\b", r"# \1", masked))


def first_not_printed(shown: list[str], printed: str) -> str | None:
    """Returns the first line of `shown` that is not printed after the previous line. `…` means omitted text."""
    lines = iter([shape(line) for line in printed.splitlines()])
    for line in shown:
        begins = shape(line.partition("…")[0])
        whole = "…" not in line
        if line not in LEARNT and not any(found == begins if whole else found.startswith(begins) for found in lines):
            return line
    return None


def program(line: str) -> str:
    """Returns the program of the last command of a pipeline."""
    return shlex.split(line.split("|")[-1])[0]


def tiny_arguments(line: str) -> str:
    """Returns arguments with which the command takes only seconds."""
    if "recipe=wikipedia_bytes" in line:
        return TRAIN_LANGUAGE_MODEL
    if "recipe=mini_listops" in line:
        return TRAIN_CLASSIFIER
    if "top_p=" in line:
        return "max_length_b=3 device=cpu"  # sampling has no beam
    if "seqtk-preprocess tokens=" in line:
        return "workers=1"  # only SentencePiece models have vocab_size
    return TINY[program(line)]


def make_target_exists(line: str) -> bool:
    return bool(re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def pip_would_install(line: str) -> bool:
    words = shlex.split(line)
    return words[:4] == ["pip", "install", "-e", "."] and (ROOT / words[words.index("-c") + 1]).is_file()


def test_readme_contains_every_command() -> None:
    shown = {program(line) for line in commands()}
    assert shown - {"make", "pip"} == set(TINY)
    assert shown >= {script.split(" = ")[0] for script in console_scripts()}


@pytest.mark.slow
def test_readme_commands_run(tmp_path: Path) -> None:
    (tmp_path / "fairseq" / "data-bin").mkdir(parents=True)
    model = tiny()
    save(tmp_path / "fairseq" / "checkpoint_best.pt", fairseq_state(model))
    for lang in ("en", "de"):
        (tmp_path / "fairseq" / "data-bin" / f"dict.{lang}.txt").write_text("".join(f"w{i} 1\n" for i in range(12)))
    shell(TINY_DEMO, folder=tmp_path)
    (tmp_path / "text").symlink_to("data-bin/demo/text")
    for lines, shown in with_output():
        printed = ""
        for line in lines:
            if program(line) == "make":
                assert make_target_exists(line), line
            elif program(line) == "pip":
                assert pip_would_install(line), line
            else:
                printed += shell(line if "--cfg" in line else f"{line} {tiny_arguments(line)}", folder=tmp_path)
        if program(lines[0]) != "make":
            assert first_not_printed(shown, printed) is None, printed


@pytest.mark.slow
def test_readme_python_example_runs(tmp_path: Path) -> None:
    shell(f"{TINY_DEMO} destdir=data-bin/mine", folder=tmp_path)
    (example,) = blocks("python")
    settings = {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in TRAIN.split())}
    script = example.replace("max_updates=200, ", f"**{settings}, ").replace("beam=5", "beam=1, max_length_b=3")
    script = re.sub(r"^model\.(.*)$", r"print(model.\1)", script, flags=re.MULTILINE)
    (tmp_path / "example.py").write_text(script, encoding="utf-8")
    assert shell("python example.py", folder=tmp_path)


def test_comparison_of_output_ignores_numbers() -> None:
    printed = "a | loss 3.5 | bleu 0\nMean of 1 checkpoint: update_01\nP-0\t-0.1 -0.2\nwrote x\n"
    assert first_not_printed(["a | loss 1,234 | …", "Mean of 2 checkpoints: update_1, update_2"], printed) is None
    assert first_not_printed(["a | loss 1e-05 | bleu 7", "…", "P-3\t-3.1", "wrote x"], printed) is None
    for stale in ("a | nll 3.5 | …", "a | loss 3.5", "wrote y"):
        assert first_not_printed([stale], printed) == stale
    assert first_not_printed(["wrote x", "P-0\t-0.1"], printed) == "P-0\t-0.1"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adding-an-attention"])
def test_examples_of_adding_an_attention_run(name: str, tmp_path: Path) -> None:
    """Writes the page's Python blocks into the files named in their first lines, and runs the page's commands."""
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for source in blocks("python", page):
        path = tmp_path / source.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(source, encoding="utf-8")
    for line in commands(page):
        if "pytest" in line:
            printed = shell(f"PYTHONPATH=mine:{ROOT} python -m pytest -q {line.split()[-1]}", folder=tmp_path)
            assert " passed" in printed
        else:
            assert shell(f"{line} {TINY[program(line)]}", folder=tmp_path)


def shell(line: str, *, folder: Path, code: int = 0) -> str:
    """Returns the output of a shell command in `folder`. Asserts that its exit code is `code`."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    command = ["bash", "-o", "pipefail", "-c", line]
    ran = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
    )
    assert ran.returncode == code, f"{line}\n{ran.stdout[-4000:]}"
    return ran.stdout


def console_scripts() -> list[str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup["options.entry_points"]["console_scripts"].strip().splitlines()


def test_error_messages_in_the_readme_are_current(tmp_path: Path) -> None:
    """A text block that starts with `$ command` must contain the error that the command prints."""
    refusals = [block.splitlines() for block in blocks("text") if block.startswith("$ ")]
    assert refusals
    for asked, *answer in refusals:
        assert shell(asked.removeprefix("$ "), folder=tmp_path, code=2).splitlines() == answer


def test_links_in_documentation_lead_to_files() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)#\s]+)", prose):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
