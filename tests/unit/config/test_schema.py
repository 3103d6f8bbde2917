"""Conversion of configs to and from dicts: round trips, slots, aliases, tuples and errors."""

import enum
import json
from dataclasses import dataclass, make_dataclass
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqtk.config import schema
from seqtk.config.fields import setting
from seqtk.utils.errors import UserError
from tests.unit.config.toy_layers import DenseConfig, DotConfig, LayerConfig, layers


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class StackConfig:
    depth: int = 6
    layer: LayerConfig | tuple[LayerConfig, ...] = DotConfig()


@dataclass(frozen=True)
class ModelConfig:
    aliases: ClassVar[dict[str, tuple[str, ...]]] = {"attention": ("encoder.layer", "decoder.layer")}

    encoder: StackConfig = StackConfig()
    decoder: StackConfig = StackConfig()
    dropout: float = 0.1


@dataclass(frozen=True)
class RunConfig:
    aliases: ClassVar[dict[str, tuple[str, ...]]] = {"attention": ("model.attention",)}

    name: str = "run"
    note: str | None = None
    model: ModelConfig = ModelConfig()
    betas: tuple[float, float] = (0.9, 0.98)
    langs: tuple[str, ...] = ("de", "en")
    color: Color = Color.RED
    mix: Literal["sum", "softmax"] = "sum"
    fast: bool = False


def build(**changes: object) -> RunConfig:
    return schema.from_dict(RunConfig, changes)


whole = st.integers(-(2**63), 2**63 - 1)


@st.composite
def stacks(draw: st.DrawFn) -> StackConfig:
    layer = st.one_of(st.builds(DotConfig, heads=whole), st.builds(DenseConfig, heads=whole, max_length=whole))
    return StackConfig(draw(whole), draw(st.one_of(layer, st.lists(layer, min_size=1).map(tuple))))


numbers = st.floats(allow_nan=False, allow_infinity=False)
configs = st.builds(
    RunConfig,
    name=st.text(),
    note=st.none() | st.text(),
    model=st.builds(ModelConfig, encoder=stacks(), decoder=stacks(), dropout=numbers),
    betas=st.tuples(numbers, numbers),
    langs=st.lists(st.text()).map(tuple),
    color=st.sampled_from(Color),
    mix=st.sampled_from(["sum", "softmax"]),
    fast=st.booleans(),
)


@given(configs)
def test_config_survives_a_json_round_trip(config: RunConfig) -> None:
    assert schema.from_dict(RunConfig, json.loads(json.dumps(schema.to_dict(config)))) == config


def test_slot_accepts_a_name_or_a_mapping() -> None:
    assert build(model={"encoder": {"layer": "dense"}}).model.encoder.layer == DenseConfig()
    tree = {"layer": {"kind": "dense", "max_length": 9}}
    assert build(model={"encoder": tree}).model.encoder.layer == DenseConfig(max_length=9)
    assert schema.update(RunConfig(), "model.encoder.layer.kind", "dense").model.encoder.layer == DenseConfig()


def test_mapping_without_kind_changes_only_its_keys() -> None:
    config = schema.update(RunConfig(), "model.encoder.layer", {"kind": "dense", "heads": 2})
    config = schema.merge(config, {"model": {"encoder": {"layer": {"max_length": 9}}}})
    assert config.model.encoder.layer == DenseConfig(heads=2, max_length=9)


def test_new_kind_has_its_default_settings() -> None:
    config = schema.update(RunConfig(), "model.encoder.layer.heads", 2)
    assert schema.update(config, "model.encoder.layer", {"kind": "dense"}).model.encoder.layer == DenseConfig()


def test_aliases_may_be_nested() -> None:
    config = schema.update(RunConfig(), "attention", "dense")
    config = schema.update(config, "attention.max_length", 5)
    assert config.model.encoder.layer == config.model.decoder.layer == DenseConfig(max_length=5)


def test_alias_is_combined_with_keys_next_to_its_target() -> None:
    config = build(attention="dense", model={"encoder": {"depth": 2}})
    assert config.model.encoder == StackConfig(2, DenseConfig())


@pytest.mark.parametrize("model", [{"attention": "dot"}, {"decoder": {"layer": "dot"}}])
def test_setting_an_alias_and_its_target_is_refused(model: dict[str, object]) -> None:
    with pytest.raises(UserError, match="are both set"):
        build(attention="dense", model=model)


def test_key_of_a_layer_pattern_is_set_in_each_layer() -> None:
    config = build(model={"encoder": {"layer": ["dot", {"kind": "dense", "heads": 2}]}})
    assert config.model.encoder.layer == (DotConfig(), DenseConfig(heads=2))
    config = schema.update(config, "model.encoder.layer.max_length", 3)
    config = schema.merge(config, {"model": {"encoder": {"layer": {"heads": 4}}}})
    assert config.model.encoder.layer == (DotConfig(heads=4), DenseConfig(heads=4, max_length=3))


def test_numbers_are_converted_to_the_field_type() -> None:
    config = build(model={"dropout": 0, "encoder": {"depth": 3.0}}, name=2014, betas=[0, 1])
    assert (config.model.dropout, config.model.encoder.depth, config.name, config.betas) == (0.0, 3, "2014", (0.0, 1.0))
    assert isinstance(config.model.dropout, float)
    assert isinstance(config.model.encoder.depth, int)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("nam", "x", "There is no key 'nam'.\nDid you mean 'name'?"),
        ("dropout", 0.3, "There is no key 'dropout'.\nDid you mean 'model.dropout'?"),
        ("drop_out", 0.3, "There is no key 'drop_out'.\nDid you mean 'model.dropout'?"),
        ("model.encoder.dept", 1, "There is no key 'model.encoder.dept'.\nDid you mean 'model.encoder.depth'?"),
        ("attention.max_length", 1, "There is no key 'attention.max_length' in 'dot'.\nKnown: heads, temperature."),
        ("attention", "dens", "attention=dens: there is no such toy layer.\nDid you mean 'dense'?"),
        ("attention", {"kind": 7}, "attention=7: there is no such toy layer.\nKnown: dense, dot."),
        (
            "attention",
            ["dot", {"heads": 2}],
            "attention={heads}: the key 'kind' is missing.\nSet it to the name of a registered toy layer",
        ),
        (
            "attention",
            [{1: 2}],
            "attention={1}: the key 'kind' is missing.\nSet it to the name of a registered toy layer",
        ),
        ("attention", ["dot", "dens"], "attention=dens: there is no such toy layer.\nDid you mean 'dense'?"),
        (
            "attention",
            3,
            "attention=3: must be the name of a registered toy layer or a mapping.",
        ),
        ("model", "big", "model=big: must be a mapping.\nIts keys: encoder, decoder, dropout."),
        ("model.encoder.depth", 2.5, "model.encoder.depth=2.5: must be a whole number."),
        ("model.encoder.depth", True, "model.encoder.depth=true: must be a whole number."),
        ("model.encoder.depth", None, "model.encoder.depth=null: must be a whole number."),
        ("model.dropout", "a lot", "model.dropout=a lot: must be a number."),
        ("fast", 1, "fast=1: must be true or false."),
        ("name", True, "name=true: must be text."),
        ("name.first", "x", "There is no key 'name.first': 'name' is run, which has no keys."),
        ("betas", [0.9], "betas=[0.9]: must have 2 values."),
        ("color", "rad", "color=rad: must be one of red, blue."),
        ("mix", "max", "mix=max: must be one of sum, softmax."),
    ],
)
def test_errors_name_the_key(key: str, value: object, words: str) -> None:
    with pytest.raises(UserError) as caught:
        schema.update(RunConfig(), key, value)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_unknown_nested_keys_are_refused() -> None:
    """Unlike OmegaConf's struct flag, an earlier merge does not disable the check."""
    tree = {"attention": "dense", "model": {"encoder": {"depth": 2, "heads": 4}}}
    with pytest.raises(UserError, match=r"'model\.encoder\.heads'"):
        schema.from_dict(RunConfig, tree)


def test_keys_lists_all_keys() -> None:
    keys = schema.keys(build(attention="dense"))
    assert {"name", "attention", "model.attention", "model.encoder.layer.max_length"} <= set(keys)


def test_takes_text_is_true_for_text_fields_only() -> None:
    config = RunConfig()
    assert schema.takes_text(config, "name")
    assert schema.takes_text(config, "note")
    assert not any(
        schema.takes_text(config, key)
        for key in ("fast", "langs", "model.dropout", "attention.heads", "attention", "no.such")
    )


@pytest.mark.parametrize("value", ["dense", {"kind": "dense"}, {"kind": "dense", "heads": 2}])
@pytest.mark.parametrize(
    ("hint", "default", "words"),
    [
        (int, "three", "attention.size=three: must be a whole number"),
        (float, -1.0, "attention.size=-1.0: must be a finite number of at least 0"),
        (Literal["a", "b"], "c", "attention.size=c: must be one of a, b"),
        (range, range(3), "attention.size: settings of type range are not supported"),
    ],
)
def test_wrong_defaults_of_registered_configs_are_refused(
    value: object, hint: object, default: object, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = [("heads", int, 1), ("size", hint, setting(default, at_least=0))]
    wrong = make_dataclass("WrongConfig", fields, bases=(LayerConfig,), frozen=True)
    monkeypatch.setitem(layers._config_types, "dense", wrong)
    monkeypatch.setitem(layers._classes, wrong, object)
    with pytest.raises(UserError, match=words):
        schema.update(RunConfig(), "attention", value)


def test_unregistered_config_has_no_kind() -> None:
    assert schema.to_dict(LayerConfig()) == {}


@dataclass(frozen=True)
class InnerConfig:
    mix: int = 0
    max_size: int = 0


@dataclass(frozen=True)
class OuterConfig:
    max_steps: int = 0
    inner: InnerConfig = InnerConfig()
    dim: int = 0


@pytest.mark.parametrize(
    ("written", "meant"), [("dmi", "dim"), ("mxi", "inner.mix"), ("max_siez", "inner.max_size"), ("mix", "inner.mix")]
)
def test_suggested_key_is_at_the_same_level_if_possible(written: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"Did you mean '{meant}'"):
        schema.update(OuterConfig(), written, 1)
