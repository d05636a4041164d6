"""Part ``clients``: 1 to 16 client processes in parallel, and the memory of a peer under load."""

from __future__ import annotations

from functools import partial
from typing import Final

from bench import data, memory
from bench.crew import KNOWN, MOST, Job
from bench.lab import Lab
from bench.parts.batches import VALUE_BYTES
from bench.work import Case, Unit, Work, known, use_time_slice

COUNTS: Final = (1, 2, 4, 8, MOST)
KEYS: Final = 100
FULL_LOAD: Final = Work("private memory under full load", clients=MOST)

_SECONDS: Final = 1.0
_STORES: Final = ("redis", "redis cluster", "memcached", "dstash N=3 one", "dstash N=3 quorum")
#: A load that reaches the limits of a peer: batches of 1 KiB values, alternately put and looked up.
_LOADS: Final = tuple(Job(4, action, 1000, 1024, 3.0) for action in ("put", "get", "put", "get"))


def lookups(clients: int) -> Work:
    """Return the name of look-ups by several clients."""
    return Work("keys looked up, batches of", KEYS, VALUE_BYTES, clients)


def measure(lab: Lab, rounds: int) -> list[Case]:
    """Measure the total keys a second of all clients."""
    for name in _STORES:
        for number in range(MOST):
            lab.stores[name].fill(data.pairs(KNOWN + number, KEYS, VALUE_BYTES))
    assert tuple(lab.crew.names) == _STORES
    cases = [
        Case(lookups(count), name, partial(_lookups, lab, count, place), Unit.RATE)
        for count in COUNTS
        for place, name in enumerate(_STORES)
    ]
    return [*use_time_slice(cases, min(rounds, 3), lab.note), _full_load(lab)]


def _lookups(lab: Lab, clients: int, place: int) -> float:
    return lab.crew.run(clients, Job(place, "get", KEYS, VALUE_BYTES, _SECONDS))


def _full_load(lab: Lab) -> Case:
    lab.note("full load")
    most: list[float] = []
    for job in _LOADS:
        lab.crew.run(MOST, job, lambda: most.append(memory.largest(lab.three_copies)))
    return known(FULL_LOAD, "dstash N=3 quorum", Unit.BYTES, [max(most)])
