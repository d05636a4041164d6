"""Votes on many registers in one request: each answer and effect is that of votes key by key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from dstash.limits import PARTITIONS
from dstash.store.interface import Store, Write
from dstash.store.lmdb import LmdbStore
from dstash.store.memory import TwinStore
from dstash.store.record import Record, build_record, partition_of, version_of
from dstash.store.register.ballot import EARLIER_WRITER, Promise, pack_promise
from dstash.store.register.header import Header, pack_header
from dstash.store.register.voter import Bounds, Verdict
from dstash.store.register.votes import Accepts, Prepares, Vote
from dstash.types import Durability, RecordFlag
from dstash.version import ZERO, pack, stamp_at
from tests.store.register.parts import INDEX, A, B, commit

KEYS = [b"key%d" % number for number in range(40)]
STORAGE_KEYS = {key: partition_of(key).to_bytes(2, "big") + b"\x02@r" + key for key in KEYS}


@pytest.fixture(params=["twin", "lmdb"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    if request.param == "twin":
        yield TwinStore(), TwinStore()
        return
    pair = tuple(LmdbStore(tmp_path / name, Durability.NONE) for name in "ab")
    yield pair[0], pair[1]
    for store in pair:
        store.close()


def record_of(rng: Random, key: bytes) -> bytes:
    """Return a register, a tombstone, a plain record or a corrupt register."""
    flags = rng.choice((4, 4, 4, 4 | RecordFlag.TOMBSTONE, 0))
    value = b"" if flags & RecordFlag.TOMBSTONE else b"\x01"
    stamp = stamp_at(rng.randint(5, 16), rng.choice((0, 0, 3)))
    content = pack_header(Header(stamp)) + value
    record = build_record(INDEX, key, Record(pack(stamp, rng.choice((A, B))), flags, 0, content))
    return record[:-1] + b"\x07" if rng.random() < 0.1 else record


def promise_of(rng: Random, key: bytes) -> bytes:
    """Return a promise, which may be one of an earlier voter, or corrupt."""
    promise = Promise(rng.randint(5, 16), rng.choice((A, A, B, EARLIER_WRITER)))
    if rng.random() < 0.2:
        promise = promise._replace(earlier=rng.randint(3, promise.round))
    packed = pack_promise(STORAGE_KEYS[key], promise)
    return packed[:-1] + b"\xff" if rng.random() < 0.1 else packed


def fill(rng: Random, *stores: Store) -> None:
    for key in KEYS:
        storage_key = STORAGE_KEYS[key]
        record = record_of(rng, key) if rng.random() < 0.6 else None
        promise = promise_of(rng, key) if rng.random() < 0.4 else None
        for store in stores:
            put(store, storage_key, record, promise)


def put(store: Store, storage_key: bytes, record: bytes | None, promise: bytes | None) -> None:
    """Put what a store must not take from others: anything, in place of what it had."""
    if isinstance(store, TwinStore):
        for table, item in ((store.records, record), (store.promises, promise)):
            table.pop(storage_key, None)
            if item is not None:
                table[storage_key] = item
        return
    assert isinstance(store, LmdbStore)
    with store._env.begin(write=True) as transaction:
        for database, item in ((store._records, record), (store._promises, promise)):
            transaction.delete(storage_key, db=database)
            if item is not None:
                transaction.put(storage_key, item, db=database)


def content(store: Store) -> tuple[list[Any], list[Any]]:
    with store.snapshot() as snapshot:
        records = list(snapshot.walk(b"", b"\xff"))
    return records, store.promises_between(b"", b"\xff", 1000)


def limits(rng: Random) -> dict[str, Any]:
    horizons = [stamp_at(rng.choice((0, 0, 6, 9))) for _ in range(PARTITIONS)]
    floors = [stamp_at(rng.choice((0, 8))) for _ in range(PARTITIONS)]
    return {
        "horizons": rng.choice((None, horizons)),
        "bounds": {
            "floor": stamp_at(rng.choice((0, 7))),
            "latest": stamp_at(rng.choice((9, 100))),
            "high_water": stamp_at(16, 5),
            "floors": rng.choice(((), floors)),
            "floors_are_horizons": rng.random() < 0.5,
        },
    }


def votes(
    store: Store, request: Prepares | Accepts, corrupt: dict[bytes, int], given: dict[str, Any]
) -> list[Vote]:
    bounds = Bounds(corruption=corrupt, **given["bounds"])
    write = Write([], 0, horizons=given["horizons"], votes=request, bounds=bounds)
    return commit(store, write).votes


def requests(rng: Random) -> Prepares | Accepts:
    some = rng.sample(KEYS, rng.randint(4, len(KEYS)))
    number = rng.choice((0, *range(6, 18)))
    if rng.random() < 0.5:
        known = [pack(stamp_at(rng.choice((0, 8, 20))), A) for _ in some]
        return Prepares([STORAGE_KEYS[key] for key in some], Promise(number, A), known)
    ballots = [(number or 6, 0), (rng.randint(6, 17), rng.choice((0, 2)))]
    entries = []
    for key in some:
        stamp = stamp_at(*rng.choice(ballots))
        payload = pack_header(Header(stamp)) + b"\x02"
        record = build_record(INDEX, key, Record(pack(stamp, A), 4, 0, payload))
        entries.append((STORAGE_KEYS[key], record))
    return Accepts(entries)


def one_by_one(request: Prepares | Accepts) -> list[Prepares | Accepts]:
    if isinstance(request, Accepts):
        return [Accepts([entry]) for entry in request.entries]
    pairs = zip(request.keys, request.known, strict=True)
    return [Prepares([key], request.promise, [known]) for key, known in pairs]


@pytest.mark.parametrize("seed", range(25))
def test_votes_together_equal_votes_one_by_one(stores: tuple[Store, Store], seed: int) -> None:
    together, apart = stores
    rng = Random(seed)
    fill(rng, together, apart)
    noted = {STORAGE_KEYS[key]: stamp_at(9) for key in rng.sample(KEYS, 5)}  # some are sound
    corrupt = dict(noted), dict(noted)
    for _ in range(4):
        request, given = requests(rng), limits(rng)
        found = votes(together, request, corrupt[0], given)
        expected = [
            vote for part in one_by_one(request) for vote in votes(apart, part, corrupt[1], given)
        ]
        assert found == expected
        assert content(together) == content(apart)
        assert corrupt[0] == corrupt[1]


def test_key_that_occurs_twice_is_promised_once() -> None:
    keys = [STORAGE_KEYS[key] for key in (*KEYS[:5], KEYS[0])]
    given: dict[str, Any] = {"horizons": None, "bounds": {}}
    found = votes(TwinStore(), Prepares(keys, Promise(9, A), [ZERO] * 6), {}, given)
    verdicts = [vote.verdict for vote in found]
    assert verdicts == [Verdict.VOTED] * 5 + [Verdict.PREEMPTED]


def test_random_requests_are_voted_for_and_refused() -> None:
    """The comparison above means little unless votes of all kinds occur."""
    seen: set[tuple[type, Verdict]] = set()
    for seed in range(40):
        rng, store = Random(seed), TwinStore()
        fill(rng, store)
        for _ in range(4):
            request = requests(rng)
            found = votes(store, request, {}, limits(rng))
            seen.update((type(request), vote.verdict) for vote in found)
            taken = {version_of(record) for record in store.records.values()}
            assert taken
    wanted = {Verdict.VOTED, Verdict.PREEMPTED, Verdict.TOO_OLD, Verdict.TOO_FAR, Verdict.CORRUPT}
    assert {(kind, verdict) for kind in (Prepares, Accepts) for verdict in wanted} <= seen
    assert {(Prepares, Verdict.UNSETTLED), (Prepares, Verdict.BLIND)} <= seen
