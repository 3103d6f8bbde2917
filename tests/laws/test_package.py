"""Tests of `run_laws` with the layer of a plug-in and without pytest, and of the docs page of the laws."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seqtk.attention import Attention, AttentionConfig, Role, attentions
from seqtk.testing.laws import law_cases, run_laws
from seqtk.testing.reference import Array, Problem
from seqtk.testing.subject import Variant
from seqtk.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class MeanConfig(AttentionConfig):
    """Config of the running mean."""

    dropout: float = 0.0
    bias: bool = True


class MeanAttention(Attention):
    """The running mean of the inputs: y_t = out(mean of x_s over s <= t)."""

    roles = Role.CAUSAL

    def __init__(self, config: MeanConfig, *, dim: int, role: Role, memory_dim: int | None = None) -> None:
        super().__init__(config, dim=dim, role=role, memory_dim=memory_dim)
        self.drop = nn.Dropout(config.dropout)
        self.out = nn.Linear(dim, dim, bias=config.bias)

    def forward(
        self, x_BTD: Tensor, memory_BSM: Tensor | None = None, *, pad_BS: Tensor | None = None, state: Any = None
    ) -> tuple[Tensor, Any]:
        if pad_BS is not None:
            x_BTD = x_BTD.masked_fill(pad_BS[..., None], 0)
        count_T1 = torch.arange(1, x_BTD.shape[1] + 1, device=x_BTD.device)[:, None]
        return self.out(self.drop(x_BTD).cumsum(1) / count_T1), None


def mean(problem: Problem) -> Array:
    y_BTD = np.zeros_like(problem.x_BTD)
    for row, x_TD in enumerate(problem.x_BTD):
        for t in range(len(x_TD)):
            y_BTD[row, t] = problem.linear("out", np.mean(x_TD[: t + 1], axis=0))
    return y_BTD


@pytest.fixture
def running_mean() -> Iterator[str]:
    """Registers the running mean for one test, and returns its name."""
    attentions.register("running_mean", MeanConfig)(MeanAttention)
    yield "running_mean"
    attentions._classes.pop(attentions._config_types.pop("running_mean"))


class TestRunLaws:
    def test_correct_layer_passes(self, running_mean: str) -> None:
        variants = {"": {}, "no-bias": Variant({"bias": False}, sizes=("short",))}
        assert run_laws(running_mean, oracle=mean, variants=variants) > 40

    def test_error_names_layer_and_law(self, running_mean: str) -> None:
        with pytest.raises(AssertionError) as broken:
            run_laws(running_mean, oracle=lambda problem: 2 * mean(problem), sizes=("short",))
        first, *rest = str(broken.value).splitlines()
        assert first.startswith("1 of ")
        assert rest[0].startswith("running_mean (causal, short), law equals_the_reference: outputs differ")

    def test_exceptions_of_the_layer_are_listed(self, running_mean: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(self: MeanAttention, x_B1D: Tensor, state: Any) -> Any:
            raise IndexError("no such row")

        monkeypatch.setattr(MeanAttention, "step", fail)
        with pytest.raises(AssertionError) as broken:
            run_laws(running_mean, oracle=lambda problem: 2 * mean(problem), sizes=("short",))
        lines = str(broken.value).splitlines()
        assert "running_mean (causal, short), law stepping_equals_the_parallel_form: IndexError: no such row" in lines
        assert any("law equals_the_reference" in line for line in lines)
        assert isinstance(broken.value.__cause__, IndexError)

    def test_error_explains_that_dropout_is_ignored(self, running_mean: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)
        with pytest.raises(AssertionError, match="has a 'dropout' setting but ignores it"):
            run_laws(running_mean, oracle=mean)

    def test_sizes_and_oracle_are_optional(self, running_mean: str) -> None:
        cases = law_cases(running_mean, sizes=("short",))
        assert {case.subject.size.name for case in cases} == {"short"}
        assert "equals_the_reference" not in {case.law.name for case in cases}

    def test_unknown_names_are_user_errors(self, running_mean: str) -> None:
        with pytest.raises(UserError, match="runing_mean"):
            run_laws("runing_mean")
        with pytest.raises(UserError, match="shrt"):
            law_cases("softmax", sizes=["shrt"])
        with pytest.raises(UserError, match="biass"):
            run_laws(running_mean, variants={"": {"biass": False}})


@pytest.mark.slow
def test_laws_run_without_pytest() -> None:
    without_pytest = "import sys; sys.modules['pytest'] = None; "
    code = "from seqtk.testing.laws import run_laws; run_laws('fnet', sizes=['short'])"
    assert subprocess.run([sys.executable, "-c", without_pytest + code], check=False, cwd="/").returncode == 0


def test_laws_page_in_docs_is_current() -> None:
    command = [sys.executable, "tools/law_matrix.py", "--check"]
    assert subprocess.run(command, check=False, cwd=ROOT).returncode == 0
