"""`--multirun`: runs a command once for each combination of values, with Hydra's sweepers and launchers."""

import functools
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from seqtk.cli.compose import quoted
from seqtk.cli.recipe_files import recipe_folder
from seqtk.utils.errors import UserError

Command = Callable[..., None]
"""The function `main(arguments, *, subfolder)` of a command."""


def sweep(main: Command, arguments: Sequence[str], save_dir: Callable[[list[str]], str | None]) -> None:
    """Runs `main` for each combination of the values in `arguments`. Each run has a separate folder in save_dir.

    `hydra/…` and `hydra.…` arguments choose and configure the sweeper and the launcher. Hydra's default
    sweeper and launcher check all combinations before the first run, and run them one by one in this process.

    Args:
        main: The command. An exit code of 128 or more ends the sweep.
        arguments: The arguments without `--multirun`.
        save_dir: A function of the arguments of a run, which returns its save_dir or raises UserError.
    """
    ours = [argument for argument in arguments if not argument.startswith(("hydra/", "hydra."))]
    hydra = [argument for argument in arguments if argument not in ours]
    parser = OverridesParser.create()
    parsed = {argument: _parse(parser, argument) for argument in ours}
    varied = [override for override in parsed.values() if override]
    fixed = [argument for argument, override in parsed.items() if not override]
    if not varied:
        raise UserError("--multirun requires a key with several values.", "For example: attention=softmax,linear")
    folder = None
    if not any(argument.startswith("hydra/sweeper") for argument in hydra):
        try:
            [jobs] = BasicSweeper.split_arguments(varied, None)
        except HydraException as error:
            raise UserError(f"--multirun: {str(error).splitlines()[0]}") from None
        folder = next(iter([save_dir([*fixed, *job]) for job in jobs]))
    settings = [
        "hydra/hydra_logging=disabled",
        "hydra/job_logging=disabled",
        "hydra.output_subdir=null",
        "hydra.sweep.subdir=.",
        *([f"hydra.sweep.dir={quoted(folder)}"] if folder else []),
        *hydra,
    ]
    task = functools.partial(_job, main, fixed)
    try:
        with initialize_config_dir(str(recipe_folder()), version_base="1.3"):
            results = GlobalHydra.instance().hydra.multirun(  # type: ignore[union-attr]
                config_name=None,
                task_function=task,
                overrides=[*settings, *(f"++{override.input_line}" for override in varied)],
            )
    except HydraException as error:
        raise UserError(f"--multirun: {' '.join(str(error).split())[:400]}") from None
    codes = [job.return_value for batch in results or [] for job in batch]
    if any(codes):
        sys.exit(next(code for code in codes if code))


def _parse(parser: OverridesParser, argument: str) -> Override | None:
    """Returns the parsed argument if it has several values, otherwise None."""
    try:
        parsed = parser.parse_override(argument.lstrip("+"))
    except (HydraException, ValueError):
        return None
    return parsed if parsed.is_sweep_override() else None


def _job(main: Command, fixed: Sequence[str], _: Any) -> int:
    """Executes one run of the sweep, in a process that the launcher chooses. Returns its exit code."""
    varied = [override.removeprefix("++") for override in HydraConfig.get().overrides.task]
    named = [override for override in varied if not override.startswith("save_dir=")]
    name = _folder_name(",".join(named))
    print(f"{' '.join(varied)}", file=sys.stderr, flush=True)
    GlobalHydra.instance().clear()  # the run uses a separate Hydra instance
    try:
        main([*fixed, *varied], subfolder=name)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
        if code >= 128:  # interrupted, so the sweep also ends
            raise
        return code
    return 0


def _folder_name(settings: str) -> str:
    """Returns a name for the run of `settings`, of at most 200 bytes. Different settings have different names.

    A slash is replaced by its code, `%2F`, as in URLs. The end of a longer name is replaced by its checksum.
    """
    name = settings.replace("%", "%25").replace("/", "%2F")
    if len(name.encode()) <= 200:
        return name
    return f"{name.encode()[:190].decode(errors='ignore')}-{zlib.crc32(name.encode()):08x}"
