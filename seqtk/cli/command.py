"""Runs every command: parses arguments into a typed config, calls the function, and reports errors with exit codes."""

import atexit
import contextlib
import errno
import functools
import gc
import os
import pkgutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import seqtk
from seqtk.cli.recipe_files import find_recipe
from seqtk.config import schema
from seqtk.config.registry import load_plugins
from seqtk.utils.errors import UserError, is_out_of_memory

C = TypeVar("C")

USAGE_ERROR, INTERRUPTED, BROKEN_PIPE, TERMINATED = 2, 130, 141, 143  # exit codes; 128 + n: signal n


def command(
    program: str,
    config_type: type[C] | str,
    *,
    recipes: bool = False,
    first: str | None = None,
    check: Callable[[C, Sequence[str]], None] = lambda config, typed: None,
) -> Callable[[Callable[[C], None]], Callable[..., None]]:
    """Decorator that turns a function of a config into the entry point `main(argv=None)` of a command.

    Args:
        program: The name of the command.
        config_type: The config dataclass, or its name in the form `module:Class`. A name is imported late, so that an
            unknown recipe is reported before torch is imported.
        recipes: True if the command accepts `recipe=` and `--multirun`, and runs in the processes that srun started.
        first: The key that a first argument without a key sets. If this key accepts a list of texts, it is set to the
            list of all arguments without a key at the start of the command line.
        check: A function of the config and of the keys in the arguments. Raises UserError if they are not compatible.

    Raises SystemExit with code 2 for an error that the user can fix, 1 for a system error, 130 for Ctrl-C.
    """

    def decorate(function: Callable[[C], None]) -> Callable[..., None]:
        def read(arguments: list[str]) -> C | None:
            about = function.__doc__ or ""
            with _rank0_errors():
                config = _read(program, config_type, arguments, recipes=recipes, first=first, about=about)
                if config is not None:
                    check(config, [argument.partition("=")[0].lstrip("+~") for argument in arguments])
                return config

        @functools.wraps(function)
        def main(argv: Sequence[str] | None = None, *, subfolder: str = "") -> None:
            with reporting_errors(program):
                if recipes and "SLURM_PROCID" in os.environ:
                    from seqtk.utils.slurm import adopt_slurm

                    adopt_slurm(os.environ)
                if argv is None:  # the process ends after this command
                    # Python would search all objects of torch for cycles at exit, which takes half a second.
                    atexit.register(gc.freeze)
                arguments = list(sys.argv[1:] if argv is None else argv)
                several = [argument for argument in arguments if argument not in ("--multirun", "-m")]
                if recipes and len(several) < len(arguments):
                    from seqtk.cli.sweep import sweep

                    sweep(main, several, lambda job: getattr(read(job), "save_dir", None))
                    return
                config = read(arguments)
                if config is not None and subfolder:
                    config = schema.update(config, "save_dir", f"{config.save_dir}/{subfolder}")  # type: ignore[attr-defined]
                if config is not None:
                    function(config)
                sys.stdout.flush()

        main.__dict__["config_type"] = config_type  # for tests and tables
        return main

    return decorate


def _read(
    program: str,
    config_type: type[C] | str,
    arguments: Sequence[str],
    *,
    recipes: bool,
    first: str | None,
    about: str,
) -> C | None:
    """Returns the config that the arguments specify, or None if they only print something, such as `--help`."""
    if "--version" in arguments:
        print(program, seqtk.__version__)
        return None
    action, rest = _action(arguments)
    several = first is not None and not isinstance(config_type, str) and schema.takes_texts(config_type(), first)
    positional: list[str] = []
    while first and rest and _is_positional(rest[0]) and (several or not positional):
        positional.append(rest.pop(0))
    recipe = [argument for argument in rest if recipes and argument.startswith("recipe=")]
    chosen = [argument.removeprefix("recipe=").strip("'\"") for argument in recipe]
    if len(chosen) > 1:
        raise UserError(
            f"recipe= is set more than once: {', '.join(chosen)}.",
            "Set one recipe. It can list other recipes in its defaults.",
        )
    path = find_recipe(chosen[0]) if chosen else None

    from seqtk.cli import compose  # importing Hydra takes 0.4 s; an unknown recipe is reported before that

    malformed = [
        argument for argument in rest if argument.startswith("-") or not ("=" in argument or argument.startswith("~"))
    ]
    overrides = compose.parse_overrides([argument for argument in rest if argument not in (*recipe, *malformed)])
    groups, overrides = compose.split_groups(overrides, path)
    if first and positional:
        overrides.insert(0, compose.Override(first, positional if several else positional[0], text=""))
    layers = compose.recipe_layers(path, groups) if path is not None or groups else []
    defaults: C = (pkgutil.resolve_name(config_type) if isinstance(config_type, str) else config_type)()
    if path is not None:
        defaults = compose.with_default_save_dir(path, defaults)
    if hasattr(defaults, "user_dir"):  # other commands do not use plug-ins
        load_plugins(compose.text_of("user_dir", layers, overrides))
    if malformed:
        from seqtk.cli.fairseq_options import translate

        raise translate(program, [*positional, *rest], defaults, recipes=recipes)
    config = compose.compose(defaults, layers, overrides)
    if action == "config":
        print(compose.to_yaml(config), end="")
    elif action == "help":
        from seqtk.cli.help import help_text

        print(help_text(program, about, config, recipes=recipes, first=first))
    return config if action == "run" else None


def _is_positional(argument: str) -> bool:
    """Returns True if an argument is a value without a key: it contains no `=`, or is the path of an existing file."""
    return not argument.startswith(("-", "+", "~")) and ("=" not in argument or os.path.lexists(argument[:4096]))


def _action(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the requested action (`run`, `help` or `config`) and the remaining arguments."""
    rest, action = [], "run"
    remaining = iter(arguments)
    for argument in remaining:
        if argument in ("-h", "--help"):
            action = "help"
        elif argument in ("-c", "--cfg", "--cfg=job"):
            if argument != "--cfg=job" and next(remaining, None) != "job":
                raise UserError("The value of --cfg must be 'job'.", "--cfg job prints the whole configuration.")
            action = "config"
        else:
            rest.append(argument)
    return action, rest


@contextlib.contextmanager
def _rank0_errors() -> Iterator[None]:
    """Context manager that reports errors in the arguments once per machine, not once per process."""
    try:
        yield
    except UserError:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            sys.exit(USAGE_ERROR)
        raise


def _interrupt(number: int, _: Any) -> None:
    raise KeyboardInterrupt(number)


@contextlib.contextmanager
def handling_sigterm(handler: Any) -> Iterator[None]:
    """Context manager that sets the handler of SIGTERM. Has no effect outside the main thread.

    Python sets handlers only in the main thread. With `signal.SIG_DFL`, SIGTERM ends the process at once, even inside
    an operator of torch. Use it only for code that writes no files.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_error(program: str, *lines: str) -> None:
    """Prints a message with a single write, so that it does not mix with the messages of other processes."""
    indent = " " * (len(program) + 2)
    sys.stderr.write(f"{program}: " + f"\n{indent}".join(lines) + "\n")


@contextlib.contextmanager
def reporting_errors(program: str) -> Iterator[None]:
    """Context manager that converts user errors, system errors and Ctrl-C into at most three lines and an exit code.

    Under torchrun, the first process prints all lines of the error, and each other process prints one line.
    """
    try:
        with handling_sigterm(_interrupt):  # unfinished files are removed
            yield
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        lines = str(error).splitlines()[:3] if rank == "0" else [f"[rank {rank}] {str(error).splitlines()[0]}"]
        _print_error(program, *lines)
        sys.exit(USAGE_ERROR)
    except KeyboardInterrupt as interrupt:
        if os.environ.get("RANK", "0") == "0":
            print(f"\n{program}: interrupted", file=sys.stderr)
        sys.exit(TERMINATED if interrupt.args == (signal.SIGTERM,) else INTERRUPTED)
    except BrokenPipeError:  # standard output was closed, as by `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _print_error(program, "Out of memory.", "Set smaller sizes.")
        sys.exit(USAGE_ERROR)
    except OSError as error:
        # The user can fix a path that does not exist, or is a file instead of a folder; a full disk is a system error.
        of_user = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | FileExistsError)
        of_user = of_user or error.errno == errno.ENAMETOOLONG
        problem = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        lines = [problem if len(problem) < 400 else f"{problem[:200]}… {error.strerror}"]
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            lines.append("Complete files are kept. Free some space, then run the same command again.")
        _print_error(program, *lines)
        sys.exit(USAGE_ERROR if of_user else 1)
