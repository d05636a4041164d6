"""A steady mixed load that knows the expected data and checks every answer."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from dstash import Client, DStashError

INDEX = "load"
_KEYS = 300
#: Keys of one batch.
_TOGETHER = 50
_NUMBERS = itertools.count(1)
#: Without a pause, three threads use all cores, at the expense of peers and other tests. ``make
#: soak`` does that, which also requires a rate. With this pause, a load takes an eighth of a core.
_PAUSE = 0.0 if int(os.environ.get("SOAK", "1")) > 1 else 0.06


@dataclass
class _Worker:
    """One thread, the only writer of its keys, so that it knows the value of each."""

    name: str
    expected: dict[str, str | None] = field(default_factory=dict)
    operations: int = 0
    keys: int = 0

    def key(self, rng: random.Random) -> str:
        return f"{self.name}-{rng.randrange(_KEYS)}"


class Load:
    """Threads that put, look up and delete through one client until they are stopped.

    Args:
        client: shared by the threads.
        threads: their number.
        pause: seconds that each thread waits after a call.
    """

    def __init__(self, client: Client, threads: int = 3, pause: float = _PAUSE) -> None:
        self.client = client
        self.errors: list[str] = []
        self.slowest = 0.0
        self._began = self._ended = 0.0
        self._pause = pause
        self._stop = threading.Event()
        #: Loads share no key, because a cluster may have several.
        number = next(_NUMBERS)
        self._workers = [_Worker(f"l{number}w{worker}") for worker in range(threads)]
        self._threads = [
            threading.Thread(target=self._run, args=(worker,), daemon=True)
            for worker in self._workers
        ]

    @property
    def rate(self) -> float:
        """Keys put, looked up or deleted per second."""
        return sum(worker.keys for worker in self._workers) / (self._ended - self._began)

    @property
    def operations(self) -> int:
        """The number of calls that returned."""
        return sum(worker.operations for worker in self._workers)

    def __enter__(self) -> Load:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)
        self._ended = self._ended or time.monotonic()

    def check(self, client: Client) -> None:
        """Stop, and read everything at level ALL: acked values and deleted keys."""
        self.__exit__()
        assert not self.errors, self.errors[:5]
        assert self.operations > 0
        for worker in self._workers:
            keys = list(worker.expected)
            found = client.batch_lookup(INDEX, keys, read="all", timeout=60)
            wrong = {
                key: (worker.expected[key], found.get(key))
                for key in keys
                if found.get(key) != worker.expected[key]
            }
            assert not wrong, f"expected, found: {list(wrong.items())[:5]} and {len(wrong)} in all"

    def _run(self, worker: _Worker) -> None:
        rng = random.Random(worker.name)
        while not self._stop.is_set() and len(self.errors) < 100:
            began = time.monotonic()
            try:
                rng.choice((self._put, self._put_some, self._get, self._get_some, self._delete))(
                    worker, rng
                )
            except DStashError as error:
                self.errors.append(f"{type(error).__name__}: {error}")
                return  # the value of the key is unknown now: this thread cannot check it any more
            worker.operations += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
            time.sleep(self._pause)

    def _put(self, worker: _Worker, rng: random.Random) -> None:
        key, value = worker.key(rng), _value(rng)
        self.client.put(INDEX, key, value)
        worker.keys += 1
        worker.expected[key] = value

    def _put_some(self, worker: _Worker, rng: random.Random) -> None:
        batch = {worker.key(rng): _value(rng) for _ in range(_TOGETHER)}
        self.client.batch_put(INDEX, batch).raise_for_failures()
        worker.expected.update(batch)
        worker.keys += len(batch)

    def _delete(self, worker: _Worker, rng: random.Random) -> None:
        key = worker.key(rng)
        self.client.delete(INDEX, key)
        worker.keys += 1
        worker.expected[key] = None

    def _get(self, worker: _Worker, rng: random.Random) -> None:
        self._compare(worker, [worker.key(rng)])

    def _get_some(self, worker: _Worker, rng: random.Random) -> None:
        self._compare(worker, [worker.key(rng) for _ in range(_TOGETHER)])

    def _compare(self, worker: _Worker, keys: Sequence[str]) -> None:
        found = self.client.batch_lookup(INDEX, keys)
        worker.keys += len(keys)
        for key in keys:
            if found.get(key) != worker.expected.get(key):
                self.errors.append(f"{key} is {found.get(key)}, not {worker.expected.get(key)}")


def _value(rng: random.Random) -> str:
    return f"{rng.getrandbits(64):x}" * rng.randrange(1, 20)
