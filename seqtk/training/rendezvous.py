"""Rendezvous: all processes of a run agree on a prefix for their keys in the store. Each restart has a new prefix.

torchrun keeps the same store when it restarts processes, so a process could read the address of an ended process
(https://github.com/pytorch/pytorch/issues/135712). torchrun's count of restarts cannot be used as a prefix, because
each host counts separately.
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
"""Seconds after which the first process checks again if new processes have arrived."""


def meet(*, rank: int, size: int, timeout: float) -> tuple[Store, str]:
    """Waits for all processes. Returns (the store of the run, the prefix of all keys of this start). Collective.

    Args:
        rank, size: The rank of this process, and the number of processes.
        timeout: Maximum number of seconds to wait.

    Raises:
        DistStoreError: If a process does not connect in time.
    """
    store: Store = next(rendezvous("env://", rank, size, timeout=timedelta(seconds=timeout)))[0]
    run = os.environ.get(RUN_ID) or os.environ.get("TORCHELASTIC_RUN_ID", "")
    return store, agreed_prefix(store, run, rank=rank, size=size, timeout=timeout)


def agreed_prefix(store: Store, run: str = "", *, rank: int, size: int, timeout: float) -> str:
    """Returns a prefix that is the same in all processes of this start, and different at each start.

    The first process counts the starts. Each other process stores a unique name, and the first process answers with the
    number of the start, stored under this name. See `meet`. Processes of a different `run` that use this store by
    mistake are not counted and get no prefix.
    """
    store.set_timeout(timedelta(seconds=timeout))
    root = f"seqtk/{run}"
    if rank == 0:
        number = store.add(f"{root}/starts", 1)
        _answer(store, root, number, size=size, timeout=timeout)
    else:
        name = uuid.uuid4().hex
        store.set(f"{root}/arrived/{rank}", name)
        number = int(store.get(f"{root}/start/{name}"))  # waits for the answer
        store.set(f"{root}/{number}/{rank}", "")
    return f"{root}/{number}"


def _answer(store: Store, root: str, number: int, *, size: int, timeout: float) -> None:
    """Sends the number of the start to each process that has stored a name, until all processes have read it."""
    missing, answered, end = list(range(1, size)), set(), time.monotonic() + timeout
    while missing := [rank for rank in missing if not store.check([f"{root}/{number}/{rank}"])]:
        if time.monotonic() > end:
            raise dist.DistStoreError(
                f"No connection from rank {', '.join(map(str, missing))} within {timeout:g} seconds."
            )
        for rank in missing:
            if store.check([f"{root}/arrived/{rank}"]):
                name = store.get(
                    f"{root}/arrived/{rank}"
                ).decode()  # this may be a name from an earlier start, which has no effect
                if name not in answered:
                    answered.add(name)
                    store.set(f"{root}/start/{name}", str(number))
        time.sleep(POLL)
