"""Votes in a commit: what is refused before the transaction, and the answers."""

from __future__ import annotations

from typing import Any

import pytest

from dstash.cluster.replication.tasks import Merge
from dstash.cluster.topology.life import Life
from dstash.errors import DiskFull, LimitError, Misrouted, Preempted, ProtocolError
from dstash.limits import MAX_VALUE_BYTES, PARTITIONS
from dstash.peer.admission.requests import Ticket
from dstash.peer.admission.writes import Internal, WaitingWrite
from dstash.peer.commits.commit import Commit
from dstash.peer.commits.rules import Rules
from dstash.store.memory import TwinStore
from dstash.store.record import (
    Record,
    build_record,
    partition_in,
    partition_of,
    seal_at,
    version_of,
)
from dstash.store.register.header import Entry, Header, pack_header
from dstash.store.register.voter import Bounds, Verdict
from dstash.types import RecordFlag
from dstash.version import pack, stamp_at
from dstash.wire import codec
from dstash.wire.messages import Error, Stored
from dstash.wire.registers.consensus import Accept, Accepted, Prepare, Promised
from dstash.wire.replication import Push
from dstash.wire.shapes import Frame, Message

NOW = 1_800_000_000_000
EVERYTHING = frozenset(range(PARTITIONS))
WRITER = b"abcd"
VOTED, PREEMPTED = Verdict.VOTED, Verdict.PREEMPTED


def rules(**fields: Any) -> Rules:
    bounds = Bounds(latest=stamp_at(NOW + 500))
    known = {"owned": EVERYTHING, "has_room": True, "bounds": bounds} | fields
    known |= {"life": Life(3, NOW, 0)}
    return Rules(NOW, NOW, 500, 0, {}, [0] * PARTITIONS, **known)


def place(key: bytes, index: bytes = b"@r") -> bytes:
    return partition_of(key).to_bytes(2, "big") + bytes((len(index),)) + index + key


def register(
    key: bytes,
    step: int = 0,
    *,
    value: bytes = b"\x01",
    milliseconds: int = NOW,
    header: bytes = pack_header(Header(1)),
    index: bytes = b"@r",
) -> tuple[bytes, bytes]:
    """Return (storage key, register); a tombstone without a value."""
    flags = RecordFlag.REGISTER | (0 if value else RecordFlag.TOMBSTONE)
    version = pack(stamp_at(milliseconds, step), WRITER)
    record = build_record(index, key, Record(version, flags, 0, header + value))
    return place(key, index), record


def blobs(*some: bytes) -> Frame:
    return Frame(codec.pack_blobs(some))


def accept(*entries: tuple[bytes, bytes]) -> Accept:
    return Accept(blobs(*(key for key, _ in entries)), blobs(*(record for _, record in entries)))


def prepare(*keys: bytes, round_: int = NOW, known: bytes = b"") -> Prepare:
    return Prepare(round_, WRITER, known, blobs(*map(place, keys)))


def answers(store: TwinStore, *messages: Message, **fields: Any) -> list[Message]:
    """Return the answers to messages that are committed together."""
    waiting = [WaitingWrite.of(Ticket(b"peer", 1), message, None) for message in messages]  # type: ignore[arg-type]
    commit = Commit(waiting, rules(**fields))
    commit.run(store)
    by_write = {id(write): answer for write, answer in commit.votes}
    refused = iter(reply for _, reply in commit.replies)
    return [by_write[id(write)] if id(write) in by_write else next(refused) for write in waiting]


def answer(store: TwinStore, message: Message, **fields: Any) -> Any:
    [only] = answers(store, message, **fields)
    return only


def refusal(message: Message, **fields: Any) -> Exception:
    reply = answer(TwinStore(), message, **fields)
    assert isinstance(reply, Error), reply
    return reply.error()


def test_round_is_prepared_and_register_accepted() -> None:
    store = TwinStore()
    reply = answer(store, prepare(b"a", b"b"))
    assert reply == Promised(
        bytes((VOTED, VOTED)),
        bytes(40),
        bytes(16),
        bytes(16),
        store.high_water,
        3,
        NOW,
        Frame(codec.pack_blobs([None, None])),
    )
    entry = register(b"a")
    reply = answer(store, accept(entry))
    assert (reply.verdicts, reply.high_water) == (bytes((VOTED,)), store.high_water)
    assert store.records == {entry[0]: entry[1]}
    reply = answer(store, prepare(b"b", b"a", round_=NOW + 1))
    assert reply.held == bytes(20) + version_of(entry[1])
    assert codec.unpack_optional_blobs(reply.records) == [None, entry[1]]
    reply = answer(store, prepare(b"a", round_=0, known=version_of(entry[1])))
    assert codec.unpack_optional_blobs(reply.records) == [None]


def test_requests_of_one_commit_are_voted_on_in_order() -> None:
    store = TwinStore()
    replies = answers(store, prepare(b"a", round_=NOW + 5), accept(register(b"a")))
    assert replies[1] == Accepted(
        bytes((PREEMPTED,)), (NOW + 5).to_bytes(8, "big"), store.high_water, 3, NOW
    )
    assert store.records == {}


def test_accept_marks_its_partition_as_changed() -> None:
    commit = Commit([WaitingWrite.of(Ticket(b"", 1), accept(register(b"a")), None)], rules())
    commit.run(TwinStore())
    assert {partition_in(key) for key in commit.changed} == {partition_of(b"a")}


def test_corrupt_register_is_reported() -> None:
    store, entry = TwinStore(), register(b"a")
    store.records[entry[0]] = entry[1][:-1] + b"?"
    waiting = [WaitingWrite.of(Ticket(b"", 1), prepare(b"a"), None)]
    commit = Commit(waiting, rules(bounds=Bounds(high_water=stamp_at(NOW))))
    commit.run(store)
    assert commit.corrupt == [entry[0]]
    [(_, reply)] = commit.votes
    assert isinstance(reply, Promised)
    assert reply.verdicts == bytes((Verdict.CORRUPT,))


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (Prepare(NOW, WRITER, b"", blobs(place(b"a", b"i"))), "an index without registers"),
        (accept(register(b"a", index=b"i")), "an index without registers"),
        (Prepare(NOW, b"abc", b"", blobs(place(b"a"))), "a writer has 4 bytes, not 3"),
        (Prepare(1 << 48, WRITER, b"", blobs(place(b"a"))), "allowed are 48 bits"),
        (Prepare(NOW, WRITER, bytes(21), blobs(place(b"a"))), "1 keys have 21 bytes"),
        (Prepare(NOW, WRITER, b"", blobs(b"\0\0\2@rz")), "in the wrong partition"),
        (accept((place(b"a"), register(b"b")[1])), "fails its checksum"),
        (accept(register(b"a", header=b"")), "too short"),
        (accept(register(b"a", value=b"\x01\x01")), "not one well-formed msgpack object"),
        (
            accept((place(b"a"), build_record(b"@r", b"a", Record(bytes(20), 0, 0, b"\x01")))),
            "not a register",
        ),
    ],
)
def test_malformed_request_is_refused(message: Message, text: str) -> None:
    error = refusal(message)
    assert isinstance(error, ProtocolError)
    assert text in str(error)


SHARED = pack_header(Header(1, entries=(Entry(b"caller01", 1, 1, answer=b"abc"),)))


def altered(key: bytes, change: Any) -> tuple[bytes, bytes]:
    """Return a register whose content was changed, with the right checksum."""
    _, record = register(key, header=SHARED)
    return place(key), seal_at(place(key), change(record[8:]))


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (register(b"b", header=SHARED, value=b"\x01\x01"), "well-formed msgpack"),
        ((place(b"b"), register(b"a", header=SHARED)[1]), "fails its checksum"),
        (altered(b"b", lambda body: body[:-2]), "states"),
        (altered(b"b", lambda body: body[:12] + b"\1" + body[13:]), "a version with a touch"),
        (altered(b"b", lambda body: body[:20] + b"\0" + body[21:]), "not a register"),
        (altered(b"b", lambda body: body[:32] + b"\xff" + body[33:]), "states"),
    ],
)
def test_malformed_register_after_a_valid_one_is_refused(
    entry: tuple[bytes, bytes], text: str
) -> None:
    valid = [register(b"a", header=SHARED), register(b"c", header=SHARED)]
    assert answer(TwinStore(), accept(*valid)).verdicts == bytes((VOTED, VOTED))
    error = refusal(accept(valid[0], entry, valid[1]))
    assert isinstance(error, ProtocolError)
    assert text in str(error)


def test_key_of_a_partition_that_is_not_held_is_refused() -> None:
    assert isinstance(refusal(prepare(b"a"), owned=frozenset()), Misrouted)
    assert isinstance(refusal(accept(register(b"a")), owned=frozenset()), Misrouted)


def test_register_over_the_limit_is_refused() -> None:
    size = MAX_VALUE_BYTES - len(pack_header(Header(1))) - 5
    assert isinstance(answer(TwinStore(), accept(large(size))), Accepted)
    assert isinstance(refusal(accept(large(size + 1))), LimitError)


def large(size: int) -> tuple[bytes, bytes]:
    """Return a register whose value has five bytes more than ``size``."""
    return register(b"a", value=b"\xc6" + size.to_bytes(4, "big") + bytes(size))


class TestFullDisk:
    """Without room, only tombstones and promises are stored."""

    def test_values_are_refused_one_by_one(self) -> None:
        store = TwinStore()
        reply = answer(store, accept(register(b"a"), register(b"b", value=b"")), has_room=False)
        assert reply.verdicts == bytes((Verdict.NO_ROOM, VOTED))
        assert list(store.records) == [place(b"b")]

    def test_promises_are_given_while_there_is_a_reserve(self) -> None:
        store = TwinStore()
        assert answer(store, prepare(b"a"), has_room=False).verdicts == bytes((VOTED,))
        assert isinstance(refusal(prepare(b"a"), has_room=False, has_spare=False), DiskFull)
        asked = prepare(b"a", round_=0)
        assert answer(store, asked, has_room=False, has_spare=False).verdicts == bytes((VOTED,))


class TestPushed:
    """Registers that come as whole records from another replica."""

    def push(self, store: TwinStore, *entries: tuple[bytes, bytes], **fields: Any) -> Any:
        keys, records = (blobs(*part) for part in zip(*entries, strict=True))
        reply = answer(store, Push(keys, records), **fields)
        assert isinstance(reply, Stored)
        return reply.rejected

    def test_register_is_merged(self) -> None:
        store, entry = TwinStore(), register(b"a")
        assert self.push(store, entry) == []
        assert store.records == dict([entry])

    def test_register_below_a_promise_is_preempted(self) -> None:
        store = TwinStore()
        answer(store, prepare(b"a", round_=NOW + 5))
        [[place_, code, _]] = self.push(store, register(b"a"), register(b"b"))
        assert (place_, code) == (0, Preempted.code)
        assert list(store.records) == [place(b"b")], "its neighbours are merged"

    @pytest.mark.parametrize(
        ("entry", "code"),
        [
            (register(b"a", index=b"i"), ProtocolError.code),
            (register(b"a", header=b""), ProtocolError.code),
            (register(b"a", value=b"", index=b"i"), ProtocolError.code),
            (register(b"a", value=b"", header=b""), ProtocolError.code),
        ],
    )
    def test_invalid_register_is_rejected(self, entry: tuple[bytes, bytes], code: int) -> None:
        store = TwinStore()
        [[place_, given, _]] = self.push(store, entry, register(b"b", value=b""))
        assert (place_, given) == (0, code)
        assert list(store.records) == [place(b"b")]

    def test_register_of_the_future_is_merged(self) -> None:
        """A quorum may have chosen it, so no replica may leave it out."""
        store, late = TwinStore(), register(b"a", milliseconds=NOW + 10_000_000)
        assert self.push(store, late, latest=stamp_at(NOW)) == []
        assert store.records == dict([late])
        assert store.high_water >= stamp_at(NOW + 10_000_000)

    def test_register_that_was_preempted_ends_no_task_and_is_to_be_concluded(self) -> None:
        store, errors = TwinStore(), []
        answer(store, prepare(b"a", round_=NOW + 5))
        entry = register(b"a")
        merge = Internal(Merge([entry]), errors.append)
        commit = Commit([WaitingWrite(Ticket(b"", 0), merge, None, 10)], rules())
        commit.run(store)
        [(_, error)] = commit.done
        assert error is None
        assert commit.preempted == [entry[0]]

    def test_corrupt_register_is_not_repaired_by_votes_of_others(self) -> None:
        store, entry = TwinStore(), register(b"a")
        corrupt = entry[1][:-1] + b"?"
        store.records[entry[0]] = corrupt
        merge = Internal(Merge([], replacements=[entry]), lambda error: None)
        Commit([WaitingWrite(Ticket(b"", 0), merge, None, 10)], rules()).run(store)
        assert store.records == {entry[0]: corrupt}
