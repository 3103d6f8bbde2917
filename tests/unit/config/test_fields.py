"""Ranges of config fields, and old names of keys."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar

import pytest

from seqtk.config import legacy, schema
from seqtk.config.fields import Range, check, help_of, probability, range_of, setting, written
from seqtk.config.registry import REGISTRIES, Registry
from seqtk.utils.errors import UserError

HUGE = 10**20


@dataclass(frozen=True)
class PartConfig:
    """Base class of the configs in this test."""


@dataclass(frozen=True)
class ConvConfig(PartConfig):
    renamed: ClassVar[dict[str, str]] = {"width": "kernel_size", "unused": ""}

    kernel_size: int = setting(3, at_least=1, help="Positions that one output sees.")
    dropout: float = probability(0.1)
    sizes: tuple[int, ...] = setting((1,), at_least=1)
    limit: int | None = setting(None, at_least=1)


@dataclass(frozen=True)
class RunConfig:
    aliases: ClassVar[dict[str, tuple[str, ...]]] = {"attention": ("inside.part", "last")}
    renamed: ClassVar[dict[str, str]] = {"inside.rate": "lr", "step": "inside.step"}

    @dataclass(frozen=True)
    class Inside:
        part: PartConfig | tuple[PartConfig, ...] = ConvConfig()
        step: int = 1

    inside: Inside = Inside()
    last: PartConfig = ConvConfig()
    lr: float = setting(1.0, at_least=0)
    penalty: float = setting(0.0, infinite=True)
    free: float = 0.0
    count: int = 0


@pytest.fixture(autouse=True)
def parts() -> Iterator[Registry[Any]]:
    registry: Registry[Any] = Registry("fields-test part", PartConfig, renamed={"konv": "conv"})

    @registry.register("conv", ConvConfig)
    class Conv:
        def __init__(self, config: ConvConfig) -> None:
            self.config = config

    yield registry
    del REGISTRIES["fields-test part"]


class TestRange:
    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("lr", -1, "lr=-1.0: must be a finite number of at least 0."),
            ("lr", math.inf, "lr=inf: must be a finite number of at least 0."),
            ("lr", math.nan, "lr=nan: must be a finite number of at least 0."),
            ("lr", 10**400, "lr=1e400: must be a whole number of at least 0 that fits into 64 bits."),
            ("free", -math.inf, "free=-inf: must be a finite number."),
            ("penalty", math.nan, "penalty=nan: must be a finite number or inf."),
            ("penalty", -math.inf, "penalty=-inf: must be a finite number or inf."),
            ("count", HUGE, f"count={HUGE}: must be a whole number that fits into 64 bits."),
            ("count", -HUGE, f"count=-{HUGE}: must be a whole number that fits into 64 bits."),
            ("count", 1e20, f"count={HUGE}: must be a whole number that fits into 64 bits."),
            ("last.kernel_size", 0, "last.kernel_size=0: must be a whole number of at least 1."),
            ("last.kernel_size", HUGE, "of at least 1 that fits into 64 bits."),
            ("inside.part.sizes", [2, 0], "inside.part.sizes=0: must be a whole number of at least 1."),
            ("inside.part.limit", -1, "inside.part.limit=-1: must be"),
            (
                "inside.part.dropout",
                1.0,
                "must be a finite number of at least 0 and less than 1.",
            ),
            ("attention.kernel_size", 0, "attention.kernel_size=0: must be"),
            ("attention", {"kind": "conv", "kernel_size": 0}, "attention.kernel_size=0: must be"),
            ("inside.part", ["conv", {"kind": "conv", "limit": 0}], "inside.part.limit=0: must be"),
            ("inside", {"part": {"kernel_size": 0}}, "inside.part.kernel_size=0: must be"),
        ],
    )
    def test_out_of_range_error_names_the_given_key(self, key: str, value: Any, message: str) -> None:
        with pytest.raises(UserError) as caught:
            schema.update(RunConfig(), key, value)
        assert message in str(caught.value)

    @pytest.mark.parametrize(
        ("key", "value"),
        [("lr", 0), ("penalty", math.inf), ("last.limit", None), ("count", 2**63 - 1), ("count", -(2**63))],
    )
    def test_values_at_the_limits_are_accepted(self, key: str, value: Any) -> None:
        config = schema.update(RunConfig(), key, value)
        assert attrgetter(key)(config) == value

    def test_configs_built_in_python_are_checked(self, parts: Registry[Any]) -> None:
        with pytest.raises(UserError, match=r"fields-test part\.kernel_size=0"):
            parts.build(ConvConfig(kernel_size=0))
        with pytest.raises(UserError, match=r"model\.inside\.part\.sizes=0"):
            check(RunConfig(inside=RunConfig.Inside(part=(ConvConfig(), ConvConfig(sizes=(0,))))), key="model")
        check(RunConfig())

    def test_subclasses_inherit_ranges_and_help(self) -> None:
        @dataclass(frozen=True)
        class WideConfig(ConvConfig):
            kernel_size: int = 9

        assert range_of(WideConfig, "kernel_size") == Range(at_least=1)
        assert help_of(WideConfig, "kernel_size") == "Positions that one output sees."

    def test_range_describes_its_limits(self) -> None:
        limits = Range(above=0, at_most=1)
        assert limits.describe(0.0) == "a finite number greater than 0 and at most 1"
        assert Range(at_most=1024).describe(0) == "a whole number of at most 1,024"


class TestRenamed:
    @pytest.mark.parametrize(
        ("tree", "old", "new"),
        [
            ({"last": {"width": 5}}, "last.width", "last.kernel_size"),
            ({"attention": {"width": 5}}, "attention.width", "attention.kernel_size"),
            ({"inside": {"rate": 5}}, "inside.rate", "lr"),
            ({"step": 5}, "step", "inside.step"),
        ],
    )
    def test_error_for_an_old_key_names_the_new_key(self, tree: dict[str, Any], old: str, new: str) -> None:
        with pytest.raises(UserError, match=f"'{old}' any more.\nIt is now '{new}'"):
            schema.from_dict(RunConfig, tree)

    def test_error_for_an_old_dotted_key_names_the_new_key(self) -> None:
        with pytest.raises(UserError, match=r"'inside\.part\.width' any more.\nIt is now 'inside\.part\.kernel_size'"):
            schema.update(RunConfig(), "inside.part.width", 5)
        with pytest.raises(UserError, match=r"'inside\.rate' any more.\nIt is now 'lr'"):
            schema.update(RunConfig(), "inside.rate", 5)
        with pytest.raises(UserError, match=r"'last\.unused' any more.$"):
            schema.update(RunConfig(), "last.unused", 5)

    def test_error_for_an_old_kind_names_the_new_kind(self) -> None:
        with pytest.raises(UserError, match=r"'konv' any more.\nIt is now 'conv'"):
            schema.update(RunConfig(), "last", "konv")

    def test_legacy_from_dict_reads_old_keys_and_kinds(self) -> None:
        tree = {
            "inside": {"part": [{"kind": "konv", "width": 5, "unused": 1}, "konv"], "rate": 0.5},
            "last": {"kind": "konv"},
            "step": 7,
        }
        assert legacy.from_dict(RunConfig, tree) == RunConfig(
            inside=RunConfig.Inside(part=(ConvConfig(kernel_size=5), ConvConfig()), step=7), lr=0.5
        )

    def test_kind_selects_the_config_of_a_base_class(self) -> None:
        tree = {"kind": "konv", "width": 5}
        assert legacy.from_dict(PartConfig, tree) == ConvConfig(kernel_size=5)
        with pytest.raises(UserError, match=r"model\.kernel_size=0"):
            schema.from_dict(PartConfig, {"kind": "conv", "kernel_size": 0}, key="model")


def test_errors_quote_values_in_one_short_line() -> None:
    assert written([None, True, "a\nb"]) == "[null,true,a b]"
    assert len(written("x" * 10**6)) < 300
    assert len(written(10**5000)) < 300
