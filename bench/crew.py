"""Client processes that work in parallel, each with a client of every store."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

from bench import data
from bench.stores.store import Store

Connect = Callable[[], Store]

#: Processes of the largest crew.
MOST: Final = 16
#: The series of the looked-up keys.
KNOWN: Final = 900_000
_PATIENCE: Final = 120.0


class Job(NamedTuple):
    """The repeated work of a client process, and its duration in seconds."""

    store: int
    action: str
    keys: int
    value_bytes: int
    seconds: float


class Crew:
    """Processes that are started once, because starting takes longer than a measurement."""

    def __init__(self, connects: Sequence[Connect]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(MOST):
            pipe, other = spawn.Pipe()
            process = spawn.Process(target=work, args=(other, connects, number), daemon=True)
            process.start()
            other.close()
            self._pipes.append(pipe)
            self._processes.append(process)
        self.names: list[str] = [self._hear(pipe) for pipe in self._pipes].pop()

    def run(self, clients: int, job: Job, watch: Callable[[], None] | None = None) -> float:
        """Let this number of processes do a job in parallel; return their total keys a second.

        ``watch`` is called from time to time meanwhile.
        """
        for pipe in self._pipes[:clients]:
            pipe.send(job)
        until = time.monotonic() + job.seconds
        while watch is not None and time.monotonic() < until:
            watch()
            time.sleep(0.05)
        return float(sum(self._hear(pipe) for pipe in self._pipes[:clients]))

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(timeout=20)

    def _hear(self, pipe: Connection) -> Any:
        assert pipe.poll(_PATIENCE), "a client process does not answer"
        return pipe.recv()


def work(pipe: Connection, connects: Sequence[Connect], number: int) -> None:
    """Run a client process: connect to all stores, then do jobs until stopped."""
    stores = [connect() for connect in connects]
    pipe.send([store.name for store in stores])
    while (job := pipe.recv()) is not None:
        pipe.send(_do(stores[job.store], job, number))
    for store in stores:
        store.close()


def _do(store: Store, job: Job, number: int) -> float:
    pairs = data.pairs(KNOWN + number, job.keys, job.value_bytes)
    keys = data.shuffled(pairs)
    done = 0
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < job.seconds:
        if job.action == "put":
            store.put(pairs)
        else:
            store.get(keys)
        done += job.keys
    return done / spent
