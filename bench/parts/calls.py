"""Part ``calls``: the cost of a call with one key, in total and on each side.

The stages are dstash's own functions, run in a loop in this process, where code and data are in the
processor's caches: their time is the necessary work. The rest of a call, beyond this work and the
echo, is waiting and cache misses.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Self

from bench import data
from bench.lab import Lab
from bench.parts import batches, registers, singles
from bench.parts.registers import ADD_NEW, SET_OWN
from bench.parts.singles import CONCURRENT, DURABLE, ONE, PUT_ONE, THREADS
from bench.parts.stages import CLIENT, SERVERS, WALL
from bench.stores.servers import Server, processor_seconds
from bench.work import Case, Unit, Work, known, use_time_slice
from dstash.client.operations.short.lookup import ShortLookup
from dstash.client.session import Send
from dstash.peer.assembly import Settings
from dstash.peer.core import PeerCore
from dstash.store.lmdb import LmdbStore
from dstash.types import Durability, Level
from dstash.wire.keys import encode_key
from tests.harness.joined import TYPES, Joined

STAGES: Final = (
    "client: make the request",
    "peer: read it, look the key up, make the answer",
    "client: read the answer",
)
STAGE: Final = Work("stage of a call", 1, batches.VALUE_BYTES)

_LOOP: Final = 1000
#: Peers are quiet when they have used less than this share of a core for so many spans in a row:
#: longer than the time between two comparisons.
_SPAN_SECONDS: Final = 2.0
_QUIET_SPANS: Final = 8
_QUIET_SHARE: Final = 0.2
_MAX_SPANS: Final = 150
_CALLS: Final = {
    ONE: singles.CALLS,
    CONCURRENT: singles.CONCURRENT_CALLS,
    DURABLE: singles.DURABLE_CALLS,
    PUT_ONE: singles.PUT_CALLS,
    THREADS: 2 * singles.THREAD_CALLS,  # half of them before the clock starts
    SET_OWN: registers.SET_CALLS,
    ADD_NEW: registers.SET_CALLS,
}
_SHOWN: Final = ("echo", "redis", "etcd", "dstash N=1", "dstash N=3 one", "dstash N=3 quorum")


def share(work: Work, name: str) -> Work:
    """Return the name of the cost of a call."""
    return work._replace(action=f"{work.action}: {name}")


def measure(lab: Lab, rounds: int) -> list[Case]:
    """Measure the stages in a loop, then the cost of whole calls."""
    bench = lab.entered(_Stages(lab.folder / "call-stages"))
    cases = [Case(STAGE, name, take) for name, take in bench.stages()]
    measured = list(use_time_slice(cases, rounds, lab.note))
    with (
        asyncio.Runner() as runner,
        singles.callers(lab, runner) as singly,
        registers.callers(lab, runner) as atomic,
    ):
        whole = [*singly, *(case for case in atomic if case.work in _CALLS)]
        costs = [_Costs(case, _servers(lab, case)) for case in whole if case.store in _SHOWN]
        _await_quiet(lab)
        for number in range(rounds + 1):
            lab.note(f"calls, round {number} of {rounds}" if number else "calls, warming up")
            for cost in costs:
                cost.take(counts=number > 0)
    return measured + [case for cost in costs for case in cost.cases()]


def _await_quiet(lab: Lab) -> None:
    """Wait until peers have compared what was stored: this would count as the cost of calls.

    Raises:
        AssertionError: they are busy for minutes.
    """
    servers = [*lab.one_copy.servers, *lab.three_copies.servers]
    quiet = 0
    for _ in range(_MAX_SPANS):
        worked = processor_seconds(servers)
        time.sleep(_SPAN_SECONDS)
        share = (processor_seconds(servers) - worked) / _SPAN_SECONDS
        quiet = quiet + 1 if share < _QUIET_SHARE else 0
        if quiet == _QUIET_SPANS:
            return
    raise AssertionError("the peers do not become quiet")


def _servers(lab: Lab, case: Case) -> Sequence[Server]:
    if case.store == "dstash N=1":
        return lab.one_copy.servers
    if case.store.startswith("dstash"):
        return lab.three_copies.servers
    others = {"echo": lab.echo.servers, "redis": lab.redis.servers, "etcd": lab.etcd.servers}
    return others[case.store]


class _Costs:
    """The cost of a call of one case: elapsed, client and server time."""

    def __init__(self, case: Case, servers: Sequence[Server]) -> None:
        self._case = case
        self._servers = servers
        self._samples: dict[str, list[float]] = {WALL: [], CLIENT: [], SERVERS: []}

    def take(self, *, counts: bool) -> None:
        """Take a sample."""
        calls = _CALLS[self._case.work]
        client, served = time.process_time(), processor_seconds(self._servers)
        taken = self._case.take()
        wall = 1 / taken if self._case.unit is Unit.RATE else taken
        client = (time.process_time() - client) / calls
        served = (processor_seconds(self._servers) - served) / calls
        if counts:
            for name, sample in zip(self._samples, (wall, client, served), strict=True):
                self._samples[name].append(sample)

    def cases(self) -> Iterator[Case]:
        """Yield the measured cases."""
        for name, samples in self._samples.items():
            yield known(share(self._case.work, name), self._case.store, Unit.SECONDS, samples)


class _Stages:
    """A client and a peer with LMDB in this process, without a network."""

    def __init__(self, folder: Path) -> None:
        self._joined = joined = Joined("a", replicas=1)
        self._store = LmdbStore(folder, Durability.NONE)
        self._peer = PeerCore(Settings("a", "c"), self._store, joined.now - 1000)
        self._peer.health.not_ready = None
        joined.peers = {"a": self._peer}
        joined.stores = {"a": self._store}  # type: ignore[dict-item]  # used as a store only
        joined.install(joined.topology)
        joined.settle()
        pairs = data.fresh(_LOOP, batches.VALUE_BYTES)
        joined.put(pairs)
        self._keys = data.shuffled(pairs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._store.close()

    def stages(self) -> Iterator[tuple[str, Callable[[], float]]]:
        """Yield each stage with a function that takes a sample (seconds a call)."""
        yield STAGES[0], lambda: self._each(lambda: [self._ask(key) for key in self._keys])
        yield STAGES[1], self._answer
        yield STAGES[2], self._read

    def _ask(self, key: str) -> tuple[ShortLookup, Send]:
        session, now = self._joined.session, self._joined.now
        call = ShortLookup(
            session, now + 60_000, "i", key, encode_key(key), Level.ONE, TYPES.decode_values
        )
        (send,) = call.more(now)
        return call, send

    def _each(self, action: Callable[[], object]) -> float:
        return batches.timed(action) / _LOOP

    def _answer(self) -> float:
        requests = [send.frames for _, send in map(self._ask, self._keys)]
        return self._each(partial(self._answered, requests))

    def _answered(self, requests: Sequence[list[bytes]]) -> list[list[bytes]]:
        receive, now = self._peer.receive, self._joined.now
        return [receive(b"client", frames, now)[0].frames for frames in requests]

    def _read(self) -> float:
        asked = [self._ask(key) for key in self._keys]
        answers = self._answered([send.frames for _, send in asked])
        now = self._joined.now

        def read() -> None:
            for (call, _), frames in zip(asked, answers, strict=True):
                assert call.receive_frames("a", frames, now) == []
                assert len(call.result()) == 1

        return self._each(read)
