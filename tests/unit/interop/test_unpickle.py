"""Reading a pickled checkpoint never runs code: it returns values or raises a user error."""

import argparse
import collections
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import omegaconf
import pytest
import torch

from seqtk.interop.unpickle import Stub, globals_of, plain, read_checkpoint
from seqtk.utils.errors import UserError

ALARMING = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "shutil.rmtree", "socket.connect")
_listeners: list[list[str]] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    # importing a module raises "exec" too; code from a string has the file name "<string>"
    from_string = event == "exec" and getattr(arguments[0], "co_filename", "<string>") == "<string>"
    for heard in _listeners:
        if event in ALARMING or from_string:
            heard.append(event)


sys.addaudithook(_hear)  # a hook cannot be removed, so it records only during a test that requests it


@pytest.fixture
def alarms() -> Iterator[list[str]]:
    heard: list[str] = []
    _listeners.append(heard)
    yield heard
    _listeners.remove(heard)


class Calls:
    """An object whose pickle calls `function` when it is read, as in a malicious file."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


PAYLOADS = {
    "os.system": (lambda trace: Calls(os.system, f"touch {trace}"), "posix.system"),
    "eval": (lambda trace: Calls(eval, f"open({str(trace)!r}, 'w')"), "builtins.eval"),
    "exec": (lambda trace: Calls(exec, f"open({str(trace)!r}, 'w')"), "builtins.exec"),
    "open": (lambda trace: Calls(open, str(trace), "w"), "io.open"),
    "subprocess": (lambda trace: Calls(__import__("subprocess").Popen, ["touch", str(trace)]), "subprocess.Popen"),
    "getattr": (lambda trace: Calls(getattr, "text", "join"), "builtins.getattr"),
}
WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "zip": lambda value, path: torch.save(value, path),
    "old style": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    "bare pickle": lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2)),
    "bare pickle of protocol 4": lambda value, path: path.write_bytes(pickle.dumps(value, protocol=4)),
}


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("writer", WRITERS)
def test_malicious_file_is_refused_without_running_code(
    tmp_path: Path, alarms: list[str], payload: str, writer: str
) -> None:
    make, name = PAYLOADS[payload]
    trace, path = tmp_path / "trace", tmp_path / "checkpoint.pt"
    WRITERS[writer]({"model": {"weight": torch.ones(2)}, "args": make(trace)}, path)
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    assert not trace.exists()
    assert not alarms
    lines = str(caught.value).splitlines()
    assert len(lines) <= 3
    assert str(path) in lines[0]
    assert name in lines[0]


def test_alarms_fixture_detects_code_execution(tmp_path: Path, alarms: list[str]) -> None:
    os.system(f"touch {tmp_path / 'trace'}")
    exec("pass")
    assert alarms == ["os.system", "exec"]


def test_function_of_numpy_is_replaced_by_a_stub(tmp_path: Path, alarms: list[str]) -> None:
    trace = tmp_path / "trace.npy"
    torch.save({"model": {}, "args": Calls(np.save, str(trace), [1.0])}, tmp_path / "a.pt")
    value = read_checkpoint(tmp_path / "a.pt")["args"]
    assert isinstance(value, Stub)
    assert not trace.exists()
    assert not alarms


@pytest.mark.parametrize("keep", [0, 10, 200, 0.5, 0.99])
@pytest.mark.parametrize("writer", ["zip", "old style"])
def test_truncated_file_is_a_user_error(tmp_path: Path, writer: str, keep: float) -> None:
    path = tmp_path / "checkpoint.pt"
    WRITERS[writer]({"model": {"weight": torch.randn(64, 64)}, "args": argparse.Namespace(arch="transformer")}, path)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    assert str(caught.value).splitlines() == [
        f"{path} is not a torch checkpoint, or it is damaged.",
        "The file may be truncated: copy or download it again.",
    ]


@pytest.mark.parametrize(
    "content",
    [b"S-0\tA text file\n" * 20, b"\0" * 100, b"\x80\x02N.", pickle.dumps([1, 2], protocol=2), bytes(range(256))],
)
def test_files_that_are_not_checkpoints_are_user_errors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_missing_files_and_non_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(tmp_path / "missing.pt")
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(tmp_path)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "text")
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(tmp_path / "other.zip")
    torch.save(torch.ones(2), tmp_path / "tensor.pt")
    with pytest.raises(UserError, match="contains a Tensor"):
        read_checkpoint(tmp_path / "tensor.pt")


@pytest.mark.parametrize("writer", ["zip", "old style"])
def test_tensors_and_settings_are_read(tmp_path: Path, writer: str) -> None:
    weight = torch.randn(3, 4)
    groups = collections.defaultdict(list, {"a": [1]})
    content = {
        "model": collections.OrderedDict(first=weight, second=weight.half(), tied=weight),
        "args": argparse.Namespace(layers=6, betas=(0.9, 0.98), nested=argparse.Namespace(name="x")),
        "best": np.float64(3.5),
        "cfg": omegaconf.OmegaConf.create({"model": {"_name": "transformer", "sizes": [1, 2]}, "none": None}),
        "groups": groups,
        "folder": Path("somewhere"),
    }
    WRITERS[writer](content, tmp_path / "a.pt")
    read = read_checkpoint(tmp_path / "a.pt")
    assert torch.equal(read["model"]["first"], weight)
    assert read["model"]["second"].dtype is torch.float16
    assert plain(read["args"]) == {"layers": 6, "betas": [0.9, 0.98], "nested": {"name": "x"}}
    assert plain(read["cfg"]) == {"model": {"_name": "transformer", "sizes": [1, 2]}, "none": None}
    assert read["groups"] == {"a": [1]}
    assert all(isinstance(read[name], Stub) for name in ("args", "best", "cfg", "folder"))


def test_globals_are_listed_without_running_code(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(1), "b": argparse.Namespace(), "c": Calls(os.system, "true")}, path)
    assert set(globals_of(path)) >= {"argparse.Namespace", "torch._utils._rebuild_tensor_v2", "posix.system"}
