"""Registries (names, config types and classes) and plug-ins."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from seqtk.attention.base import Attention, AttentionConfig, attentions
from seqtk.config.registry import REGISTRIES, Registry, load_plugins, registry_of
from seqtk.utils.errors import UserError
from seqtk.utils.suggestions import near_path, nearest


@dataclass(frozen=True)
class ShapeConfig:
    """Base class of the configs in this test."""


@dataclass(frozen=True)
class CircleConfig(ShapeConfig):
    radius: float = 1.0


@pytest.fixture
def shapes() -> Iterator[Registry[object]]:
    registry: Registry[object] = Registry("registry-test shape", ShapeConfig)

    @registry.register("circle", CircleConfig)
    class Circle:
        def __init__(self, config: CircleConfig, *, scale: float) -> None:
            self.radius = config.radius * scale

    yield registry
    del REGISTRIES["registry-test shape"]


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Path]:
    """An empty folder for a plug-in. Modules imported during the test are removed after it."""
    known, path = set(sys.modules), list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - known:
        del sys.modules[name]


def test_build_selects_the_class_by_config_type(shapes: Registry[object]) -> None:
    assert shapes.build(CircleConfig(2.0), scale=3.0).radius == 6.0  # type: ignore[attr-defined]


def test_registry_maps_name_config_type_and_class(shapes: Registry[object]) -> None:
    assert shapes.config_type("circle") is CircleConfig
    assert shapes.name_of(CircleConfig) == "circle"
    assert shapes.class_of(CircleConfig).__name__ == "Circle"
    assert list(shapes) == ["circle"]
    assert "circle" in shapes
    assert shapes.knows(CircleConfig)
    assert not shapes.knows(ShapeConfig)
    assert registry_of(ShapeConfig) is shapes
    assert registry_of(CircleConfig) is None


def test_names_and_config_types_are_unique(shapes: Registry[object]) -> None:
    @dataclass(frozen=True)
    class OtherConfig(ShapeConfig): ...

    with pytest.raises(ValueError, match="already registered"):
        shapes.register("circle", OtherConfig)
    with pytest.raises(ValueError, match="config class of registry-test shape 'circle'"):
        shapes.register("disc", CircleConfig)


def test_config_must_extend_the_base_class(shapes: Registry[object]) -> None:
    with pytest.raises(TypeError, match="is not a dataclass that extends ShapeConfig"):
        shapes.register("stranger", int)


def test_config_without_decorator_is_refused(shapes: Registry[object]) -> None:
    class SquareConfig(ShapeConfig):
        side: float = 1.0

    with pytest.raises(TypeError, match="SquareConfig is not a dataclass"):
        shapes.register("square", SquareConfig)


def test_fields_without_default_are_refused(shapes: Registry[object]) -> None:
    @dataclass(frozen=True)
    class SquareConfig(ShapeConfig):
        side: float

    with pytest.raises(TypeError, match=r"SquareConfig\.side has no default"):
        shapes.register("square", SquareConfig)


def test_field_that_hides_the_kind_is_refused(shapes: Registry[object]) -> None:
    @dataclass(frozen=True)
    class SquareConfig(ShapeConfig):
        kind: str = "plain"

    with pytest.raises(TypeError, match=r"SquareConfig\.kind: 'kind' is the key of the registered name"):
        shapes.register("square", SquareConfig)


def test_class_with_a_replaced_member_is_refused() -> None:
    @dataclass(frozen=True)
    class OldConfig(AttentionConfig): ...

    class Old(Attention):
        def after_update(self) -> None: ...

    class Derived(Old): ...

    for cls in (Old, Derived):
        with pytest.raises(UserError, match=r"'old', defines after_update\.\n.*\nUse redraw_every and redraw instead"):
            attentions.register("old", OldConfig)(cls)
    assert "old" not in attentions
    assert not attentions.knows(OldConfig)


def test_unknown_name_suggests_a_similar_name(shapes: Registry[object]) -> None:
    with pytest.raises(UserError, match="Did you mean 'circle'"):
        shapes.config_type("cirlce")
    with pytest.raises(UserError, match=r"Known: circle\."):
        shapes.config_type("zzz")


def test_missing_path_suggests_a_similar_path(tmp_path: Path) -> None:
    for name in ("checkpoints", "opt", "home"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint.txt").touch()
    assert near_path(tmp_path / "checkpoint") == ("Did you mean 'checkpoints'?",)
    assert near_path(tmp_path / "checkpoint", suits=Path.is_file) == ("Did you mean 'checkpoint.txt'?",)
    assert near_path(tmp_path / "nope") == ()
    assert near_path(tmp_path / "no" / "where") == (f"There is no folder {tmp_path / 'no'}.",)


def test_nearest_lists_no_names_if_there_are_many() -> None:
    assert nearest("Circle", ["circle"]) == "Did you mean 'circle'?"
    assert nearest("x", []) == "No names are known."
    assert nearest("qqqq", (f"name_{index}" for index in range(1000))) == ""


@pytest.mark.parametrize("file", ["my_plug.py", "my_plug/__init__.py"])
def test_user_dir_may_be_a_module_or_a_package(plugin: Path, shapes: Registry[object], file: str) -> None:
    (plugin / file).parent.mkdir(exist_ok=True)
    (plugin / file).write_text(
        "from dataclasses import dataclass\n"
        "from seqtk.config.registry import REGISTRIES\n"
        "registry = REGISTRIES['registry-test shape']\n"
        "@dataclass(frozen=True)\n"
        "class SquareConfig(registry.config_base): ...\n"
        "@registry.register('square', SquareConfig)\n"
        "class Square: ...\n"
    )
    load_plugins(str(plugin / "my_plug"))
    load_plugins(str(plugin / "my_plug"))  # loading it again has no effect
    assert list(shapes) == ["circle", "square"]


def test_missing_user_dir_is_refused(plugin: Path) -> None:
    with pytest.raises(UserError, match="neither a package nor a module"):
        load_plugins(str(plugin / "nothing"))


def test_user_dir_named_like_a_module_is_refused(plugin: Path) -> None:
    (plugin / "json.py").write_text("")
    with pytest.raises(UserError, match="has the name of a loaded module: json"):
        load_plugins(str(plugin / "json.py"))


@pytest.mark.parametrize(
    ("source", "line", "error"),
    [
        ("import no_such_module\n", 1, "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import json\n\njson.loads('{')\n", 3, "JSONDecodeError: Expecting property name"),
        ("raise ValueError('two\\nlines')\n", 1, "ValueError: two"),
        ("x = 1\ndef broken(:\n", 2, "SyntaxError: invalid syntax"),
    ],
)
def test_failing_plugin_error_names_its_file_and_line(plugin: Path, source: str, line: int, error: str) -> None:
    (plugin / "my_plug.py").write_text(source)
    with pytest.raises(UserError) as caught:
        load_plugins(str(plugin / "my_plug"))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"user_dir={plugin}/my_plug cannot be imported."
    assert lines[1] == f"Line {line} of {plugin}/my_plug.py:"
    assert lines[2].startswith(error)
    assert len(lines) == 3


def test_failing_entry_point_error_names_its_package(plugin: Path) -> None:
    (plugin / "their_layers.py").write_text("import no_such_module\n")
    install(plugin)
    with pytest.raises(UserError) as caught:
        load_plugins()
    assert str(caught.value).splitlines() == [
        "The plug-in 'theirs' of their-package 1.0 cannot be imported. Fix it, or uninstall their-package.",
        f"Line 1 of {plugin}/their_layers.py:",
        "ModuleNotFoundError: No module named 'no_such_module'",
    ]


def test_missing_entry_point_error_names_its_package(plugin: Path) -> None:
    install(plugin)
    with pytest.raises(UserError, match=r"their-package 1\.0 cannot be imported"):
        load_plugins()


def test_entry_points_are_loaded(plugin: Path, shapes: Registry[object]) -> None:
    (plugin / "their_layers.py").write_text(
        "from dataclasses import dataclass\n"
        "from seqtk.config.registry import REGISTRIES\n"
        "registry = REGISTRIES['registry-test shape']\n"
        "@dataclass(frozen=True)\n"
        "class StarConfig(registry.config_base): ...\n"
        "registry.register('star', StarConfig)(type('Star', (), {}))\n"
    )
    install(plugin)
    load_plugins()
    assert "star" in shapes


def install(folder: Path) -> None:
    """Makes `folder` an installed distribution with the plug-in `their_layers`."""
    info = folder / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[seqtk.plugins]\ntheirs = their_layers\n")
    sys.path.insert(0, str(folder))
