"""The sums of a log interval that a resumed run continues."""

import pytest
import torch

from seqtk.training.interval import Interval, interval_values


@pytest.mark.parametrize("stored", [{"loss/weight": 10.0}, {}])  # seqtk 0.1 stored no weights of statistics
def test_statistic_of_a_changed_criterion_starts_at_zero(stored: dict[str, float]) -> None:
    before = {"norm": 1.0, "loss": 30.0, "weight": 10.0, "updates": 1.0, **stored}
    interval = Interval(torch.device("cpu"), before=before)
    names, values = ("norm", "loss", "loss/weight", "hits", "hits/weight"), torch.tensor([1.0, 50.0, 10.0, 8.0, 10.0])
    interval.judge(values.double())
    interval.add(names, values.double(), weight=10.0)
    read = interval.read()
    assert read is not None
    logged = interval_values({**read.sums, "seconds": 1.0}, ["loss"], unit="tokens", lr=0.1)
    assert (logged["loss"], logged["hits"]) == (4.0, 0.8)
