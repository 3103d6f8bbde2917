"""Heartbeats. They end all processes of a run within seconds if a host becomes unreachable.

When a process ends, its connections are closed, and the other processes detect this. If a host loses its network or its
power, its connections stay open. Without heartbeats, the other processes would wait for `parallel.timeout`.
"""

import os
import sys
import threading

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

INTERVAL = 2.0
"""Seconds between two heartbeats."""
LIMIT = 18.0
"""A process is lost after this many seconds without a heartbeat. Time in which this process is suspended is not
counted."""
FINISHED = -(10**9)


class Heartbeat:
    """Sends heartbeats of this process to the store of the run, and monitors the heartbeats of the next rank.

    If the next rank sends no more heartbeats, this process records in the store that the rank is lost. All processes
    read this record. One thread communicates with the store, and may block if the host of the store is lost. A second
    thread ends this process if a process is lost or the store does not respond.

    Args:
        rank, size: The rank of this process, and the number of processes.
        host, port: The address of the store.
        prefix: The prefix of all keys of this start of the run in the store (see `seqtk.training.rendezvous`).
    """

    def __init__(self, *, rank: int, size: int, host: str, port: int, prefix: str) -> None:
        self.rank, self.next = rank, (rank + 1) % size
        self.address, self.prefix = (host, port), prefix
        self._done = threading.Event()
        self._answers = 0
        """The number of answers from the store."""
        self._lost: int | None = None
        self._beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._beating.start()
        threading.Thread(target=self._watch, name="heartbeat watch", daemon=True).start()

    def close(self) -> None:
        """Stops the heartbeats, and records in the store that this process has finished."""
        self._done.set()
        self._beating.join(INTERVAL)

    def _beat(self) -> None:
        try:
            host, port = self.address
            own = dist.TCPStore(host, port, is_master=False, wait_for_workers=False)  # type: ignore[attr-defined]
            store = PrefixStore(self.prefix, own)
            beats = silent = 0
            while not self._done.wait(INTERVAL):
                store.add(f"beats/{self.rank}", 1)
                now, before = store.add(f"beats/{self.next}", 0), beats
                beats, self._answers = now, self._answers + 1
                silent = silent + 1 if now == before and now >= 0 else 0
                if silent * INTERVAL > LIMIT:  # not a clock, which also runs while this process is suspended
                    store.compare_set("lost", "", str(self.next))
                if store.check(["lost"]):
                    self._lost = int(store.get("lost"))
                    return
            store.add(f"beats/{self.rank}", FINISHED)
        except RuntimeError:  # the store is closed: `_watch` ends this process unless the run is finished
            pass

    def _watch(self) -> None:
        answers = silent = 0
        while not self._done.wait(INTERVAL / 4):
            if self._lost is not None:
                break
            silent, answers = silent + 1 if answers == self._answers else 0, self._answers
            if silent * INTERVAL / 4 > LIMIT:
                self._lost = 0
                break
        else:
            return
        host = f"on {self.address[0]} " if self._lost == 0 else ""
        print(
            f"seqtk-train: Process {self._lost} {host}is lost: no heartbeat for {LIMIT:g} seconds. "
            f"Process {self.rank} ends.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # the main thread waits for the lost process, and cannot be interrupted
