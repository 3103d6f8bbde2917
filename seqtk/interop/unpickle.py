"""Reads a torch checkpoint from an untrusted source, without running any code in it.

torch's weights-only reader reads the file. It builds tensors and plain containers, and calls nothing else.
Checkpoints also contain settings, as objects of libraries that may not be installed. Objects of a few known libraries
are replaced by stubs, which only store their arguments. A file that refers to anything else is refused.
"""

import _compat_pickle
import io
import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from seqtk.utils.errors import UserError

STUBBED_MODULES = ("argparse", "fairseq", "hydra", "numpy", "omegaconf", "pathlib", "typing")
"""Packages whose classes appear in fairseq checkpoints. Stubs replace the classes; nothing is imported or called."""

STUBBED_TYPES = ("bool", "dict", "float", "int", "list", "object", "str", "tuple")
"""Built-in types to which omegaconf refers: the types of its values."""

ORDINARY = ("torch", "collections", "_codecs", "builtins.set", "builtins.bytearray")
"""Packages and types of tensors and containers. torch's reader decides which of their classes are safe."""


class Stub:
    """Replaces an object of another library. It only stores the object's arguments and state."""

    name = ""
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> "Stub":
        stub = object.__new__(cls)
        stub.arguments, stub.state = arguments, None
        return stub

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"<{self.name}>"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Returns the dictionary in a torch checkpoint, with tensors on the CPU and settings as plain trees (see `plain`).

    Raises UserError if the file is not a checkpoint, or refers to a class or function that is refused.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint={path} does not exist.")
    names = globals_of(path)
    stubs = [(_stub(name), name) for name in names if _is_stubbed(name)]
    known = torch.serialization.safe_globals([*stubs, (_plain_dict, "collections.defaultdict")])
    try:
        with known, warnings.catch_warnings(action="ignore"):  # torch warns about pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # a malformed file can raise any exception
        raise _refusal(path, names) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} contains a {type(content).__name__}, not a checkpoint.")
    return content


def plain(value: Any) -> Any:
    """Returns `value` with every stub replaced by its attributes, as a dict, or by the value that it wraps."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if not isinstance(value, Stub):
        return value
    state = value.state
    if isinstance(state, dict):
        # omegaconf stores the nodes of a container in _content, and the value of a node in _val
        return plain(state.get("_content", state.get("_val", state)))
    return plain(value.arguments[0]) if len(value.arguments) == 1 else value  # one argument: an enum's value


def globals_of(path: Path) -> list[str]:
    """Returns every class and function that the file's pickles refer to, as `module.name`, without running them."""
    names: dict[str, None] = {}
    try:
        for stream in _pickles(path):
            names.update(dict.fromkeys(_globals_in(stream)))
    except (ValueError, EOFError, IndexError, KeyError, zipfile.BadZipFile):
        pass  # torch's reader raises an error for a malformed file
    return list(names)


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    """Yields the pickles in a file: .pkl files of a zip archive, or the pickles at the start of an old-style file."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member.endswith(".pkl"):
                    yield io.BytesIO(archive.read(member))
        return
    with path.open("rb") as file:
        for _ in range(5):  # magic number, protocol, system, the object, the storages' keys
            yield file


def _globals_in(stream: IO[bytes]) -> Iterator[str]:
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            yield _python3_name(*str(argument).split(" ", 1))
        elif opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
            yield _python3_name(*strings[-2:])
        elif isinstance(argument, str):
            strings = [*strings[-1:], argument]


def _python3_name(module: str, name: str) -> str:
    """Returns `module.name` under its Python 3 name. Pickle protocol 2, which torch writes, uses Python 2 names."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        module, name = _compat_pickle.NAME_MAPPING[module, name]
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def _is_stubbed(name: str) -> bool:
    package, _, rest = name.partition(".")
    return package in STUBBED_MODULES or (package == "builtins" and rest in STUBBED_TYPES)


def _stub(name: str) -> type[Stub]:
    return type(name.rpartition(".")[2], (Stub,), {"name": name})


def _plain_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _refusal(path: Path, names: list[str]) -> UserError:
    foreign = [
        name for name in names if not _is_stubbed(name) and name not in ORDINARY and name.split(".")[0] not in ORDINARY
    ]
    if foreign:
        return UserError(
            f"{path} was refused: it refers to {', '.join(foreign[:3])}, which no checkpoint of fairseq needs.",
            "Nothing was executed. If you trust the file, save its 'model' and its 'cfg' or 'args' to a new file.",
        )
    return UserError(
        f"{path} is not a torch checkpoint, or it is damaged.",
        "The file may be truncated: copy or download it again.",
    )
