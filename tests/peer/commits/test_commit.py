"""The checks of a peer in a commit, independent of the sender's checks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstash.cluster.replication.tasks import Merge
from dstash.errors import BelowFloor, DiskFull, LimitError
from dstash.limits import MAX_TTL_SECONDS, PARTITIONS
from dstash.peer.admission.requests import Ticket
from dstash.peer.admission.writes import Internal, WaitingWrite
from dstash.peer.commits.commit import Commit
from dstash.peer.commits.recent_deletes import RecentDeletes
from dstash.peer.commits.rules import Rules
from dstash.store.interface import Merged, Write
from dstash.store.memory import TwinStore
from dstash.store.record import VERSION_END, head, keyspace, partition_of
from dstash.store.sealing import seal
from dstash.types import RecordFlag
from dstash.version import pack, stamp_at
from dstash.wire import codec
from dstash.wire.messages import Apply, Delete, Error, Put, Stored
from dstash.wire.replication import Push
from dstash.wire.shapes import Frame

NOW = 1_800_000_000_000
EVERYTHING = frozenset(range(PARTITIONS))
SPACE = keyspace(b"i", EVERYTHING)
RULES = Rules(NOW, NOW, 500, 0, {}, [0] * PARTITIONS, EVERYTHING, has_room=True)


def reply_to(put: Put) -> object:
    """Return the answer of a peer to a put."""
    write = WaitingWrite(Ticket(b"client", 1), put, SPACE, 10)
    commit = Commit([write], RULES)
    commit.run(TwinStore())
    [(_, reply)] = commit.replies
    return reply


@pytest.mark.parametrize(
    ("expiry", "refused"),
    [(0, False), (NOW + 1000, False), (NOW + MAX_TTL_SECONDS * 1000 + 1, True)],
)
def test_put_with_expiry_beyond_a_century_is_refused(expiry: int, refused: bool) -> None:
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
    """Return a record that another peer may send: a valid record, or any kind of invalid record."""
    key = draw(st.sampled_from([b"a", b"b", b"c"]))
    stamps = st.sampled_from([NOW - 9000, NOW, NOW + 400, NOW + 600]).map(stamp_at)
    touched = draw(st.just(0) | stamps)
    flags = draw(st.sampled_from([0, 0, RecordFlag.TOMBSTONE]))
    payload = b"" if flags else draw(st.sampled_from([b"\x01", b"\x01", b"\x01\x01"]))
    sealed = seal(SPACE, [key], head(pack(draw(stamps), b"test", touched), flags), [payload])
    [(where, record)] = sealed
    return where, record[:-1] + b"?" if draw(st.integers(0, 9)) == 0 else record


def push(some: Sequence[tuple[bytes, bytes]]) -> WaitingWrite:
    """Return a write of records from another peer."""
    keys, content = [key for key, _ in some], [record for _, record in some]
    message = Push(Frame(codec.pack_blobs(keys)), Frame(codec.pack_blobs(content)))
    return WaitingWrite(Ticket(b"peer", 1), message, None, 10)


@given(st.lists(records(), max_size=5), st.booleans())
def test_batch_is_checked_like_single_records(
    some: list[tuple[bytes, bytes]], has_spare: bool
) -> None:
    rules = RULES._replace(has_spare=has_spare)
    together, alone = TwinStore(), TwinStore()
    Commit([push(some)], rules).run(together)
    for entry in some:
        Commit([push([entry])], rules).run(alone)
    assert together.records == alone.records
    assert together.newest == alone.newest


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
def test_record_below_horizon_is_refused_as_late(
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


def test_corrupt_record_does_not_make_late_record_look_stored() -> None:
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


def test_no_record_is_fetched_into_a_moved_partition() -> None:
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


class Scarce(TwinStore):
    """A full disk; its reserve has room for tombstones, and perhaps for records."""

    def __init__(self, *, takes_records: bool) -> None:
        super().__init__()
        self._takes_records = takes_records

    def commit(self, writes: Sequence[Write]) -> list[Merged]:
        """Refuse records without room."""
        flags = [record[VERSION_END] for write in writes for _, record in write.entries]
        has_records = not all(flag & RecordFlag.TOMBSTONE for flag in flags)
        may_spend = all(write.may_spend_reserve for write in writes)
        if not may_spend or (has_records and not self._takes_records):
            raise DiskFull("no room")
        return super().commit(writes)


def one_of_each() -> list[WaitingWrite]:
    """Return waiting writes: a put, a delete, and a push of a record and a tombstone."""
    version = pack(stamp_at(NOW), b"test")
    keys, payloads = Frame(codec.pack_blobs([b"k"])), Frame(codec.pack_blobs([b"\x01"]))
    record = seal(SPACE, [b"l"], head(version), [b"\x01"])
    tombstone = seal(SPACE, [b"m"], head(version, RecordFlag.TOMBSTONE), [b""])
    return [
        WaitingWrite(Ticket(b"client", 1), Put("i", version, 0, keys, payloads), SPACE, 10),
        WaitingWrite(Ticket(b"client", 2), Delete("i", version, keys), SPACE, 10),
        push([*record, *tombstone]),
    ]


@pytest.mark.parametrize("takes_records", [True, False])
def test_full_disk_refuses_only_the_put_of_a_group(takes_records: bool) -> None:
    store = Scarce(takes_records=takes_records)
    commit = Commit(one_of_each(), RULES)
    commit.run(store)
    replies = dict(commit.replies)
    assert isinstance(replies[Ticket(b"client", 1)], Error)
    assert replies[Ticket(b"client", 1)].code == DiskFull.code  # type: ignore[attr-defined]
    assert replies[Ticket(b"client", 2)] == Stored([], b"\0")
    pushed = replies[Ticket(b"peer", 1)]
    assert isinstance(pushed, Stored)
    refused = [] if takes_records else [(0, DiskFull.code)]
    assert [(place, code) for place, code, _ in pushed.rejected] == refused
    assert len(store.records) == 2 + takes_records
    assert commit.fatal is None


def test_background_write_reports_records_refused_for_room() -> None:
    version = pack(stamp_at(NOW), b"test")
    record = seal(SPACE, [b"l"], head(version), [b"\x01"])
    tombstone = seal(SPACE, [b"m"], head(version, RecordFlag.TOMBSTONE), [b""])
    errors: list[object] = []
    internal = Internal(Merge([*record, *tombstone]), errors.append)
    store = Scarce(takes_records=False)
    commit = Commit([WaitingWrite(Ticket(b"", 0), internal, None, 10)], RULES)
    commit.run(store)
    [(_, error)] = commit.done
    assert isinstance(error, DiskFull)
    assert list(store.records) == [tombstone[0][0]]


def test_delete_does_not_know_what_its_tombstone_replaced_in_a_repair() -> None:
    """The tombstone came from a replica that had the delete first."""
    version, store = pack(stamp_at(NOW), b"test"), TwinStore()
    [(storage_key, sound)] = seal(SPACE, [b"k"], head(pack(stamp_at(NOW - 9), b"old")), [b"\x01"])
    store.records[storage_key] = sound[:-1] + b"?"
    [tombstone] = seal(SPACE, [b"k"], head(version, RecordFlag.TOMBSTONE), [b""])
    repair = Internal(Merge([], replacements=[tombstone]), lambda error: None)
    delete = Delete("i", version, Frame(codec.pack_blobs([b"k"])))
    recent = RecentDeletes()
    Commit([WaitingWrite(Ticket(b"", 0), repair, None, 10)], RULES, recent=recent).run(store)
    assert store.records[storage_key] == tombstone[1]
    commit = Commit([WaitingWrite(Ticket(b"client", 1), delete, SPACE, 10)], RULES, recent=recent)
    commit.run(store)
    assert dict(commit.replies)[Ticket(b"client", 1)] == Stored([], b"\0", b"\1")
