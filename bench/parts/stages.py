"""Part ``stages``: the time of a batch by stage and by process.

The stages are dstash's own functions, run in sequence in this process on a separate store: their
sum is the time that one core needs, a lower bound for any arrangement of processes and messages.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from bench import data
from bench.lab import Lab
from bench.parts import batches
from bench.stores.servers import Server, processor_seconds
from bench.work import Case, Unit, Work, known, use_time_slice
from dstash import loops
from dstash.client.operations.reads import PARTITIONS_PER_BAND
from dstash.client.routing import Table, sort_places
from dstash.limits import PARTITIONS
from dstash.peer.admission.requests import Ticket
from dstash.peer.admission.writes import WaitingWrite
from dstash.peer.commits.commit import Commit
from dstash.peer.commits.rules import Rules
from dstash.peer.reads import look_up
from dstash.store.lmdb import LmdbStore
from dstash.store.record import Keyspace, keyspace
from dstash.store.sealing import locate
from dstash.types import Durability
from dstash.version import pack, stamp_at
from dstash.wire import codec
from dstash.wire.keys import as_encoded, encode_keys
from dstash.wire.messages import Put, Want
from dstash.wire.shapes import Frame
from dstash.wire.values import TypeRegistry

#: Names of stages on the page.
LMDB: Final = "peer: LMDB's own look-ups"
PEER: Final = "peer: all of it, for values"
LOOKUP_STAGES: Final = (
    "client: check and sort the keys",
    "client: pack the keys",
    "peer: unpack the keys",
    LMDB,
    PEER,
    "peer: all of it, for a digest",
    "client: decode the values",
    "client: make the dictionary",
)
PUT_STAGES: Final = (
    "client: encode keys and values",
    "both: pack and unpack them",
    "peer: check and seal the records",
    "peer: all of a commit but the sync",
)
WALL: Final = "from call to answer"
CLIENT: Final = "processor time of the client"
SERVERS: Final = "processor time of the servers"

_CHUNK: Final = 4096
_OWNED: Final = frozenset(range(PARTITIONS))
_PEER: Final = ("peer",)
_TABLE: Final = Table([_PEER] * PARTITIONS)
_HORIZONS: Final = [0] * PARTITIONS
_MEASURED: Final = ("redis", "dstash N=1", "dstash N=3 one", "dstash N=3 quorum")


def stage(action: str, name: str) -> tuple[Work, str]:
    """Return the work of a stage."""
    return Work(f"stage of {action}", batches.KEYS, batches.VALUE_BYTES), name


def share(action: str, name: str) -> Work:
    """Return the name of a share of the time of a whole batch."""
    return Work(f"{action}: {name}", batches.KEYS, batches.VALUE_BYTES)


def measure(lab: Lab, rounds: int) -> list[Case]:
    """Measure the stages alone, then the times of whole batches."""
    bench = _Stages(lab.folder / "stages")
    lab.entered(bench)
    cases = [Case(*stage(action, name), take) for action, name, take in bench.stages()]
    return [*use_time_slice(cases, rounds, lab.note), *_shares(lab, rounds)]


class _Batch:
    """A batch as a peer gets it: chunks of sorted encoded keys, and of values."""

    def __init__(self, types: TypeRegistry, band: int) -> None:
        self.pairs = data.fresh(batches.KEYS, batches.VALUE_BYTES)
        self.keys = data.shuffled(self.pairs)
        self.places = sort_places(self.keys, _TABLE, band)[_PEER]
        self.sorted: list[str] = loops.pick(self.keys, self.places)
        split_by_size = [
            self.sorted[begin : begin + _CHUNK] for begin in range(0, batches.KEYS, _CHUNK)
        ]
        self.chunks = [encode_keys(run) for run in split_by_size]
        self.values = [types.encode_many([self.pairs[key] for key in run]) for run in split_by_size]

    def commit(self, space: Keyspace) -> Commit:
        """Return the commit that stores the batch."""
        now = time.time_ns() // 1_000_000
        rules = Rules(now, now, 500, 0, {}, _HORIZONS, _OWNED, has_room=True)
        version = pack(stamp_at(now), bytes(12))
        puts = [
            Put("bench", version, 0, Frame(codec.pack_blobs(keys)), Frame(codec.pack_blobs(values)))
            for keys, values in zip(self.chunks, self.values, strict=True)
        ]
        return Commit([WaitingWrite(Ticket(b"", 0), put, space, 0) for put in puts], rules)


class _Stages:
    """All stages, on a store in this process."""

    def __init__(self, folder: Path) -> None:
        self._store = LmdbStore(folder, Durability.NONE)
        self._space = keyspace(b"bench", _OWNED)
        self._types = TypeRegistry()
        self._batch = _Batch(self._types, PARTITIONS_PER_BAND)
        self._written = _Batch(self._types, 1)
        self._batch.commit(self._space).run(self._store)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._store.close()

    def stages(self) -> Iterator[tuple[str, str, Callable[[], float]]]:
        """Yield (action, stage) with a function that takes a sample."""
        batch = self._batch
        answers = self._look_up(Want.VALUES)
        decoded = list(map(self._types.decode_array, answers))
        frames = list(map(codec.pack_blobs, batch.chunks))
        lookups: tuple[Callable[[], object], ...] = (
            lambda: sort_places(as_encoded(batch.keys), _TABLE, PARTITIONS_PER_BAND),
            lambda: [
                loops.pack_keys(batch.keys, batch.places[begin : begin + _CHUNK])
                for begin in range(0, batches.KEYS, _CHUNK)
            ],
            lambda: list(map(codec.unpack_keys, frames)),
            self._get,
            lambda: self._look_up(Want.VALUES),
            lambda: self._look_up(Want.DIGEST),
            lambda: list(map(self._types.decode_array, answers)),
            lambda: self._collect(decoded),
        )
        for name, action in zip(LOOKUP_STAGES, lookups, strict=True):
            yield "lookup", name, partial(batches.timed, action)
        puts: tuple[Callable[[], float], ...] = (
            partial(batches.timed, self._encode),
            partial(batches.timed, self._pack),
            partial(batches.timed, self._prepare),
            self._commit,
        )
        for name, take in zip(PUT_STAGES, puts, strict=True):
            yield "put", name, take

    def _get(self) -> None:
        located = [locate(self._space, chunk) for chunk in self._batch.chunks]
        with self._store.snapshot() as snapshot:
            for chunk in located:
                list(map(snapshot.get, chunk))

    def _look_up(self, want: Want) -> list[Frame]:
        now = time.time_ns() // 1_000_000
        with self._store.snapshot() as snapshot:
            return [
                look_up(snapshot, self._space, chunk, want.value, now, _HORIZONS).values
                for chunk in self._batch.chunks
            ]

    def _collect(self, decoded: Sequence[list[Any]]) -> None:
        found: dict[str, Any] = {}
        for number, values in enumerate(decoded):
            begin = number * _CHUNK
            loops.add_pairs(found, self._batch.sorted[begin : begin + _CHUNK], values)

    def _encode(self) -> None:
        encode_keys(self._written.keys)
        self._types.encode_many(list(self._written.pairs.values()))

    def _pack(self) -> None:
        for blobs in (*self._written.chunks, *self._written.values):
            codec.unpack_blobs(codec.pack_blobs(blobs))

    def _prepare(self) -> None:
        commit = self._written.commit(self._space)
        for write in commit.waiting:
            commit._prepare(write)

    def _commit(self) -> float:
        commit = _Batch(self._types, 1).commit(self._space)
        return batches.timed(lambda: commit.run(self._store))


class _Spent(NamedTuple):
    """Elapsed time and processor times, in seconds."""

    wall: float
    client: float
    servers: float


def _shares(lab: Lab, rounds: int) -> Iterator[Case]:
    pairs = data.fresh(batches.KEYS, batches.VALUE_BYTES)
    keys = data.shuffled(pairs)
    spent: dict[tuple[str, str], list[_Spent]] = {}
    for name in _MEASURED:
        lab.stores[name].fill(pairs)
    for _ in range(rounds):
        for name in _MEASURED:
            store, servers = lab.stores[name], _servers(lab, name)
            get = _spend(servers, partial(store.get, keys), store.settle)
            more = data.fresh(batches.KEYS, batches.VALUE_BYTES)
            put = _spend(servers, partial(store.put, more), store.settle)
            spent.setdefault(("lookup", name), []).append(get)
            spent.setdefault(("put", name), []).append(put)
    for (action, name), samples in spent.items():
        for title, part in zip((WALL, CLIENT, SERVERS), zip(*samples, strict=True), strict=True):
            yield known(share(action, title), name, Unit.SECONDS, part)


def _servers(lab: Lab, name: str) -> list[Server]:
    if name == "redis":
        return lab.redis.servers
    return (lab.one_copy if name == "dstash N=1" else lab.three_copies).servers


def _spend(
    servers: Sequence[Server], action: Callable[[], object], settle: Callable[[], None]
) -> _Spent:
    gc.collect()
    worked = processor_seconds(servers)
    client, began = time.process_time(), time.perf_counter()
    action()
    wall, client = time.perf_counter() - began, time.process_time() - client
    settle()  # the work of replicas after the answer belongs to the batch
    return _Spent(wall, client, processor_seconds(servers) - worked)
