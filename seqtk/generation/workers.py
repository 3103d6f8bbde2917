"""Decoding by several processes on one CPU, one thread each.

A decoder's products are too small for threads to share: two processes of one thread do more than one of two.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.multiprocessing

from seqtk.generation.decode import Decode, Decoder, Map, Sentence
from seqtk.generation.search import Hypothesis


@contextlib.contextmanager
def decoding_processes(decoder: Decoder, *, workers: int, prepare: Callable[[], None]) -> Iterator[Map]:
    """A `map` for batches of sentences that runs in `workers` processes, or in this one if there are none.

    Each process calls `prepare` first.
    """
    if workers == 0:
        prepare()
        yield map
        return
    # Spawned, because a process forked from one whose torch has threads can wait for ever for a lock of theirs.
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=_start, initargs=(decoder, prepare)) as pool:

        def pool_map(_: Decode, batches: Iterable[Sequence[Sentence]]) -> Iterable[list[list[Hypothesis]]]:
            return pool.imap(_decode, batches)

        yield pool_map


_decoder: Decoder | None = None


def _start(decoder: Decoder, prepare: Callable[[], None]) -> None:
    global _decoder
    prepare()
    torch.set_num_threads(1)
    _decoder = decoder


def _decode(batch: Sequence[Sentence]) -> list[list[Hypothesis]]:
    assert _decoder is not None
    return _decoder(batch)
