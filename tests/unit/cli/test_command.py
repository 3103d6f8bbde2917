"""The frame of a command: help, --cfg job, errors in at most three lines, exit codes."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from seqtk.cli.command import command, reporting_errors
from seqtk.cli.help import field_comments
from seqtk.utils.errors import UserError
from seqtk.utils.text_io import text_output


@dataclass(frozen=True)
class BatchConfig:
    max_tokens: int = 4096  # tokens in a batch,  # padding included
    max_sentences: int | None = None


@dataclass(frozen=True)
class LargeBatchConfig(BatchConfig):
    max_tokens: int = 9999
    langs: tuple[str, ...] = field(
        default=("de", "en"),
    )  # in this order


@dataclass(frozen=True)
class ToyConfig:
    aliases: ClassVar[dict[str, tuple[str, ...]]] = {"tokens": ("batch.max_tokens",)}

    name: str = "toy"  # what the run is called
    save_dir: str = "runs"
    user_dir: str | None = None
    length_penalty: float = 1.0
    mix: Literal["sum", "softmax"] = "sum"  # of the parts
    batch: BatchConfig = BatchConfig()


seen: list[ToyConfig] = []


@command("seqtk-toy", ToyConfig, recipes=True)
def main(config: ToyConfig) -> None:
    """Remembers its config.

    For this test only.
    """
    seen.append(config)
    if config.name == "missing":
        raise UserError("The corpus is not there.", "This command makes it:", "make corpus")
    if config.name == "full":
        raise OSError(28, "No space left on device", "model.pt")
    if config.name == "interrupted":
        raise KeyboardInterrupt
    if config.name == "broken":
        raise ZeroDivisionError


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str]:
    """The exit code and the lines on stderr."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    output = capsys.readouterr()
    assert output.out == ""
    return caught.value.code, output.err


def test_the_function_gets_the_config() -> None:
    main(["name=x", "tokens=7"])
    assert seen == [ToyConfig(name="x", batch=BatchConfig(max_tokens=7))]


def test_the_arguments_are_those_of_the_process_if_none_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["seqtk-toy", "name=y"])
    main()
    assert seen[0].name == "y"


def test_a_config_may_be_loaded_late() -> None:
    @command("seqtk-late", lambda: ToyConfig)
    def late(config: ToyConfig) -> None:
        seen.append(config)

    late([])
    assert seen == [ToyConfig()]


def test_help_shows_every_key_with_its_value_and_comment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    main(["--help", "batch.max_tokens=5"])
    assert not seen
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == ["seqtk-toy: Remembers its config.", ""]
    assert {
        "For this test only.",
        "Usage: seqtk-toy [recipe=NAME|FILE.yaml] [key=value ...]",
        "name=toy what the run is called",
        "mix=sum of the parts (sum | softmax)",
        "batch.max_tokens=5 tokens in a batch, # padding included",
        "batch.max_sentences=null",
        "tokens=... sets batch.max_tokens",
    } <= set(lines)


def test_comments_of_fields_are_inherited_and_may_follow_a_bracket() -> None:
    assert field_comments(LargeBatchConfig) == {
        "max_tokens": "tokens in a batch,  # padding included",
        "langs": "in this order",
    }


def test_cfg_job_prints_a_recipe_for_the_same_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["name=a, b", "tokens=3", "mix=softmax"]
    main(["--cfg", "job", *arguments])
    assert not seen
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
    main([f"recipe={tmp_path}/again.yaml"])
    main(arguments)
    assert seen[0] == seen[1] == ToyConfig(name="a, b", mix="softmax", batch=BatchConfig(3))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out.startswith("seqtk-toy 0.")


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["nam=x"], ["There is no key 'nam'.", "Did you mean 'name'?"]),
        (["max_token=3"], ["There is no key 'max_token'.", "Did you mean 'batch.max_tokens'?"]),
        (["recipe=no/such"], ["There is no recipe at ", "", "A recipe is"]),
        (["name=missing"], ["The corpus is not there.", "This command makes it:", "make corpus"]),
        (
            ["recipe=demo", "recipe=mine.yaml"],
            ["recipe= is given more than once: demo, mine.yaml.", "A recipe builds on another"],
        ),
        (["--cfg", "hydra"], ["Write --cfg job: it prints the whole configuration."]),
        (["train.de"], ["'train.de' is not of the form key=value.", "In a shell, quote"]),
    ],
)
def test_what_the_user_can_mend_is_said_in_lines(
    capsys: pytest.CaptureFixture[str], arguments: list[str], lines: list[str]
) -> None:
    code, error = failure(capsys, *arguments)
    assert code == 2
    found = error.splitlines()
    assert len(found) <= 3
    assert found[0].startswith(f"seqtk-toy: {lines[0]}")
    assert all(line.startswith(" " * 11) for line in found[1:])
    if arguments[0] != "recipe=no/such":
        assert [line[11:][: len(words)] for line, words in zip(found, lines, strict=True)] == lines


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--max-tokens", "4096"], "You may mean: seqtk-toy batch.max_tokens=4096"),
        (["--max-tokens=4096", "name=x"], "You may mean: seqtk-toy batch.max_tokens=4096 name=x"),
        (["--lenpen", "0.6", "--batch-size", "32"], "seqtk-toy length_penalty=0.6 batch.max_sentences=32"),
        (["--arch", "transformer"], "You may mean: seqtk-toy recipe=transformer"),
        (["--max-token", "4096"], "Did you mean 'max_tokens'?"),
        (["name=x", "--fp16"], "Known: "),
    ],
)
def test_options_are_answered_with_our_keys(
    capsys: pytest.CaptureFixture[str], arguments: list[str], answer: str
) -> None:
    code, error = failure(capsys, *arguments)
    assert code == 2
    assert "settings are written key=value" in error
    assert answer in error


def test_a_first_word_may_stand_for_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    """A path is then taken as it is written; only the first argument may lack its key."""

    @command("seqtk-toy", ToyConfig, first="name")
    def takes_a_name(config: ToyConfig) -> None:
        seen.append(config)

    takes_a_name(["runs/best one.pt", "tokens=7"])
    takes_a_name(["name=runs/a.pt"])
    assert [config.name for config in seen] == ["runs/best one.pt", "runs/a.pt"]
    takes_a_name(["--help"])
    assert "Usage: seqtk-toy [NAME] [key=value ...]" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        takes_a_name(["tokens=7", "runs/a.pt"])
    assert "'runs/a.pt' is not of the form key=value." in capsys.readouterr().err


def test_a_full_disk_names_the_file_and_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert failure(capsys, "name=full") == (
        1,
        "seqtk-toy: model.pt: No space left on device\n"
        "           What was whole is still there. Make room, then run the same command again.\n",
    )


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert failure(capsys, "name=interrupted") == (130, "\nseqtk-toy: interrupted\n")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        main(["name=broken"])


def test_of_several_processes_the_first_says_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert failure(capsys, "name=missing") == (2, "seqtk-toy: [rank 3] The corpus is not there.\n")


def test_a_user_dir_is_imported_before_its_names_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_plug.py").write_text("LOADED = True\n")
    (tmp_path / "mine.yaml").write_text(f"user_dir: {tmp_path}/toy_plug\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    main([f"recipe={tmp_path}/mine.yaml"])
    assert sys.modules.pop("toy_plug").LOADED
    main([f"user_dir={tmp_path}/toy_plug.py"])
    assert sys.modules.pop("toy_plug").LOADED


def test_a_command_without_plug_ins_of_its_own_loads_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that build nothing from a registry have no user_dir, and run whatever is installed."""

    @command("seqtk-toy", BatchConfig)
    def builds_nothing(config: BatchConfig) -> None: ...

    def fail(user_dir: str | None = None) -> None:
        raise AssertionError

    monkeypatch.setattr("seqtk.cli.command.load_plugins", fail)
    builds_nothing([])


def test_a_reader_that_leaves_is_no_error() -> None:
    program = "from seqtk.cli.recipes import main; main(['--help'])"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run([sys.executable, "-c", program], stdout=closed, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_unknown_recipe_is_refused_before_anything_heavy_is_imported() -> None:
    program = (
        "import sys\n"
        "from seqtk.cli.command import command\n"
        "def load():\n"
        "    raise AssertionError\n"
        "try:\n"
        "    command('seqtk-toy', load, recipes=True)(print)(['recipe=no_such_recipe'])\n"
        "except SystemExit as done:\n"
        "    assert done.code == 2\n"
        "assert not {'torch', 'hydra', 'omegaconf'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "There is no recipe called 'no_such_recipe'." in done.stderr


def test_nothing_is_said_where_nothing_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting_errors("seqtk-toy"):
        print("done")
    assert capsys.readouterr() == ("done\n", "")


def test_what_is_wrong_with_the_arguments_is_said_once_on_each_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert failure(capsys, "nam=x") == (2, "")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert failure(capsys, "nam=x") == (2, "seqtk-toy: [rank 3] There is no key 'nam'.\n")


def test_sigterm_ends_the_work_as_ctrl_c_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    @command("seqtk-toy", ToyConfig)
    def writes(config: ToyConfig) -> None:
        with text_output(str(tmp_path / "output")) as output:
            output.write("half")
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        writes([])
    assert caught.value.code == 143
    assert capsys.readouterr().err == "\nseqtk-toy: interrupted\n"
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_recipe_that_builds_on_another_has_a_save_dir_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text("name: parent\n")
    (tmp_path / "child.yaml").write_text("defaults: [parent]\ntokens: 5\n")
    for name in ("parent", "child"):
        main([f"recipe={tmp_path}/{name}.yaml"])
        assert (seen[-1].name, seen[-1].save_dir) == ("parent", f"runs/{name}")
    main([f"recipe={tmp_path}/child.yaml", "save_dir=elsewhere"])
    assert seen[-1].save_dir == "elsewhere"
    main([])
    assert seen[-1].save_dir == "runs"
