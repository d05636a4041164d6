"""Part ``growth``: the same look-ups with a growing number of records, and the cost of a peer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

from bench import data, memory
from bench.lab import Lab
from bench.parts.batches import KEYS, VALUE_BYTES, timed
from bench.stores.dstash_store import INDEX, DStashCluster
from bench.work import Case, Unit, Work, known, use_time_slice
from dstash import Client
from dstash.wire.keys import Key

STORE: Final = "dstash N=3 one"
SMALL: Final = 100_000
MIDDLE: Final = 1_000_000
LARGE: Final = 10_000_000
_SERIES: Final = 800_000


def lookup(records: int) -> Work:
    """Return the name of a look-up with this number of records on every peer."""
    return Work("lookup", KEYS, VALUE_BYTES, records=records)


def private(records: int) -> Work:
    """Return the name of the memory of a peer with this number of records."""
    return Work("private memory", records=records)


def start(records: int) -> Work:
    """Return the name of the start of a peer with this number of records."""
    return Work("start", records=records)


def measure(lab: Lab, rounds: int) -> list[Case]:
    """Measure look-ups, alternating between clusters of different sizes, then memory and starts."""
    sizes = (SMALL, MIDDLE, LARGE) if lab.full else (SMALL, MIDDLE)
    clusters = {records: _filled(lab, records) for records in sizes}
    clients = {
        records: lab.entered(Client(*cluster.addresses, read="one", timeout=120))
        for records, cluster in clusters.items()
    }
    cases = [
        Case(lookup(records), STORE, partial(_look_up, clients[records], records))
        for records in sizes
    ]
    measured = list(use_time_slice(cases, rounds, lab.note))
    for records, cluster in clusters.items():
        measured += _costs(cluster, records)
        cluster.stop()
    return measured


def _filled(lab: Lab, records: int) -> DStashCluster:
    cluster = lab.started(DStashCluster(lab.folder / f"dstash-{records}", 3))
    lab.note(f"storing {records:,} records")
    with Client(*cluster.addresses, write="all", timeout=120) as client:
        for pairs in data.chunks(_SERIES, records, VALUE_BYTES):
            client.batch_put(INDEX, pairs)
    return cluster


def _look_up(client: Client, records: int) -> float:
    step = records // KEYS
    keys = [data.key(_SERIES, number) for number in range(0, records, step)]
    found: list[Mapping[Key, bytes]] = []
    seconds = timed(lambda: found.append(client.batch_lookup(INDEX, keys)))
    assert len(found[0]) == len(keys), "a record is missing"
    return seconds


def _costs(cluster: DStashCluster, records: int) -> list[Case]:
    loaded = memory.largest(cluster)
    starts = [cluster.restart_seconds(number) for number in list(cluster.peers)]
    fresh = memory.largest(cluster)
    return [
        known(private(records), "after storing them", Unit.BYTES, [loaded]),
        known(private(records), "restarted", Unit.BYTES, [fresh]),
        known(start(records), STORE, Unit.SECONDS, starts),
    ]
