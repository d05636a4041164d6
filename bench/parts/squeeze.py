"""Part ``squeeze``: data of twice the memory limit of a peer, compared with an unlimited peer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Final

from bench import data
from bench.confinement import confined
from bench.lab import Lab
from bench.memory import MIB
from bench.parts.batches import timed
from bench.stores.dstash_store import INDEX, DStashCluster
from bench.work import Case, Work, use_time_slice
from dstash import Client
from dstash.wire.keys import Key

SQUEEZED: Final = "dstash N=3 quorum, memory limited"
PLENTY: Final = "dstash N=3 quorum, memory not limited"
VALUE_BYTES: Final = 1024
BATCH: Final = Work("lookup", 2000, VALUE_BYTES)
ONE: Final = Work("lookup, one caller", 1, VALUE_BYTES)
PUT: Final = Work("put", 2000, VALUE_BYTES)

_LIMIT: Final = 128 * MIB
_LIMIT_FULL: Final = 1024 * MIB
#: The smallest size of a record on disk: value, key and head.
_ON_DISK: Final = VALUE_BYTES + 100
_CALLS: Final = 100
_SERIES: Final = 700_000


def measure(lab: Lab, rounds: int) -> list[Case]:
    """Fill two clusters, one with limited memory, and alternate between them."""
    limit = _LIMIT_FULL if lab.full else _LIMIT
    records = 2 * limit // _ON_DISK
    with ExitStack() as stack:
        places = [stack.enter_context(confined(f"peer{number}", limit)) for number in range(3)]
        how = f"{limit // MIB} MiB for each peer by {places[0].how}, {records:,} records"
        lab.remarks.append(f"Data twice the memory allowed: {how}.")
        cases = []
        for name, confine in ((SQUEEZED, [place.confine for place in places]), (PLENTY, [])):
            cluster = stack.enter_context(DStashCluster(lab.folder / name, 3))
            lab.note(f"storing {records:,} records of 1 KiB: {name}")
            _fill(cluster, records)
            cluster.restart_cold(confine)
            client = stack.enter_context(Client(*cluster.addresses, timeout=120))
            cases += _cases(client, name, records)
        return list(use_time_slice(cases, rounds, lab.note))


def _fill(cluster: DStashCluster, records: int) -> None:
    with Client(*cluster.addresses, write="all", timeout=120) as client:
        for pairs in data.chunks(_SERIES, records, VALUE_BYTES):
            client.batch_put(INDEX, pairs)


def _cases(client: Client, name: str, records: int) -> list[Case]:
    def keys(count: int) -> list[str]:
        return [data.key(_SERIES, number) for number in data.scattered(count, records)]

    return [
        Case(BATCH, name, lambda: _batch(client, keys(BATCH.keys))),
        Case(ONE, name, lambda: _ones(client, keys(_CALLS))),
        Case(PUT, name, partial(_put, client)),
    ]


def _batch(client: Client, keys: list[str]) -> float:
    found: list[Mapping[Key, bytes]] = []
    seconds = timed(lambda: found.append(client.batch_lookup(INDEX, keys)))
    assert all(found[0][key] == data.value(key, VALUE_BYTES) for key in keys), "wrong answer"
    return seconds


def _ones(client: Client, keys: list[str]) -> float:
    return median(timed(partial(client.lookup, INDEX, key)) for key in keys)


def _put(client: Client) -> float:
    pairs = data.fresh(PUT.keys, VALUE_BYTES)
    return timed(lambda: client.batch_put(INDEX, pairs))
