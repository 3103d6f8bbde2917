"""Learning rate schedules equal the schedules of fairseq."""

import json
from pathlib import Path
from typing import Any

import pytest

from seqtk.optim.schedules import ConstantConfig, CosineConfig, InverseSqrtConfig, PolynomialConfig, Schedule, schedules


@pytest.fixture(scope="module")
def tables(golden: Path) -> list[dict[str, Any]]:
    stored = json.loads((golden / "tables.json").read_text())
    return stored["learning_rate_schedules"]["tables"]  # type: ignore[no-any-return]


def our_schedule(scheduler: str, config: dict[str, Any]) -> Schedule:
    """Returns the schedule of seqtk for the options of fairseq."""
    warmup = config["warmup_updates"]
    if scheduler == "inverse_sqrt":
        made = InverseSqrtConfig(warmup, max(config["warmup_init_lr"], 0.0))
        return schedules.build(made, lr=config["lr"][0])
    if scheduler == "cosine":
        made = CosineConfig(
            warmup,
            max(config["warmup_init_lr"], config["min_lr"] if config["warmup_init_lr"] < 0 else 0.0),
            min_lr=config["min_lr"],
            period=config["lr_period_updates"] if config["lr_period_updates"] > 0 else None,
            t_mult=config["t_mult"],
            shrink=config["lr_shrink"],
        )
        return schedules.build(made, lr=config["lr"][0], max_steps=config["max_update"])
    if scheduler == "polynomial_decay":
        made = PolynomialConfig(warmup, end_lr=config["end_learning_rate"], power=config["power"])
        return schedules.build(made, lr=config["lr"][0], max_steps=config["total_num_update"])
    # fairseq's `fixed` increases linearly from lr / W in the first update to lr in update W.
    made = ConstantConfig(max(0, warmup - 1), config["lr"][0] / max(1, warmup))
    return schedules.build(made, lr=config["lr"][0])


@pytest.mark.parametrize("scheduler", ["inverse_sqrt", "cosine", "polynomial_decay", "fixed"])
def test_learning_rates_equal_fairseq(tables: list[dict[str, Any]], scheduler: str) -> None:
    cases = [table for table in tables if table["scheduler"] == scheduler]
    assert len(cases) == 2
    for case in cases:
        schedule = our_schedule(scheduler, case["config"])
        rates = [schedule.lr(step) for step in case["updates_done"]]
        assert rates == pytest.approx(case["lr"], rel=1e-12, abs=1e-19)
