"""The loader's order and the plan of an epoch."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from seqtk.data.loader import Loader, Position, Update, load_updates, updates

BATCHES = [np.array(batch) for batch in ([4, 1], [0], [2, 3, 5], [6, 7], [8])]


class Squares:
    """A dataset that can be pickled; example 99 cannot be read."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        assert type(index) is int
        if index == 99:
            raise LookupError("example 99 is broken")
        return index * index


@dataclass(frozen=True)
class Batch:
    values_B: torch.Tensor


def collate(examples: list[int]) -> Batch:
    return Batch(torch.tensor(examples))


def values(loader: Loader[int, Batch]) -> list[list[int]]:
    return [batch.values_B.tolist() for batch in loader]


def plan(**arguments: int) -> list[tuple[list[list[int] | None], int]]:
    examples = arguments.pop("examples", 0)
    made = updates(BATCHES, position=Position(3, examples), **arguments)
    assert all(update.position_after.epoch == 3 for update in made)
    return [([i if i is None else i.tolist() for i in u.indices], u.position_after.examples) for u in made]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_come_in_order_whoever_reads_them_and_no_random_number_is_drawn(num_workers: int) -> None:
    before = torch.get_rng_state()
    loader = Loader(Squares(), collate, BATCHES, num_workers=num_workers)
    assert len(loader) == 5
    assert values(loader) == [[16, 1], [0], [4, 9, 25], [36, 49], [64]]
    assert torch.equal(before, torch.get_rng_state())


def test_a_loader_can_be_iterated_again() -> None:
    loader = Loader(Squares(), collate, BATCHES)
    assert values(loader) == values(loader)


def test_reading_is_lazy_and_errors_come_from_where_they_are() -> None:
    loaded = iter(Loader(Squares(), collate, [np.array([1]), np.array([99])]))
    assert next(loaded).values_B.tolist() == [1]
    with pytest.raises(LookupError, match="99"):
        next(loaded)


def test_no_batches() -> None:
    assert values(Loader(Squares(), collate, [])) == []


def test_one_rank_takes_the_batches_one_by_one() -> None:
    assert plan() == [([[4, 1]], 2), ([[0]], 3), ([[2, 3, 5]], 6), ([[6, 7]], 8), ([[8]], 9)]


def test_micro_batches_go_round_the_ranks_and_end_in_none() -> None:
    assert plan(world=2, rank=0, update_freq=2) == [([[4, 1], [2, 3, 5]], 8), ([[8], None], 9)]
    assert plan(world=2, rank=1, update_freq=2) == [([[0], [6, 7]], 8), ([None, None], 9)]


def test_resuming_at_a_boundary_gives_the_rest() -> None:
    assert plan(update_freq=2, examples=3) == plan(update_freq=2)[1:]
    assert plan(examples=9) == []


def test_resuming_with_another_number_of_ranks_starts_after_what_was_consumed() -> None:
    """3 examples are one update of 2 ranks, and no boundary of updates of 3 batches."""
    assert plan(update_freq=3, examples=3) == [([[2, 3, 5], [6, 7], [8]], 9)]


def test_resuming_inside_a_batch_continues_it() -> None:
    assert plan(examples=5) == [([[5]], 6), ([[6, 7]], 8), ([[8]], 9)]


def test_no_updates_of_no_batches() -> None:
    assert updates([], position=Position(1, 0), world=2, rank=1) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_updates_come_with_their_batches(num_workers: int) -> None:
    made = updates(BATCHES, position=Position(1, 0), world=2, rank=1, update_freq=2)
    loaded = list(load_updates(made, Squares(), collate, num_workers=num_workers))
    assert [update for update, _ in loaded] == made
    read = [[batch if batch is None else batch.values_B.tolist() for batch in micro] for _, micro in loaded]
    assert read == [[[0], [36, 49]], [None, None]]


def test_an_update_says_where_it_leads() -> None:
    assert Update((None,), Position(2, 7)).position_after == Position(epoch=2, examples=7)


ENDLESS = """
import os, sys, time
import numpy as np
from seqtk.data.loader import Loader

class Pids:
    def __len__(self): return 10**6
    def __getitem__(self, index): return os.getpid()

def first(examples): return examples[0]

if __name__ == "__main__":
    loaded = iter(Loader(Pids(), first, [np.array([0])] * 10**4, num_workers=2))
    print(next(loaded), next(loaded), flush=True)
    time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_no_worker_outlives_a_training_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(set(workers)) == 2
        assert all(map(alive, workers))
        process.kill()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "workers are left"
        time.sleep(0.1)
