"""Behavior of all commands: help, --cfg job, errors of at most three lines, and exit codes."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, Literal

import pytest

from seqtk.cli.command import command, reporting_errors
from seqtk.config.fields import setting
from seqtk.utils.errors import UserError
from seqtk.utils.text_io import text_output


@dataclass(frozen=True)
class BatchConfig:
    max_tokens: int = setting(4096, at_least=1, help="Tokens in a batch, padding included.")
    max_sentences: int | None = None


@dataclass(frozen=True)
class ToyConfig:
    aliases: ClassVar[dict[str, tuple[str, ...]]] = {"tokens": ("batch.max_tokens",)}

    name: str = setting("toy", help="Name of the run.")
    save_dir: str = "runs"
    user_dir: str | None = None
    length_penalty: float = 1.0
    mix: Literal["sum", "softmax"] = setting("sum", help="How parts are mixed.")
    batch: BatchConfig = BatchConfig()


seen: list[ToyConfig] = []


@command("seqtk-toy", ToyConfig, recipes=True)
def main(config: ToyConfig) -> None:
    """Stores its config.

    For this test only.
    """
    seen.append(config)
    if config.name == "missing":
        raise UserError("The corpus is missing.", "This command makes it:", "make corpus")
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
    """Runs a command that fails, and returns its exit code and its stderr."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    output = capsys.readouterr()
    assert output.out == ""
    return caught.value.code, output.err


def test_arguments_are_passed_as_a_config() -> None:
    main(["name=x", "tokens=7"])
    assert seen == [ToyConfig(name="x", batch=BatchConfig(max_tokens=7))]


def test_arguments_default_to_sys_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["seqtk-toy", "name=y"])
    main()
    assert seen[0].name == "y"


def test_config_class_may_be_given_by_its_name() -> None:
    @command("seqtk-late", f"{__name__}:ToyConfig")
    def late(config: ToyConfig) -> None:
        seen.append(config)

    late([])
    assert seen == [ToyConfig()]


def test_error_in_the_module_of_a_config_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "late_config"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "broken.py").write_text("raise ImportError('no such library')\n")
    monkeypatch.syspath_prepend(tmp_path)

    @command("seqtk-late", "late_config.broken:Config")
    def late(config: ToyConfig) -> None: ...

    with pytest.raises(ImportError, match="no such library"):
        late([])


def test_help_shows_every_key(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    main(["--help", "batch.max_tokens=5"])
    assert not seen
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == ["seqtk-toy: Stores its config.", ""]
    assert {
        "For this test only.",
        "Usage: seqtk-toy [recipe=NAME|FILE.yaml] [key=value ...]",
        "name=toy Name of the run.",
        "mix=sum How parts are mixed. (sum | softmax)",
        "batch.max_tokens=5 Tokens in a batch, padding included.",
        "batch.max_sentences=null",
        "tokens=... An alias of batch.max_tokens",
    } <= set(lines)


def test_output_of_cfg_job_is_an_equivalent_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["name=a, b", "tokens=3", "mix=softmax"]
    main(["--cfg", "job", *arguments])
    assert not seen
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
    main([f"recipe={tmp_path}/again.yaml"])
    main(arguments)
    assert seen[0] == seen[1] == ToyConfig(name="a, b", mix="softmax", batch=BatchConfig(3))


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out.startswith("seqtk-toy 0.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nam=x"], ["'nam'", "'name'"]),
        (["max_token=3"], ["'max_token'", "'batch.max_tokens'"]),
        (["recipe=no/such"], ["no/such"]),
        (["name=missing"], ["corpus is missing", "This command makes it:", "make corpus"]),
        (["recipe=demo", "recipe=mine.yaml"], ["recipe=", "demo, mine.yaml"]),
        (["--cfg", "hydra"], ["--cfg"]),
        (["train.de"], ["'train.de'"]),
        (["~name"], ["~name"]),
        (["name=x", "mix=a,b"], ["mix=a,b", "--multirun"]),
    ],
)
def test_user_errors_have_at_most_three_indented_lines(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    code, error = failure(capsys, *arguments)
    assert code == 2
    found = error.splitlines()
    assert len(found) <= 3
    assert found[0].startswith("seqtk-toy: ")
    assert all(line.startswith(" " * 11) for line in found[1:])
    assert all(word in error for word in words), error


class TestMultirun:
    def test_multirun_runs_each_combination(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        save_dir = f"save_dir={tmp_path}/a=b's, c"
        main([save_dir, "mix=sum,softmax", "tokens=1,2", "batch.max_sentences=3", "--multirun"])
        assert [(run.mix, run.batch.max_tokens, run.batch.max_sentences) for run in seen] == [
            (mix, tokens, 3) for mix in ("sum", "softmax") for tokens in (1, 2)
        ]
        assert seen[1].save_dir == f"{tmp_path}/a=b's, c/mix=sum,tokens=2"
        assert "mix=softmax tokens=2" in capsys.readouterr().err

    def test_unquoted_text_with_commas_has_several_values(self, tmp_path: Path) -> None:
        main(["-m", f"save_dir={tmp_path}", "name=x,y", "user_dir=null"])
        assert [run.name for run in seen] == ["x", "y"]
        seen.clear()
        main(["-m", f"save_dir={tmp_path}", "name='x, y'", "+length_penalty=range(3)"])
        assert [(run.name, run.length_penalty) for run in seen] == [("x, y", 0), ("x, y", 1), ("x, y", 2)]

    def test_multirun_accepts_several_save_dirs(self, tmp_path: Path) -> None:
        main(["-m", f"save_dir={tmp_path}/a,{tmp_path}/b"])
        assert [run.save_dir for run in seen] == [f"{tmp_path}/a", f"{tmp_path}/b"]
        seen.clear()
        main(["-m", f"save_dir={tmp_path}/a,{tmp_path}/b", "mix=sum,softmax"])
        assert len({run.save_dir for run in seen}) == 4

    def test_multirun_accepts_several_recipes(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / f"{name}.yaml").write_text(f"name: {name}\nsave_dir: {tmp_path}/runs\n")
        main(["-m", f"recipe={tmp_path}/a.yaml,{tmp_path}/b.yaml"])
        assert [run.name for run in seen] == ["a", "b"]
        assert len({run.save_dir for run in seen}) == 2

    def test_different_values_have_separate_folders(self, tmp_path: Path) -> None:
        names = [
            "a/b",
            "a_b",
            "a%2Fb",
            "'a,b'",
            "'a, b'",
            "'a'",
            "' a'",
            "'a,tokens=1'",
            "a b",
            "'a\\b'",
            "'é'",
            "'[a]'",
        ]
        main(["-m", f"save_dir={tmp_path}", f"name={','.join(names)}", "tokens=1,2"])
        folders = [Path(run.save_dir).relative_to(tmp_path) for run in seen]
        assert len(seen) == 2 * len(names)
        assert len(set(folders)) == len(seen)
        assert all(len(folder.parts) == 1 for folder in folders)
        assert "name=a%2Fb,tokens=1" in map(str, folders)
        assert "name=a_b,tokens=1" in map(str, folders)

    def test_runs_with_long_values_have_separate_folders(self, tmp_path: Path) -> None:
        names = [300 * "x" + end for end in "yz"]
        main(["-m", f"save_dir={tmp_path}", f"name={','.join(names)}"])
        folders = [Path(run.save_dir).name for run in seen]
        assert folders[0] != folders[1]
        assert all(len(name.encode()) <= 200 for name in folders)

    def test_sweep_with_a_wrong_setting_starts_no_run(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        code, error = failure(capsys, "-m", f"save_dir={tmp_path}/runs", "mix=sum,sofmax")
        assert code == 2
        assert "mix=sofmax" in error
        assert not seen
        assert list(tmp_path.iterdir()) == []

    def test_a_failed_run_does_not_end_the_sweep(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        code, error = failure(capsys, "-m", f"save_dir={tmp_path}", "name=x,missing,y")
        assert code == 2
        assert "make corpus" in error
        assert [run.name for run in seen] == ["x", "missing", "y"]

    def test_ctrl_c_ends_the_sweep(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert failure(capsys, "-m", f"save_dir={tmp_path}", "name=interrupted,y")[0] == 130
        assert [run.name for run in seen] == ["interrupted"]

    @pytest.mark.parametrize(
        ("argument", "word"), [("hydra/launcher=no_such", "no_such"), ("length_penalty=interval(0,1)", "BasicSweeper")]
    )
    def test_hydra_errors_are_printed_as_user_errors(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, argument: str, word: str
    ) -> None:
        code, error = failure(capsys, "-m", f"save_dir={tmp_path}/runs", "name=x,y", argument)
        assert code == 2
        assert word in error
        assert len(error.splitlines()) <= 3

    def test_hydra_launcher_receives_its_settings(self, tmp_path: Path) -> None:
        main(["-m", f"save_dir={tmp_path}", "name=x,y", f"hydra.sweep.dir={tmp_path}/hydra", "hydra/launcher=basic"])
        assert (tmp_path / "hydra" / "multirun.yaml").is_file()

    def test_multirun_without_varied_keys_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, error = failure(capsys, "-m", "name=x")
        assert (code, "--multirun" in error) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--max-tokens", "4096"], "Did you mean: seqtk-toy batch.max_tokens=4096"),
        (["--max-tokens=4096", "name=x"], "Did you mean: seqtk-toy batch.max_tokens=4096 name=x"),
        (["--lenpen", "0.6", "--batch-size", "32"], "seqtk-toy length_penalty=0.6 batch.max_sentences=32"),
        (["--max-token", "4096"], "Did you mean 'batch.max_tokens'?"),
        (["name=x", "--frobnicate"], "--help"),
    ],
)
def test_option_with_dashes_suggests_the_key(
    capsys: pytest.CaptureFixture[str], arguments: list[str], answer: str
) -> None:
    code, error = failure(capsys, *arguments)
    assert code == 2
    assert answer in error
    assert len(error.splitlines()) <= 3


def test_key_of_the_first_argument_may_be_omitted(capsys: pytest.CaptureFixture[str]) -> None:
    """A path as the first argument is taken literally. Every other argument needs a key."""

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
    assert "'runs/a.pt' does not have the form key=value." in capsys.readouterr().err


def test_full_disk_error_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    code, error = failure(capsys, "name=full")
    assert code == 1
    assert error.startswith("seqtk-toy: model.pt: No space left on device\n")
    assert len(error.splitlines()) == 2


def test_ctrl_c_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert failure(capsys, "name=interrupted") == (130, "\nseqtk-toy: interrupted\n")


def test_unexpected_exception_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        main(["name=broken"])


def test_ranks_other_than_0_print_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert failure(capsys, "name=missing") == (2, "seqtk-toy: [rank 3] The corpus is missing.\n")


def test_user_dir_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_plug.py").write_text("LOADED = True\n")
    (tmp_path / "mine.yaml").write_text(f"user_dir: {tmp_path}/toy_plug\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    main([f"recipe={tmp_path}/mine.yaml"])
    assert sys.modules.pop("toy_plug").LOADED
    main([f"user_dir={tmp_path}/toy_plug.py"])
    assert sys.modules.pop("toy_plug").LOADED


def test_user_dir_of_a_recipe_is_interpolated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toy_plug.py").write_text("LOADED = True\n")
    (tmp_path / "mine.yaml").write_text(f"save_dir: {tmp_path}\nuser_dir: ${{save_dir}}/toy_plug\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    main([f"recipe={tmp_path}/mine.yaml"])
    assert sys.modules.pop("toy_plug").LOADED
    (tmp_path / "number.yaml").write_text("user_dir: 3\n")
    code, error = failure(capsys, f"recipe={tmp_path}/number.yaml")
    assert (code, "user_dir=3" in error) == (2, True)


def test_command_without_user_dir_loads_no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that builds nothing from a registry has no user_dir."""

    @command("seqtk-toy", BatchConfig)
    def builds_nothing(config: BatchConfig) -> None: ...

    loaded = []
    monkeypatch.setattr("seqtk.cli.command.load_plugins", loaded.append)
    builds_nothing([])
    assert loaded == []


def test_closed_output_pipe_prints_no_error() -> None:
    program = "from seqtk.cli.recipes import main; main(['--help'])"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run([sys.executable, "-c", program], stdout=closed, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


def test_unknown_recipe_is_refused_before_imports() -> None:
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


def test_successful_command_prints_only_its_output(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting_errors("seqtk-toy"):
        print("done")
    assert capsys.readouterr() == ("done\n", "")


def test_error_is_printed_with_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """The messages of several processes do not mix."""
    written: list[str] = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=written.append))
    with pytest.raises(SystemExit), reporting_errors("seqtk-toy"):
        raise UserError("It fails.", "Do this.")
    assert written == ["seqtk-toy: It fails.\n           Do this.\n"]


def test_argument_error_is_printed_once_per_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert failure(capsys, "nam=x") == (2, "")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert failure(capsys, "nam=x") == (2, "seqtk-toy: [rank 3] There is no key 'nam'.\n")


def test_sigterm_removes_unfinished_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_save_dir_defaults_to_the_recipe_name(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text("name: parent\n")
    (tmp_path / "child.yaml").write_text("defaults: [parent]\ntokens: 5\n")
    for name in ("parent", "child"):
        main([f"recipe={tmp_path}/{name}.yaml"])
        assert (seen[-1].name, seen[-1].save_dir) == ("parent", f"runs/{name}")
    for folder in ("elsewhere", f"{tmp_path}/child", "x" * 5000):
        main([f"recipe={tmp_path}/child.yaml", f"save_dir={folder}"])
        assert seen[-1].save_dir == folder
    main([])
    assert seen[-1].save_dir == "runs"
