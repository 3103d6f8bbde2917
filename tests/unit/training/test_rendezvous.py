"""After a restart by torchrun, the processes connect to each other, and not to processes of an earlier start."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from seqtk.training.rendezvous import agreed_prefix

SIZE = 3


def start(store: dist.HashStore, ranks: range, *, timeout: float = 20) -> list[str]:
    """Starts the processes `ranks`, as threads. Returns the store prefix of each process."""
    with ThreadPoolExecutor(SIZE) as pool:
        return list(pool.map(lambda rank: agreed_prefix(store, rank=rank, size=SIZE, timeout=timeout), ranks))


def test_each_restart_has_a_different_store_prefix() -> None:
    store = dist.HashStore()
    prefixes = [start(store, range(SIZE)) for _ in range(4)]
    assert [len(set(each)) for each in prefixes] == [1] * 4
    assert len({each[0] for each in prefixes}) == 4


def test_start_after_an_incomplete_start_succeeds() -> None:
    store = dist.HashStore()
    for ranks in (range(1, SIZE), range(2)):  # without the first process, and without the last
        with pytest.raises(dist.DistError):
            start(store, ranks, timeout=0.5)
    assert len(set(start(store, range(SIZE)))) == 1


def test_processes_of_a_different_run_are_not_counted() -> None:
    store = dist.HashStore()
    with ThreadPoolExecutor(SIZE) as pool:
        stranger = pool.submit(agreed_prefix, store, "7.1", rank=1, size=2, timeout=2)
        own = [pool.submit(agreed_prefix, store, "7.0", rank=rank, size=2, timeout=20) for rank in (1, 0)]
        assert len({each.result() for each in own}) == 1
        with pytest.raises(dist.DistError):
            stranger.result()
