"""What a peer refuses of what it is sent, whatever the sender let pass."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstash.cluster.tasks import Merge
from dstash.errors import BelowFloor, LimitError
from dstash.limits import MAX_TTL_SECONDS, PARTITIONS
from dstash.peer.commits import Commit, Internal, Rules, Ticket, WaitingWrite
from dstash.store.interface import Write
from dstash.store.record import head, keyspace, partition_of, seal
from dstash.store.twin import TwinStore
from dstash.types import RecordFlag
from dstash.version import pack, stamp_at
from dstash.wire import codec
from dstash.wire.messages import Apply, Error, Put, Stored
from dstash.wire.replication import Push
from dstash.wire.shapes import Frame

NOW = 1_800_000_000_000
EVERYTHING = frozenset(range(PARTITIONS))
SPACE = keyspace(b"i", EVERYTHING)
RULES = Rules(NOW, 500, 0, {}, [0] * PARTITIONS, EVERYTHING, has_room=True)


def reply_to(put: Put) -> object:
    """Return what a peer answers to a put."""
    write = WaitingWrite(Ticket(b"client", 1), put, SPACE, 10)
    commit = Commit([write], RULES)
    commit.run(TwinStore())
    [(_, reply)] = commit.replies
    return reply


@pytest.mark.parametrize(
    ("expiry", "refused"),
    [(0, False), (NOW + 1000, False), (NOW + MAX_TTL_SECONDS * 1000 + 1, True)],
)
def test_a_put_that_outlives_a_century_is_refused(expiry: int, refused: bool) -> None:
    keys = Frame(codec.pack_blobs([b"k"]))
    put = Put("i", pack(stamp_at(NOW), b"test"), expiry, keys, Frame(codec.pack_blobs([b"\x01"])))
    reply = reply_to(put)
    if refused:
        assert isinstance(reply, Error)
        assert isinstance(reply.error(), LimitError)
    else:
        assert isinstance(reply, Stored)
        assert reply.rejected == []


@st.composite
def records(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Return a record that another peer may send: a good one, or one of each kind of bad ones."""
    key = draw(st.sampled_from([b"a", b"b", b"c"]))
    stamps = st.sampled_from([NOW - 9000, NOW, NOW + 400, NOW + 600]).map(stamp_at)
    touched = draw(st.just(0) | stamps)
    flags = draw(st.sampled_from([0, 0, RecordFlag.TOMBSTONE]))
    payload = b"" if flags else draw(st.sampled_from([b"\x01", b"\x01", b"\x01\x01"]))
    sealed = seal(SPACE, [key], head(pack(draw(stamps), b"test", touched), flags), [payload])
    [(where, record)] = sealed
    return where, record[:-1] + b"?" if draw(st.integers(0, 9)) == 0 else record


def push(some: Sequence[tuple[bytes, bytes]]) -> WaitingWrite:
    """Return what brings records from another peer."""
    keys, content = [key for key, _ in some], [record for _, record in some]
    message = Push(Frame(codec.pack_blobs(keys)), Frame(codec.pack_blobs(content)))
    return WaitingWrite(Ticket(b"peer", 1), message, None, 10)


@given(st.lists(records(), max_size=5), st.booleans())
def test_many_records_are_checked_as_one_by_one_would_be(
    some: list[tuple[bytes, bytes]], has_spare: bool
) -> None:
    rules = RULES._replace(has_spare=has_spare)
    together, alone = TwinStore(), TwinStore()
    Commit([push(some)], rules).run(together)
    for one in some:
        Commit([push([one])], rules).run(alone)
    assert together.records == alone.records
    assert together.high_water == alone.high_water


@pytest.mark.parametrize(
    ("stored", "brought", "refused"),
    [
        (None, (4, 0), True),
        (None, (4, 6), True),
        ((4, 0), (4, 5), False),
        ((4, 0), (4, 4), False),
        ((3, 0), (4, 6), True),
        (None, (6, 0), False),
        ((4, 0), (4, 0), False),
        ((4, 0), (3, 5), False),
        ((7, 0), (4, 5), False),
    ],
)
def test_a_client_is_told_that_its_record_came_too_late(
    stored: tuple[int, int] | None, brought: tuple[int, int], refused: bool
) -> None:
    store = TwinStore()
    if stored is not None:
        store.commit([Write([sealed(*stored)], NOW)])
    [(key, record)] = [sealed(*brought)]
    apply = Apply("i", Frame(codec.pack_blobs([b"k"])), Frame(codec.pack_blobs([record])))
    write = WaitingWrite(Ticket(b"client", 1), apply, SPACE, 10)
    commit = Commit([write], RULES._replace(horizons=[5] * PARTITIONS))
    commit.run(store)
    [(_, reply)] = commit.replies
    assert isinstance(reply, Stored)
    assert [(place, code) for place, code, _ in reply.rejected] == [(0, BelowFloor.code)] * refused
    if refused:
        assert store.records.get(key) == (stored and sealed(*stored)[1])


def test_a_damaged_record_does_not_make_one_that_came_too_late_look_stored() -> None:
    store = TwinStore()
    key, record = sealed(9, 0)
    store.records[key] = record[:-1] + b"?"
    late = Frame(codec.pack_blobs([sealed(4, 0)[1]]))
    apply = Apply("i", Frame(codec.pack_blobs([b"k"])), late)
    commit = Commit(
        [WaitingWrite(Ticket(b"client", 1), apply, SPACE, 10)],
        RULES._replace(horizons=[5] * PARTITIONS),
    )
    commit.run(store)
    [(_, reply)] = commit.replies
    assert isinstance(reply, Stored)
    assert [code for _, code, _ in reply.rejected] == [BelowFloor.code]


def test_nothing_is_fetched_into_a_partition_that_moved_away() -> None:
    store = TwinStore()
    entries = [sealed(4, 0, key) for key in (b"k", b"l")]
    ended: list[object] = []
    internal = Internal(Merge(entries), ended.append)
    owned = EVERYTHING - {partition_of(b"k")}
    commit = Commit([WaitingWrite(Ticket(b"", 0), internal, None, 10)], RULES._replace(owned=owned))
    commit.run(store)
    assert list(store.records) == [entries[1][0]]
    assert [error for _, error in commit.done] == [None]


def sealed(stamp: int, touched: int, key: bytes = b"k") -> tuple[bytes, bytes]:
    """Return a record under its storage key."""
    return seal(SPACE, [key], head(pack(stamp, b"test", touched), 0, 0), [b"\x01"])[0]
