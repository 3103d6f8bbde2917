"""Where the processes of a run meet: a part of the store that no earlier start of them has used.

torchrun keeps one store while it starts processes again, so that a process could find the address of one that has ended
(https://github.com/pytorch/pytorch/issues/135712). Its count of restarts does not tell the starts apart: each host
counts its own.
"""

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from seqtk.utils.slurm import RUN_ID

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
    run = os.environ.get(RUN_ID) or os.environ.get("TORCHELASTIC_RUN_ID", "")
    return store, agreed_prefix(store, run, rank=rank, size=size, timeout=timeout)


def agreed_prefix(store: Store, run: str = "", *, rank: int, size: int, timeout: float) -> str:
    """Returns a prefix that all processes of this start get, and none of an earlier one. See `meet`.

    The first process numbers the start. It tells the number to each process under a name that only that process has.
    Processes of another `run`, which found this store by mistake, are not counted and get no prefix.
    """
    store.set_timeout(timedelta(seconds=timeout))
    root = f"seqtk/{run}"
    if rank == 0:
        number = store.add(f"{root}/starts", 1)
        _gather(store, root, number, size=size, timeout=timeout)
    else:
        name = uuid.uuid4().hex
        store.set(f"{root}/arrived/{rank}", name)
        number = int(store.get(f"{root}/start/{name}"))  # waits for it
        store.set(f"{root}/{number}/{rank}", "")
    return f"{root}/{number}"


def _gather(store: Store, root: str, number: int, *, size: int, timeout: float) -> None:
    """Tells every process that arrives the number of the start, until all have read it."""
    missing, told, end = list(range(1, size)), set(), time.monotonic() + timeout
    while missing := [rank for rank in missing if not store.check([f"{root}/{number}/{rank}"])]:
        if time.monotonic() > end:
            raise dist.DistStoreError(f"processes {', '.join(map(str, missing))} did not arrive in {timeout:g} seconds")
        for rank in missing:
            if store.check([f"{root}/arrived/{rank}"]):
                name = store.get(f"{root}/arrived/{rank}").decode()  # perhaps of an earlier start: nobody reads it then
                if name not in told:
                    told.add(name)
                    store.set(f"{root}/start/{name}", str(number))
        time.sleep(POLL)
