"""The frame of every command: key=value arguments → a typed config → a function; and how errors reach the user."""

import atexit
import contextlib
import errno
import functools
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import seqtk
from seqtk.cli.recipe_files import find_recipe
from seqtk.config import schema
from seqtk.config.registry import load_plugins
from seqtk.utils.errors import UserError, nearest

C = TypeVar("C")

# At its end Python looks for cycles among all the objects of torch, which takes half a second of an idle machine, and
# many of a busy one, for memory that goes with the process anyway.
atexit.register(gc.freeze)

USAGE_ERROR, INTERRUPTED, BROKEN_PIPE, TERMINATED = 2, 130, 141, 143  # exit codes; all but 2: 128 + a signal's number

FAIRSEQ_NAMES = {
    "arch": "recipe",
    "batch_size": "max_sentences",
    "best_checkpoint_metric": "metric",
    "bpe": "tokenizer",
    "gen_subset": "split",
    "joined_dictionary": "joint",
    "keep_last_epochs": "keep_last",
    "lenpen": "length_penalty",
    "log_interval": "log.every",
    "lr_scheduler": "schedule",
    "max_epoch": "max_epochs",
    "max_len_a": "max_length_a",
    "max_len_b": "max_length_b",
    "max_update": "max_updates",
    "path": "checkpoint",
    "required_batch_size_multiple": "size_multiple",
    "sampling_topk": "top_k",
    "sampling_topp": "top_p",
    "save_interval_updates": "checkpoint.every",
    "source": "source_lang",
    "target": "target_lang",
    "unkpen": "unk_penalty",
    "validate_interval_updates": "validation.every",
}  # fairseq's option → our key, or the end of it, where the names differ


def command(
    program: str, config_type: type[C] | Callable[[], type[C]], *, recipes: bool = False, first: str | None = None
) -> Callable[[Callable[[C], None]], Callable[..., None]]:
    """Make a function of a config the entry point `main(argv=None)` of a command.

    `config_type` is the dataclass, or a function that imports and returns it: what can be checked first (whether the
    recipe exists) is then answered before anything heavy is imported. With `recipes` the command takes `recipe=`.
    `first` is the key that a first argument without one is for.
    Raises SystemExit with 2 for what the user can mend, 1 for what the system refused, 130 for Ctrl-C.
    """

    def decorate(function: Callable[[C], None]) -> Callable[..., None]:
        @functools.wraps(function)
        def main(argv: Sequence[str] | None = None) -> None:
            with reporting_errors(program):
                arguments = list(sys.argv[1:] if argv is None else argv)
                about = function.__doc__ or ""
                with _said_once():
                    config = _read(program, config_type, arguments, recipes=recipes, first=first, about=about)
                if config is not None:
                    function(config)
                sys.stdout.flush()

        return main

    return decorate


def _read(
    program: str,
    config_type: type[C] | Callable[[], type[C]],
    arguments: Sequence[str],
    *,
    recipes: bool,
    first: str | None,
    about: str,
) -> C | None:
    """The config that the arguments ask for, or None where they asked for something to be printed, which is done."""
    if "--version" in arguments:
        print(program, seqtk.__version__)
        return None
    action, rest = _action(arguments)
    if first and rest and not rest[0].startswith(("-", "+", "~")) and "=" not in rest[0]:
        rest[0] = f"{first}={rest[0]}"
    chosen = _values_of("recipe", rest) if recipes else []
    if len(chosen) > 1:
        raise UserError(
            f"recipe= is given more than once: {', '.join(chosen)}.", "A recipe builds on another by its defaults list."
        )
    path = find_recipe(chosen[0]) if chosen else None

    from seqtk.cli import compose  # Hydra takes 0.4 s, for which an unknown recipe need not wait

    written = [argument for argument in rest if not (recipes and argument.startswith("recipe="))]
    flags = [argument for argument in written if argument.startswith("-")]
    layers = compose.recipe_layers(path) if path is not None else []
    overrides = compose.parse_overrides(written) if not flags else []
    defaults = config_type() if isinstance(config_type, type) else config_type()()
    if path is not None:
        defaults = compose.named_after(path, defaults)
    if hasattr(defaults, "user_dir"):  # else it builds nothing that a plug-in could add
        load_plugins(next(reversed(_values_of("user_dir", rest)), None) or compose.value_of("user_dir", layers))
    if flags:
        raise _flags_error(program, rest, defaults, recipes=recipes)
    config = compose.compose(defaults, layers, overrides)
    if action == "config":
        print(compose.to_yaml(config), end="")
    elif action == "help":
        from seqtk.cli.help import help_text

        print(help_text(program, about, config, recipes=recipes, first=first))
    return config if action == "run" else None


def _action(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """What is asked for: `run`, `help` or `config`; and the other arguments."""
    rest, action = [], "run"
    remaining = iter(arguments)
    for argument in remaining:
        if argument in ("-h", "--help"):
            action = "help"
        elif argument in ("-c", "--cfg", "--cfg=job"):
            if argument != "--cfg=job" and next(remaining, None) != "job":
                raise UserError("Write --cfg job: it prints the whole configuration.")
            action = "config"
        else:
            rest.append(argument)
    return action, rest


def _values_of(key: str, arguments: Sequence[str]) -> list[str]:
    """The values of `key` among the arguments, before they are parsed."""
    return [argument.partition("=")[2].strip("'\"") for argument in arguments if argument.startswith(f"{key}=")]


def _flags_error(program: str, arguments: Sequence[str], config: Any, *, recipes: bool) -> UserError:
    """The answer to `--some-option value`: the whole command in our words, or the nearest key."""
    known = [*schema.keys(config), *(["recipe"] if recipes else [])]
    by_leaf = {key.rsplit(".", 1)[-1]: key for key in sorted(known, key=lambda key: -key.count("."))}
    translated, remaining = [], list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("-"):
            translated.append(argument)
            continue
        option, equals, value = argument.partition("=")
        if not equals:
            value = remaining.pop(0) if remaining and not remaining[0].startswith("-") else "true"
        name = option.lstrip("-").replace("-", "_")
        ours = FAIRSEQ_NAMES.get(name, name)
        key = by_leaf.get(name) or by_leaf.get(ours) or (ours if ours in known else None)
        if key is None:
            close = nearest(name, by_leaf)
            return UserError(f"There is no option {option}: settings are written key=value; --help shows them.", close)
        translated.append(f"{key}={value}")
    first = next(argument for argument in arguments if argument.startswith("-"))
    return UserError(
        f"There is no option {first}: settings are written key=value; --help shows them.",
        f"You may mean: {program} {' '.join(translated)}",
    )


@contextlib.contextmanager
def _said_once() -> Iterator[None]:
    """What is wrong with the arguments is so in every process of a machine: the first of them says it."""
    try:
        yield
    except UserError:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            sys.exit(USAGE_ERROR)
        raise


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Within it SIGTERM ends the work as Ctrl-C does, so that what is half written goes."""

    def interrupt(number: int, _: Any) -> None:
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():  # the only one that may say what a signal does
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def reporting_errors(program: str) -> Iterator[None]:
    """Turns what a user can mend, a refusal of the system and Ctrl-C into at most three lines and an exit code.

    Of several processes under torchrun the first says all, the others one line each, so that a failure of one is seen.
    """
    rank = os.environ.get("RANK", "0")
    try:
        with _terminated_as_interrupted():
            yield
    except UserError as error:
        lines = str(error).splitlines() if rank == "0" else [f"[rank {rank}] {str(error).splitlines()[0]}"]
        indent = " " * (len(program) + 2)
        print(f"{program}: " + f"\n{indent}".join(lines), file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except KeyboardInterrupt as interrupt:
        if rank == "0":
            print(f"\n{program}: interrupted", file=sys.stderr)
        sys.exit(TERMINATED if interrupt.args == (signal.SIGTERM,) else INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has left, as `head` does: not an error to speak of
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except OSError as error:
        # A path that leads nowhere, or to a file in place of a folder, is for the user to mend; a full disk is not.
        mendable = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | FileExistsError)
        said = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        print(f"{program}: {said}", file=sys.stderr)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            indent = " " * (len(program) + 2)
            print(
                f"{indent}What was whole is still there. Make room, then run the same command again.", file=sys.stderr
            )
        sys.exit(USAGE_ERROR if mendable else 1)
