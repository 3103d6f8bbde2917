"""Lists the files of the library whose code runs while a model trains.

    python tools/path_of_a_batch.py KEY=VALUE…

The arguments are those of seqtk-train. A file is listed if one of its functions is called. Functions that run only
while modules are imported do not count. Prints the number of lines and calls of each file, then the number of files and
the sum of their lines.
"""

import collections
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import seqtk

ROOT = Path(seqtk.__file__).resolve().parent
OPTIMIZED = 0x1  # a flag of the code of functions; the code of modules and class bodies does not have it


def during_import(frame: FrameType) -> bool:
    """Returns True if a module of the library is being imported."""
    caller = frame.f_back
    while caller is not None:
        if caller.f_code.co_name == "<module>" and caller.f_code.co_filename.startswith(str(ROOT)):
            return True
        caller = caller.f_back
    return False


def main() -> None:
    calls: collections.Counter[str] = collections.Counter()

    def count(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_flags & OPTIMIZED or not code.co_filename.startswith(str(ROOT)):
            return
        if code.co_filename in calls or not during_import(frame):
            calls[code.co_filename] += 1

    from seqtk.cli import train

    sys.argv = ["seqtk-train", *sys.argv[1:]]
    threading.setprofile(count)
    sys.setprofile(count)
    try:
        train.main()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.setprofile(None)
    lines = {name: len(Path(name).read_text(encoding="utf-8").splitlines()) for name in sorted(calls)}
    for name, count_of_lines in lines.items():
        print(f"{count_of_lines:5d}  {Path(name).relative_to(ROOT)}  ({calls[name]} calls)")
    print(f"{len(lines)} files, {sum(lines.values()):,} lines")


if __name__ == "__main__":
    main()
