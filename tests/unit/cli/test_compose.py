"""Composing a config from recipes and arguments: inheritance, order, interpolation, grammar and errors."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqtk.attention.luna import LunaConfig
from seqtk.cli import compose
from seqtk.models.language_model import TransformerLMConfig
from seqtk.training.config import TrainConfig
from seqtk.utils.errors import UserError
from tests.unit.config.toy_layers import DenseConfig, DotConfig, LayerConfig, layers


@dataclass(frozen=True)
class ModelConfig:
    layer: LayerConfig | tuple[LayerConfig, ...] = DotConfig()
    dim: int = 512


@dataclass(frozen=True)
class RunConfig:
    aliases: ClassVar[dict[str, tuple[str, ...]]] = {"attention": ("model.layer",)}

    name: str = "run"
    save_dir: str = "checkpoints"
    note: str | None = None
    lr: float = 1.0
    words: tuple[str, ...] = ()
    model: ModelConfig = ModelConfig()


def configure(folder: Path, *arguments: str, **recipes: str) -> RunConfig:
    """Writes each recipe (name=YAML) to a file, and composes the last one with the arguments."""
    found = []
    for name, text in recipes.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
        found = [folder / f"{name}.yaml"]
    chain = compose.recipe_layers(found[0]) if found else []
    return compose.compose(RunConfig(), chain, compose.parse_overrides(arguments))


def test_keys_that_a_recipe_omits_keep_their_defaults(tmp_path: Path) -> None:
    assert configure(tmp_path, mine="model: {dim: 64}\nlr: 1e-4\n") == RunConfig(lr=1e-4, model=ModelConfig(dim=64))


@pytest.mark.parametrize("choice", ["model.layer=dense", "model.layer.kind=dense", "model.layer={kind: dense}"])
def test_kind_is_set_before_its_settings(tmp_path: Path, choice: str) -> None:
    wanted = ModelConfig(dim=3, layer=DenseConfig(heads=2))
    for arguments in itertools.permutations([choice, "model.layer.heads=2", "model.dim=3"]):
        assert configure(tmp_path, *arguments).model == wanted


def test_alias_is_set_after_the_model_kind() -> None:
    for order in itertools.permutations(["attention.heads=2", "attention=luna", "model=transformer_lm"]):
        config = compose.compose(TrainConfig(), [], compose.parse_overrides(order))
        assert config.model == TransformerLMConfig(attention=(LunaConfig(heads=2),))


def test_last_argument_for_a_key_wins(tmp_path: Path) -> None:
    for first, last in itertools.permutations(["dot", "dense"]):
        config = configure(tmp_path, "attention.heads=2", f"model.layer={first}", f"model.layer.kind={last}")
        assert config.model.layer == layers.config_type(last)(heads=2)


def test_recipe_may_be_empty(tmp_path: Path) -> None:
    assert configure(tmp_path, mine="# nothing yet\n") == RunConfig()


@pytest.mark.parametrize("defaults", ["[base]", "[base, _self_]"])
def test_recipe_overrides_its_parent(tmp_path: Path, defaults: str) -> None:
    child = f"defaults: {defaults}\nname: child\n"
    assert configure(tmp_path, base="name: base\nlr: 2\n", child=child) == RunConfig(name="child", lr=2.0)


def test_parent_listed_after_self_overrides_the_recipe(tmp_path: Path) -> None:
    assert configure(tmp_path, base="name: base", child="defaults: [_self_, base]\nname: child").name == "base"


def test_new_kind_discards_settings_of_the_old_kind(tmp_path: Path) -> None:
    base = "attention: {kind: dot, heads: 2, temperature: 3}"
    config = configure(tmp_path, base=base, child="defaults: [base]\nattention: {kind: dense, max_length: 9}")
    assert config.model.layer == DenseConfig(max_length=9)
    config = configure(tmp_path, base=base, child="defaults: [base]\nattention: dense")
    assert config.model.layer == DenseConfig()
    config = configure(tmp_path, base="attention: dense", child="defaults: [base]\nattention: {max_length: 9}")
    assert config.model.layer == DenseConfig(max_length=9)


def test_key_overrides_its_alias_in_the_parent_recipe(tmp_path: Path) -> None:
    config = configure(tmp_path, base="attention: dense", child="defaults: [base]\nmodel: {layer: dot}")
    assert config.model.layer == DotConfig()


def test_recipe_inherits_from_its_grandparent(tmp_path: Path) -> None:
    config = configure(
        tmp_path, a="name: a\nlr: 2\n", b="defaults: [a]\nname: b\nmodel: {dim: 4}", c="defaults: [b]\nname: c"
    )
    assert config == RunConfig(name="c", lr=2.0, model=ModelConfig(dim=4))


def test_at_sign_in_defaults_list_selects_the_subtree(tmp_path: Path) -> None:
    (tmp_path / "sizes").mkdir()
    (tmp_path / "sizes" / "small.yaml").write_text("dim: 8")
    assert configure(tmp_path, mine="defaults: [sizes/small@model]").model.dim == 8


def test_arguments_are_applied_in_order(tmp_path: Path) -> None:
    config = configure(tmp_path, "attention=dense", "attention.max_length=7", "model.dim=3", "model.dim=4")
    assert config.model == ModelConfig(DenseConfig(max_length=7), 4)


def test_interpolation_uses_parents_and_arguments(tmp_path: Path) -> None:
    base = "name: base\nsave_dir: runs/${name}"
    assert configure(tmp_path, base=base).save_dir == "runs/base"
    assert configure(tmp_path, base=base, child="defaults: [base]\nname: child").save_dir == "runs/child"
    assert configure(tmp_path, "name=mine", base=base).save_dir == "runs/mine"
    assert configure(tmp_path, "model.dim=3", "note=w${model.dim}").note == "w3"


class TestDeletion:
    def test_tilde_argument_restores_the_default(self, tmp_path: Path) -> None:
        recipe = "lr: 2\nmodel: {dim: 3, layer: dense}"
        assert configure(tmp_path, "~lr", mine=recipe).lr == RunConfig().lr
        assert configure(tmp_path, "~model.dim", mine=recipe).model == ModelConfig(DenseConfig())
        assert configure(tmp_path, "~lr=2", mine=recipe).lr == RunConfig().lr

    def test_tilde_argument_with_a_wrong_value_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="~lr=3"):
            configure(tmp_path, "~lr=3", mine="lr: 2")


class TestGroups:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for group, option, text in [
            ("model", "small", "dim: 8"),
            ("model", "big", "dim: 80"),
            ("sets", "long", "lr: 3"),
        ]:
            (tmp_path / group).mkdir(exist_ok=True)
            (tmp_path / group / f"{option}.yaml").write_text(text)
        return tmp_path

    def choose(self, folder: Path, recipe: str, *arguments: str) -> RunConfig:
        path = folder / "mine.yaml"
        path.write_text(recipe)
        groups, rest = compose.split_groups(compose.parse_overrides(arguments), path)
        return compose.compose(RunConfig(), compose.recipe_layers(path, groups), rest)

    def test_group_option_replaces_an_entry_of_the_defaults(self, folder: Path) -> None:
        recipe = "defaults: [model: small]\nname: x"
        assert self.choose(folder, recipe).model.dim == 8
        assert self.choose(folder, recipe, "model=big", "name=y") == RunConfig(name="y", model=ModelConfig(dim=80))
        assert self.choose(folder, recipe, "~model").model.dim == ModelConfig().dim

    def test_group_option_is_added_to_the_defaults(self, folder: Path) -> None:
        assert self.choose(folder, "name: x", "model=big").model.dim == 80
        assert self.choose(folder, "name: x", "+model=big").model.dim == 80
        assert self.choose(folder, "name: x", "sets@_global_=long").lr == 3

    def test_unknown_group_option_is_refused(self, folder: Path) -> None:
        with pytest.raises(UserError, match="model/huge"):
            self.choose(folder, "defaults: [model: small]", "model@model=huge")

    @pytest.mark.parametrize("argument", ["models/small=big", "models@model=big", "~models/small"])
    def test_unknown_group_is_refused(self, folder: Path, argument: str) -> None:
        with pytest.raises(UserError, match="config group 'models"):
            self.choose(folder, "defaults: [model: small]", argument)


def test_unknown_interpolation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nam"):
        configure(tmp_path, mine="save_dir: runs/${nam}")
    with pytest.raises(UserError, match="nam"):
        configure(tmp_path, "save_dir=${nam}")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("note=two words", "two words"),
        ("note='a, b'", "a, b"),
        ("note=a, b", "a, b"),
        ("note=null", None),
        ("note='null'", "null"),
        ("note=", ""),
        ("note=2024_01", "2024_01"),
        ("note=1e5", "1e5"),
        ("note=true", "true"),
        ("note=~/data", "~/data"),
        ("note=a=b", "a=b"),
        ("note=Übung (1).txt", "Übung (1).txt"),
        ("note=/a/b-c.d:e", "/a/b-c.d:e"),
        ("words=[a,'b c',3]", ("a", "b c", "3")),
        ("words=a", ("a",)),
        ("words=a, b", ("a, b",)),
        ("note=[x].txt", "[x].txt"),
        ("note=[a,b]", "[a,b]"),
        ("note='open", "'open"),
        ("note=my data, v=2/tr", "my data, v=2/tr"),
        ("+note=x", "x"),
        ("++note=x", "x"),
        ("lr=1e-4", 1e-4),
        ("lr=3", 3.0),
        ("model.dim=1_000", 1000),
        ("attention={kind: dense, heads: 4}", DenseConfig(heads=4)),
        ("attention=[dot,{kind: dense, heads: 4}]", (DotConfig(), DenseConfig(heads=4))),
        ("attention={heads: 4}", DotConfig(heads=4)),
    ],
)
def test_argument_values_are_parsed(tmp_path: Path, argument: str, value: object) -> None:
    config: Any = configure(tmp_path, argument)
    key = argument.lstrip("+").partition("=")[0].replace("attention", "model.layer")
    for part in key.split("."):
        config = getattr(config, part)
    assert config == value


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("name", "'name' does not have the form key=value."),
        ("=3", "'=3' does not have the form key=value."),
        ("two words", "Quote a value with spaces"),
        ("~name=x", "the recipe does not set"),
        ("~name", "the recipe does not set"),
        ("attention=[dot", "cannot be parsed"),
        ("lr='1", "cannot be parsed"),
        (f"model.dim={'1' * 5000}", "model.dim=111"),
        ("lr=1,2", "seqtk-train --multirun"),
        ("lr=choice(1,2)", "has several values"),
        ("nam=x", "Did you mean 'name'?"),
        ("model.dmi=3", "Did you mean 'model.dim'?"),
        ("lr=fast", "lr=fast: must be a number."),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, argument: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        configure(tmp_path, argument)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nam: x", ("There is no key 'nam'.", "Did you mean 'name'?", "mine.yaml")),
        ("model: {layer: {kind: dense, temperature: 2}}", ("'model.layer.temperature' in 'dense'", "mine.yaml")),
        ("attention: dens", ("Did you mean 'dense'?", "mine.yaml")),
        ("model: {_target_: os.system}", ("There is no key 'model._target_'.", "mine.yaml")),
        ("defaults: [bsae]", ("There is no recipe called 'bsae'.", "Did you mean 'base'?", "mine.yaml")),
        ("defaults: base", ("defaults", "mine.yaml")),
        ("defaults: [other]", ("cycle", "mine.yaml")),
        ("hydra: {run: {dir: x}}", ("There is no key 'hydra'.", "mine.yaml")),
        ("- a\n- b", ("mine.yaml", "is not a valid recipe")),
        ("a: [1", ("mine.yaml", "is not valid YAML")),
        ("name: a\nname: b", ("mine.yaml", "is not valid YAML", "name")),
    ],
)
def test_bad_recipes_are_refused(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    (tmp_path / "base.yaml").write_text("name: base")
    (tmp_path / "other.yaml").write_text("defaults: [mine]")
    with pytest.raises(UserError) as caught:
        configure(tmp_path, mine=text)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_recipe_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "it's a, [strange] {folder}=1"
    folder.mkdir()
    assert configure(folder, base="name: base", child="defaults: [base]").name == "base"


text = st.text(st.characters(exclude_categories=["Cs", "Cc"])) | st.sampled_from(
    ["null", "1e5", "~", "${name}", "a: b", "???", "\\${x}", "\\\\${", "- x", "yes", "012", "\n", "x\n y\n"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    name=text,
    note=st.none() | text,
    words=st.lists(text),
    lr=st.floats(allow_nan=False, allow_infinity=False),
    dense=st.booleans(),
)
def test_yaml_of_a_config_gives_an_equal_config(
    tmp_path: Path, name: str, note: str | None, words: list[str], lr: float, dense: bool
) -> None:
    model = ModelConfig((DenseConfig(3), DotConfig()), dim=7) if dense else ModelConfig()
    config = RunConfig(name=name, note=note, words=tuple(words), lr=lr, model=model)
    assert configure(tmp_path, mine=compose.to_yaml(config)) == config
