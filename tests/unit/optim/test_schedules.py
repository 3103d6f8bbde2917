"""Learning rate schedules: values at given steps, limits, and dependence on the step only."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtk.optim import Schedule, ScheduleConfig, schedules
from seqtk.optim.schedules import ConstantConfig, CosineConfig, InverseSqrtConfig, PolynomialConfig, WSDConfig
from seqtk.utils.errors import UserError

ALL = [schedules.config_type(name) for name in schedules]


def build(config: ScheduleConfig, lr: float = 1.0, max_steps: int | None = 100) -> Schedule:
    return schedules.build(config, lr=lr, max_steps=max_steps)


def test_every_schedule_is_registered() -> None:
    assert list(schedules) == ["constant", "cosine", "inverse_sqrt", "polynomial", "wsd"]


@pytest.mark.parametrize("config_type", ALL)
def test_warm_up_is_linear(config_type: type) -> None:
    schedule = build(config_type(warmup_updates=10, warmup_init_lr=0.2), lr=1.2)
    assert [schedule.lr(step) for step in (0, 5, 9, 10)] == pytest.approx([0.2, 0.7, 1.1, 1.2])


@pytest.mark.parametrize("config_type", ALL)
@settings(max_examples=25)
@given(st.integers(0, 30), st.lists(st.integers(0, 200), min_size=2, max_size=9))
def test_rate_depends_on_the_step_only(config_type: type, warmup: int, steps: list[int]) -> None:
    schedule = build(config_type(warmup_updates=warmup))
    rates = {step: schedule.lr(step) for step in sorted(steps)}
    assert all(0 <= rate <= 1 for rate in rates.values())
    assert [schedule.lr(step) for step in steps] == [rates[step] for step in steps]
    assert build(config_type(warmup_updates=warmup)).lr(steps[-1]) == rates[steps[-1]]


@pytest.mark.parametrize("config_type", ALL)
def test_run_may_be_shorter_than_warm_up(config_type: type) -> None:
    assert build(config_type(warmup_updates=4000), max_steps=2).lr(1) == pytest.approx(1 / 4000)


def test_constant_rate_does_not_change() -> None:
    schedule = build(ConstantConfig(), lr=0.3, max_steps=None)
    assert [schedule.lr(step) for step in (0, 1, 10**6)] == [0.3] * 3


def test_inverse_sqrt_halves_at_four_times_warm_up() -> None:
    schedule = build(InverseSqrtConfig(warmup_updates=100), max_steps=None)
    assert [schedule.lr(step) for step in (100, 400, 10_000)] == pytest.approx([1, 1 / 2, 1 / 10])
    without = build(InverseSqrtConfig(warmup_updates=0), max_steps=None)
    assert [without.lr(step) for step in (0, 1, 4)] == pytest.approx([1, 1, 1 / 2])


def test_cosine_reaches_min_lr_at_the_end_of_the_run() -> None:
    schedule = build(CosineConfig(warmup_updates=20, min_lr=0.2))
    assert [schedule.lr(step) for step in (20, 60)] == pytest.approx([1, 0.6])
    assert schedule.lr(99) == pytest.approx(0.2, abs=1e-3)
    assert schedule.lr(99) > 0.2


def test_cosine_restarts_with_longer_and_lower_cycles() -> None:
    schedule = build(CosineConfig(min_lr=0.1, period=10, t_mult=2, shrink=0.5), max_steps=None)
    assert [schedule.lr(step) for step in (0, 5, 10, 20, 30)] == pytest.approx([1, 0.55, 0.5, 0.275, 0.25])


def test_cosine_with_equal_cycles_repeats() -> None:
    schedule = build(CosineConfig(period=7, shrink=1.0), max_steps=None)
    assert [schedule.lr(step) for step in range(7)] == [schedule.lr(step + 7 * 10**6) for step in range(7)]
    assert schedule.lr(3) == pytest.approx((1 + math.cos(math.pi * 3 / 7)) / 2)


def test_polynomial_ends_at_end_lr() -> None:
    line = build(PolynomialConfig(warmup_updates=20, end_lr=0.2))
    assert [line.lr(step) for step in (20, 60, 100, 500)] == pytest.approx([1, 0.6, 0.2, 0.2])
    square = build(PolynomialConfig(power=2.0, period=10))
    assert [square.lr(step) for step in (0, 5, 10, 50)] == pytest.approx([1, 0.25, 0, 0])


def test_wsd_decays_at_the_end() -> None:
    line = build(WSDConfig(warmup_updates=20, end_lr=0.2, decay_share=0.25))  # decays from update 80 to 100
    rates = [line.lr(step) for step in (10, 20, 50, 80, 90, 95, 100, 500)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 0.6, 0.4, 0.2, 0.2])
    steep = build(WSDConfig(power=0.5))
    assert [steep.lr(step) for step in (89, 90, 99)] == pytest.approx([1, 1, 1 - math.sqrt(0.9)])


def test_wsd_before_decay_does_not_depend_on_max_updates() -> None:
    short, long = (build(WSDConfig(warmup_updates=5), max_steps=steps) for steps in (100, 1000))
    assert [short.lr(step) for step in range(90)] == [long.lr(step) for step in range(90)]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_wsd_decay_share_may_be_0_or_1(share: float) -> None:
    schedule = build(WSDConfig(decay_share=share))
    line = build(PolynomialConfig())
    expected = [line.lr(step) if share else float(step < 100) for step in (0, 30, 99, 100, 101)]
    assert [schedule.lr(step) for step in (0, 30, 99, 100, 101)] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["cosine", "polynomial", "wsd"])
def test_schedule_without_length_or_period_is_refused(name: str) -> None:
    config_type = schedules.config_type(name)
    with pytest.raises(UserError, match=rf"schedule={name}(.|\n)*schedule\.period"):
        build(config_type(), max_steps=None)
    assert build(config_type(period=5), max_steps=None).lr(0) == 1


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (ConstantConfig(warmup_updates=-1), "warmup_updates=-1"),
        (CosineConfig(min_lr=2.0), "min_lr=2.0"),
        (PolynomialConfig(end_lr=2.0), "end_lr=2.0"),
        (CosineConfig(t_mult=0.5), "t_mult=0.5"),
        (CosineConfig(period=0), "period=0"),
        (PolynomialConfig(period=0), "period=0"),
        (WSDConfig(period=0), "period=0"),
        (WSDConfig(end_lr=2.0), "end_lr=2.0"),
        (WSDConfig(decay_share=1.5), "decay_share=1.5"),
        (WSDConfig(power=0.0), "power=0.0"),
    ],
)
def test_invalid_settings_are_refused(config: ScheduleConfig, key: str) -> None:
    with pytest.raises(UserError, match=key):
        build(config)
