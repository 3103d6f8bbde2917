"""Ends a process within seconds when another host of its run vanishes.

A process that ends closes its connections, and all others notice. A host that loses its network or its power closes
nothing, and the others would wait until `parallel.timeout`.
"""

import os
import sys
import threading

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

INTERVAL = 2.0
"""Seconds between two beats."""
LIMIT = 18.0
"""Seconds without one after which a process counts as lost, in which this process was not suspended itself."""
FINISHED = -(10**9)


class Heartbeat:
    """Counts beats of this process in the store of the run, and watches those of the next one.

    A process that misses beats of the next one tells all others by the store. One thread talks to the store, which does
    not answer if its host has vanished. Another one ends this process.

    Args:
        rank, size: This process, and their number.
        host, port: The store of the run.
        prefix: Where its keys of this start are.
    """

    def __init__(self, *, rank: int, size: int, host: str, port: int, prefix: str) -> None:
        self.rank, self.next = rank, (rank + 1) % size
        self.address, self.prefix = (host, port), prefix
        self._done = threading.Event()
        self._answers = 0
        """How often the store has answered."""
        self._lost: int | None = None
        self._beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._beating.start()
        threading.Thread(target=self._watch, name="heartbeat watch", daemon=True).start()

    def close(self) -> None:
        """Stops, and lets the others know that this process has finished."""
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
                if silent * INTERVAL > LIMIT:  # no clock, which would run on while this process is suspended
                    store.compare_set("lost", "", str(self.next))
                if store.check(["lost"]):
                    self._lost = int(store.get("lost"))
                    return
            store.add(f"beats/{self.rank}", FINISHED)
        except RuntimeError:  # the store has ended: so does this process, unless the run is over
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
        place = f"on {self.address[0]} " if self._lost == 0 else ""
        print(
            f"seqtk-train: Process {self._lost} {place}has vanished: no sign of it for {LIMIT:g} seconds, and so "
            f"process {self.rank} ends.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # the main thread waits for that process, and nothing can interrupt it
