"""Registers under load while their homes are killed, restarted and frozen."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from typing import Any

import pytest

from dstash import Client
from dstash.errors import TimedOut, Unavailable
from tests.harness.linearizability import UNKNOWN, Call, is_linearizable
from tests.harness.peers import Peers
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")

INDEX = "@faults"
KEYS = ("a", "b", "c")
KINDS = ("read", "put", "add", "swap", "increment", "increment", "delete")


class Callers:
    """Threads that call registers until they are stopped, and the history of each key."""

    def __init__(self, peers: Peers, threads: int = 4) -> None:
        self.histories: dict[str, list[Call]] = defaultdict(list)
        self._seeds = [peer.address for peer in peers.all.values()]
        self._end = threading.Event()
        self._begin = time.monotonic()
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(threads)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, calls: int) -> None:
        """Wait until that many more calls have returned."""
        goal = self.count + calls
        wait_until(lambda: self.count >= goal, 60, f"{calls} more calls have returned")

    @property
    def count(self) -> int:
        """How many calls have returned."""
        return sum(map(len, list(self.histories.values())))

    def _work(self, number: int) -> None:
        chance = random.Random(number)
        with Client(*self._seeds, timeout=15) as client:
            for step in range(10_000):
                if self._end.wait(0.03):  # the check takes long for long histories
                    return
                value = number * 10_000 + step
                self._call(client, chance.choice(KEYS), chance.choice(KINDS), value)

    def _call(self, client: Client, key: str, kind: str, value: int) -> None:
        began, answer = time.monotonic() - self._begin, None
        argument: Any = {"increment": 1, "read": None, "delete": None}.get(kind, value)
        try:
            answer = self._answer(client, key, kind, value)
        except TimedOut:
            answer = UNKNOWN
        except Unavailable:
            return  # nothing was changed
        ended = time.monotonic() - self._begin
        self.histories[key].append(Call(began, ended, kind, argument, answer))

    def _answer(self, client: Client, key: str, kind: str, value: int) -> Any:
        if kind == "read":
            return client.lookup(INDEX, key)
        if kind == "put":
            return client.put(INDEX, key, value)
        if kind == "add":
            return client.add(INDEX, key, value)
        if kind == "swap":
            return client.get_and_set(INDEX, key, value)
        if kind == "increment":
            return client.increment(INDEX, key)
        return client.delete(INDEX, key)


def home_of(peers: Peers, client: Client, key: str) -> Any:
    """Return the peer that clients ask for a key."""
    return peers[client.where(INDEX, key)["replicas"][0]["id"]]


def test_registers_stay_linearizable_while_homes_are_killed_and_frozen(own: Peers) -> None:
    client = own.client()
    client.put(INDEX, "counter", 0)
    with Callers(own) as callers, client.lock("job", ttl=20) as lock:
        callers.wait_for_more(30)
        killed = home_of(own, client, "a")
        killed.kill()
        callers.wait_for_more(30)
        killed.start()
        killed.wait_ready()
        callers.wait_for_more(10)
        frozen = home_of(own, client, "b")
        frozen.freeze()
        callers.wait_for_more(20)
        frozen.thaw()
        callers.wait_for_more(20)
        lock.check()
    for key, calls in callers.histories.items():
        assert is_linearizable(calls), (key, calls)
