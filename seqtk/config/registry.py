"""Registries. A registry maps a name to a config dataclass and to the class that it configures.

The *type* of a config selects the class. Importing a module registers the classes in it. A plug-in is a module
that uses `Registry.register`. seqtk imports it if an installed package lists it as an entry point of the group
`seqtk.plugins`, or if the setting `user_dir` is its path.
"""

import dataclasses
import importlib
import importlib.metadata
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from seqtk.config.fields import check
from seqtk.utils.errors import UserError
from seqtk.utils.suggestions import nearest

T = TypeVar("T")
C = TypeVar("C", bound=type)

REGISTRIES: dict[str, "Registry[Any]"] = {}


class Registry(Generic[T]):
    """The classes of one kind (`attention`, `task`, …), each with a unique name and config type.

    Args:
        kind: The noun for a registered class in errors, such as "attention".
        config_base: The base class of all configs in the registry. A dataclass field of that type is a slot.
        renamed: Old name of a class → new name. An old name is accepted only in files of an earlier version.
        replaced: Old method or attribute of the classes, which is not used any more → the members that replace it. A
            class that still has the old member is refused, because its code would be ignored.
    """

    def __init__(
        self,
        kind: str,
        config_base: type,
        *,
        renamed: Mapping[str, str] | None = None,
        replaced: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.renamed, self.replaced = dict(renamed or {}), dict(replaced or {})
        self.config_base = config_base
        self._config_types: dict[str, type] = {}
        self._classes: dict[type, type[T]] = {}
        REGISTRIES[kind] = self

    def register(self, name: str, config_type: type) -> Callable[[C], C]:
        """Class decorator: registers the class under `name`, with its config class.

        Raises:
            ValueError: The name or the config class is already registered.
            TypeError: The config class is not a dataclass that extends `config_base`, or a field has no default.
            UserError: The class has a member that was replaced.
        """
        if name in self._config_types:
            raise ValueError(f"{self.kind} '{name}' is already registered")
        if config_type in self._classes:
            owner = self.name_of(config_type)
            raise ValueError(f"{config_type.__name__} is already the config class of {self.kind} '{owner}'")
        decorated = "__dataclass_fields__" in vars(config_type)  # a class without the decorator inherits is_dataclass
        if not (decorated and dataclasses.is_dataclass(config_type) and issubclass(config_type, self.config_base)):
            raise TypeError(f"{config_type.__name__} is not a dataclass that extends {self.config_base.__name__}")
        for field in dataclasses.fields(config_type):
            if field.name == "kind":
                raise TypeError(f"{config_type.__name__}.kind: 'kind' is the key of the registered name")
            if field.default is field.default_factory is dataclasses.MISSING:
                raise TypeError(f"{config_type.__name__}.{field.name} has no default")

        def decorate(cls: C) -> C:
            old = next((member for member in self.replaced if hasattr(cls, member)), None)
            if old is not None:
                raise UserError(
                    f"{cls.__module__}.{cls.__qualname__}, registered as {self.kind} '{name}', defines {old}.",
                    f"seqtk does not use {old} any more: {self.replaced[old]} replaced it.",
                    f"Use {self.replaced[old]} instead. If {old} has a different purpose, rename it.",
                )
            self._config_types[name] = config_type
            self._classes[config_type] = cls
            return cls

        return decorate

    def build(self, config: Any, *args: Any, **kwargs: Any) -> T:
        """Returns an instance of the class that the type of `config` selects: `cls(config, *args, **kwargs)`.

        Raises UserError if a number in the config is out of its field's range.
        """
        check(config, key=self.kind)
        factory: Callable[..., T] = self.class_of(type(config))
        return factory(config, *args, **kwargs)

    def config_type(self, name: str) -> type:
        """Returns the config dataclass registered under `name`.

        Raises UserError, with the most similar name, if `name` is not registered.
        """
        if name in self.renamed:
            raise UserError(f"There is no {self.kind} called '{name}' any more.", f"It is now '{self.renamed[name]}'.")
        if name not in self._config_types:
            raise UserError(f"There is no {self.kind} called '{name}'.", nearest(name, self))
        return self._config_types[name]

    def knows(self, config_type: type) -> bool:
        """Returns True if a class is registered with this config type."""
        return config_type in self._classes

    def class_of(self, config_type: type) -> type[T]:
        return self._classes[config_type]

    def name_of(self, config_type: type) -> str:
        return next(name for name, known in self._config_types.items() if known is config_type)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._config_types))

    def __contains__(self, name: object) -> bool:
        return name in self._config_types


def slot_of(config: Any) -> Registry[Any] | None:
    """Returns the registry that contains the type of `config`, or None."""
    return next((known for known in REGISTRIES.values() if known.knows(type(config))), None)


def registry_of(config_base: type) -> Registry[Any] | None:
    """Returns the registry whose `config_base` is exactly this class, or None."""
    return next((known for known in REGISTRIES.values() if known.config_base is config_base), None)


def load_plugins(user_dir: str | None = None) -> None:
    """Imports every plug-in: the entry points of group `seqtk.plugins`, then the package or module at `user_dir`.

    Raises UserError, with the distribution or path, if a plug-in cannot be imported.
    """
    for entry_point in importlib.metadata.entry_points(group="seqtk.plugins"):
        package = entry_point.dist.name if entry_point.dist else "an unknown distribution"
        version = f" {entry_point.dist.version}" if entry_point.dist else ""
        named = f"The plug-in '{entry_point.name}' of {package}{version}"
        with _import_errors(f"{named} cannot be imported. Fix it, or uninstall {package}."):
            entry_point.load()
    if user_dir is None:
        return
    path = Path(user_dir).expanduser().resolve()
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not source.is_file():
        raise UserError(f"user_dir={user_dir} is neither a package nor a module.", f"There is no {source}.")
    name = path.stem
    if name not in sys.modules:
        sys.path.insert(0, str(path.parent))
        with _import_errors(f"user_dir={user_dir} cannot be imported."):
            importlib.import_module(name)
    loaded_from = getattr(sys.modules[name], "__file__", None)
    if loaded_from is None or Path(loaded_from).resolve() != source.resolve():
        raise UserError(
            f"user_dir={user_dir} has the name of a loaded module: {name}, from {loaded_from or 'the interpreter'}.",
            "Rename the plug-in.",
        )


@contextmanager
def _import_errors(what: str) -> Iterator[None]:
    """Converts any exception during an import into a UserError with the line of the plug-in that raised it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(what, *_line_of(error), f"{type(error).__name__}: {error}".splitlines()[0][:300]) from error


def _line_of(error: Exception) -> list[str]:
    """Returns [text], where the text names the file and line in which the plug-in failed, or [] if they are unknown.

    The line is that of a syntax error, or else the last line that ran in the plug-in's folder.
    """
    if isinstance(error, SyntaxError):
        return [f"Line {error.lineno} of {error.filename}:"]
    importing = (Path(__file__), Path(importlib.__file__).parent)
    frames = [
        (Path(frame.filename), frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen") and not any(map(Path(frame.filename).is_relative_to, importing))
    ]
    own = [(path, line) for path, line in frames if path.is_relative_to(frames[0][0].parent)]
    return [f"Line {line} of {path}:" for path, line in own[-1:]]
