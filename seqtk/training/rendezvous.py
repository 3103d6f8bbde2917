"""Where the processes of a run meet: a part of the store that no earlier start of them has used.

torchrun keeps one store while it starts processes again, so that a process could find the address of one that has ended
(https://github.com/pytorch/pytorch/issues/135712). Its count of restarts does not tell the starts apart: each host
counts its own.
"""

import time
import uuid
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

POLL = 0.02
"""Seconds between two looks of the first process at who has arrived."""


def meet(*, rank: int, size: int, timeout: float) -> tuple[Store, str]:
    """Returns the store of the run and the prefix of this start's keys, when all processes have arrived. Collective.

    Args:
        rank, size: This process, and their number.
        timeout: Seconds to wait for the others.

    Raises:
        DistStoreError: If a process does not arrive.
    """
    store: Store = next(rendezvous("env://", rank, size, timeout=timedelta(seconds=timeout)))[0]
    return store, agreed_prefix(store, rank=rank, size=size, timeout=timeout)


def agreed_prefix(store: Store, *, rank: int, size: int, timeout: float) -> str:
    """Returns a prefix that all processes of this start get, and none of an earlier one. See `meet`.

    The first process numbers the start. It tells the number to each process under a name that only that process has.
    """
    store.set_timeout(timedelta(seconds=timeout))
    if rank == 0:
        number = store.add("seqtk/starts", 1)
        _gather(store, number, size=size, timeout=timeout)
    else:
        name = uuid.uuid4().hex
        store.set(f"seqtk/arrived/{rank}", name)
        number = int(store.get(f"seqtk/start/{name}"))  # waits for it
        store.set(f"seqtk/{number}/{rank}", "")
    return f"seqtk/{number}"


def _gather(store: Store, number: int, *, size: int, timeout: float) -> None:
    """Tells every process that arrives the number of the start, until all have read it."""
    missing, told, end = list(range(1, size)), set(), time.monotonic() + timeout
    while missing := [rank for rank in missing if not store.check([f"seqtk/{number}/{rank}"])]:
        if time.monotonic() > end:
            raise dist.DistStoreError(f"processes {', '.join(map(str, missing))} did not arrive in {timeout:g} seconds")
        for rank in missing:
            if store.check([f"seqtk/arrived/{rank}"]):
                name = store.get(f"seqtk/arrived/{rank}").decode()  # perhaps of an earlier start: nobody reads it then
                if name not in told:
                    told.add(name)
                    store.set(f"seqtk/start/{name}", str(number))
        time.sleep(POLL)
