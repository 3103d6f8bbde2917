"""The data loader: batches are in the order of the plan with any number of workers, and errors of workers."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from seqtk.data.batch import Batch
from seqtk.data.loader import load_batches, load_updates
from seqtk.data.plan import Position, updates
from seqtk.utils.errors import UserError
from tests.waiting import wait_until

BATCHES = [np.array(batch) for batch in ([4, 1], [0], [2, 3, 5], [6, 7], [8])]


class Squares:
    """A picklable dataset. Some examples raise an exception or end the process."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        assert type(index) is int
        if index == 97:
            os._exit(3)
        if index == 98:
            raise UserError("example 98 is missing", "make it")
        if index == 99:
            raise LookupError("example 99 is broken")
        return index * index


@dataclass(frozen=True)
class Values(Batch):
    values_B: Tensor


def collate(examples: list[int]) -> Values:
    return Values(torch.arange(len(examples)), len(examples), torch.tensor(examples))


def read(*batches: list[int], workers: int | None = 0) -> list[list[int]]:
    loaded = load_batches([np.array(batch) for batch in batches], Squares(), collate, workers=workers)
    return [batch.values_B.tolist() for batch in loaded]


class TestBatches:
    @pytest.mark.parametrize("workers", [0, 2, None])
    def test_batch_order_does_not_depend_on_workers(self, workers: int | None) -> None:
        before = torch.get_rng_state()
        assert read(*(batch.tolist() for batch in BATCHES), workers=workers) == [
            [16, 1],
            [0],
            [4, 9, 25],
            [36, 49],
            [64],
        ]
        assert torch.equal(before, torch.get_rng_state())

    @pytest.mark.parametrize("workers", [0, 2])
    def test_empty_plan_gives_no_batches(self, workers: int) -> None:
        assert read(workers=workers) == []

    def test_without_workers_no_batch_is_prefetched(self) -> None:
        loaded = load_batches([np.array([1]), np.array([99])], Squares(), collate)
        assert next(loaded).values_B.tolist() == [1]
        with pytest.raises(LookupError, match="99"):
            next(loaded)

    def test_batches_move_to_the_device(self) -> None:
        (batch,) = load_batches(BATCHES[:1], Squares(), collate, device=torch.device("meta"))
        assert batch.values_B.device.type == batch.ids_B.device.type == "meta"


class TestUpdates:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_micro_batches_follow_the_plan(self, workers: int) -> None:
        plan = updates(BATCHES, position=Position(1, 0), world=2, rank=1, update_freq=2)
        loaded = list(load_updates(plan, Squares(), collate, workers=workers))
        assert [update for update, _ in loaded] == plan
        assert [[batch.values_B.tolist() for batch in micro] for _, micro in loaded] == [[[0], [36, 49]], [[64], [64]]]
        assert [batch.weight for batch in loaded[1][1]] == [0, 0]

    def test_a_rank_without_examples_gets_empty_batches(self) -> None:
        plan = updates(BATCHES[:1], position=Position(1, 0), world=2, rank=1)
        ((_, micro_batches),) = load_updates(plan, Squares(), collate)
        assert [batch.weight for batch in micro_batches] == [0]


class TestFailures:
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_exception_has_the_traceback_of_the_worker(self) -> None:
        loaded = load_batches([np.array([1]), np.array([99])], Squares(), collate, workers=1)
        assert next(loaded).values_B.tolist() == [1]
        with pytest.raises(LookupError, match=r"(?s)in __getitem__.*example 99 is broken"):
            next(loaded)

    @pytest.mark.slow
    def test_user_error_in_a_worker_keeps_its_lines(self) -> None:
        with pytest.raises(UserError) as raised:
            read([98], workers=1)
        assert str(raised.value) == "example 98 is missing\nmake it"

    @pytest.mark.slow
    def test_exit_of_a_worker_raises_a_user_error(self) -> None:
        with pytest.raises(UserError, match=r"batch\.workers"):
            read([97], workers=1)

    def test_a_dataset_that_cannot_be_pickled_is_refused(self) -> None:
        dataset = {0: 1, "": (value for value in "ab")}
        with pytest.raises(UserError, match=r"batch\.workers=1.*\n.*generator"):
            next(load_batches([np.array([0])], dataset, collate, workers=1))  # type: ignore[arg-type]


DATASET = """
import os
import torch
from seqtk.data.batch import Batch

class Pids:
    def __getitem__(self, index): return os.getpid()

def collate(examples): return Batch(torch.tensor(examples), 1)
"""
SCRIPT = """
import time
import numpy as np
from pids import Pids, collate
from seqtk.data.loader import load_batches

loaded = load_batches([np.array([0])] * 10**4, Pids(), collate, workers=2)
print(next(loaded).ids_B.item(), next(loaded).ids_B.item(), flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_workers_end_when_the_main_process_is_killed(tmp_path: Path) -> None:
    """The script needs no `if __name__ == "__main__"`, because workers do not import it."""
    (tmp_path / "pids.py").write_text(DATASET)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(set(workers)) == 2
        assert all(map(alive, workers))
        process.kill()
    wait_until(lambda: not any(map(alive, workers)))
