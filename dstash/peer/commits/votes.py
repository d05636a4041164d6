"""Votes on registers: the checks of a request before the transaction, and its answer after it.

A vote is a write like any other: it waits in the backlog and is answered when it is on disk. The
sender is a peer, so a malformed request is refused as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from xxhash import xxh3_64_intdigest

from dstash.cluster.topology.life import Life
from dstash.errors import DiskFull, LimitError, ProtocolError
from dstash.limits import MAX_VALUE_BYTES
from dstash.peer.commits.rules import (
    TOMBSTONE,
    Prepared,
    Rejected,
    Rules,
    check_storage_key,
)
from dstash.store.interface import Merged, Write
from dstash.store.record import ABSENT, CHECKSUM_END, HEAD_BYTES, MASK, VERSION_END, is_sound
from dstash.store.register.ballot import SIGN_BYTE, Promise
from dstash.store.register.header import (
    ENTRY,
    HEADER,
    MAX_ANSWER_BYTES,
    check_register,
    is_register,
)
from dstash.store.register.voter import Verdict
from dstash.store.register.votes import Accepts, Prepares, Vote
from dstash.types import RecordFlag
from dstash.version import (
    COUNTER_BITS,
    MAX_STAMP,
    VERSION_BYTES,
    WRITE_BYTES,
    WRITER_BYTES,
    ZERO,
)
from dstash.wire import codec
from dstash.wire.registers import pack_numbers
from dstash.wire.registers.consensus import Accept, Accepted, Prepare, Promised
from dstash.wire.shapes import Frame

_MAX_ROUND: Final = MAX_STAMP >> COUNTER_BITS
_MALFORMED: Final = "the value of a register is not one well-formed msgpack object"
_REGISTER: Final = RecordFlag.REGISTER.value
_TOUCH_BEGIN: Final = CHECKSUM_END + WRITE_BYTES
_NO_TOUCH: Final = bytes(VERSION_END - _TOUCH_BEGIN)
#: The bytes of a header with one request whose answer is empty; the last has the answer's length.
_PLAIN_BYTES: Final = HEADER.size + ENTRY.size
#: Where they end in a record.
_PLAIN_END: Final = HEAD_BYTES + _PLAIN_BYTES
_MAX_BYTES: Final = HEAD_BYTES + MAX_VALUE_BYTES
_NO_ROOM: Final = "the disk is full; only deletes still succeed"

_WITHOUT_ROOM: Final = Vote(Verdict.NO_ROOM, ABSENT, 0, 0)

#: Messages that request votes.
VOTES: Final = (Prepare, Accept)


def prepare_promises(message: Prepare, space: None, rules: Rules) -> Prepared:
    """Prepare the promises that a peer requests.

    Raises:
        DiskFull: there is no room for a promise.
        Misrouted: this peer holds no replica of a partition.
        ProtocolError: the request is malformed.
    """
    keys = codec.unpack_blobs(message.keys)
    _check_register_keys(keys, rules)
    if message.round > _MAX_ROUND:
        raise ProtocolError(f"round {message.round} is too high; allowed are 48 bits")
    if len(message.writer) != WRITER_BYTES:
        raise ProtocolError(f"a writer has {WRITER_BYTES} bytes, not {len(message.writer)}")
    if message.round and not rules.has_spare:
        raise DiskFull(_NO_ROOM)
    promise = Promise(message.round, message.writer)
    known = _known(message.known, len(keys))
    return _prepared(Prepares(keys, promise, known, message.is_needed), rules, len(keys))


def _known(packed: bytes, count: int) -> list[bytes]:
    if not packed:
        return [ZERO] * count
    if len(packed) != count * VERSION_BYTES:
        raise ProtocolError(f"{count} keys have {len(packed)} bytes of known versions")
    places = range(0, len(packed), VERSION_BYTES)
    return [packed[place : place + VERSION_BYTES] for place in places]


def prepare_accepts(message: Accept, space: None, rules: Rules) -> Prepared:
    """Prepare the registers that a peer has written; those without room on disk are rejected.

    Raises:
        LimitError: a value is too large.
        Misrouted: this peer holds no replica of a partition.
        ProtocolError: the request is malformed.
    """
    entries = codec.unpack_entries(message.keys, message.records)
    _check_register_keys([storage_key for storage_key, _ in entries], rules)
    _check_register_records(entries)
    places: Sequence[int] = range(len(entries))
    rejected: Rejected = []
    if not rules.has_room:
        places = [place for place in places if entries[place][1][VERSION_END] & TOMBSTONE]
        full = set(range(len(entries))).difference(places)
        rejected = [[place, DiskFull.code, _NO_ROOM] for place in sorted(full)]
        entries = [entries[place] for place in places]
    prepared = _prepared(Accepts(entries), rules, len(entries))
    return prepared._replace(rejected=rejected, places=places)


def _prepared(votes: Prepares | Accepts, rules: Rules, count: int) -> Prepared:
    write = Write(
        [],
        rules.now,
        horizons=rules.horizons,
        votes=votes,
        bounds=rules.bounds,
        may_spend_reserve=True,
    )
    return Prepared(write, [], range(count))


def _check_register_keys(storage_keys: Iterable[bytes], rules: Rules) -> None:
    """Refuse keys that are malformed or not held here, like ``check_storage_key``, in few steps."""
    owned = rules.owned
    for storage_key in storage_keys:
        key = storage_key[3 + storage_key[2] :] if len(storage_key) > 3 else b""
        partition = int.from_bytes(storage_key[:2])
        if not key or partition != xxh3_64_intdigest(key) & MASK or partition not in owned:
            check_storage_key(storage_key, owned)
        if storage_key[3] != SIGN_BYTE:
            raise ProtocolError("a vote is requested on a key of an index without registers")


def _check_register_records(entries: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuse records like ``check_register_record``, in few steps for those of one request."""
    values = []
    shared, begin = b"", 0  # the content of the last record up to its value, which most have
    for storage_key, record in entries:
        if record[_TOUCH_BEGIN:_PLAIN_END] == shared and begin <= len(record) <= _MAX_BYTES:
            value = record[begin:]
        else:
            plain = _plain_value(record)
            if plain is None:
                check_register_record(storage_key, record)
                continue
            value, shared = plain, record[_TOUCH_BEGIN:_PLAIN_END]
            begin = len(record) - len(value)
        if not is_sound(storage_key, record):
            check_register_record(storage_key, record)
        values.append(value)
    if codec.malformed_payloads(values):
        raise ProtocolError(_MALFORMED)


def _plain_value(record: bytes) -> bytes | None:
    """Return the value of a record that is a valid register with one request; None for others."""
    if not _PLAIN_END <= len(record) <= _MAX_BYTES:
        return None
    is_plain = record[VERSION_END] == _REGISTER and record[_TOUCH_BEGIN:VERSION_END] == _NO_TOUCH
    size, *_, count = HEADER.unpack_from(record, HEAD_BYTES)
    answer = record[_PLAIN_END - 1]
    is_plain = is_plain and count == 1 and answer <= MAX_ANSWER_BYTES
    is_whole = size == _PLAIN_BYTES + answer and len(record) >= HEAD_BYTES + size
    return record[HEAD_BYTES + size :] if is_plain and is_whole else None


def check_register_record(storage_key: bytes, record: bytes) -> None:
    """Refuse a record that is not a valid register.

    Raises:
        LimitError: the header and the value are too large together.
        ProtocolError: the record is malformed, or fails its checksum.
    """
    if not is_sound(storage_key, record):
        raise ProtocolError("a register fails its checksum")
    if not is_register(record):
        raise ProtocolError("a vote is requested for a record that is not a register")
    if len(record) - HEAD_BYTES > MAX_VALUE_BYTES:
        raise LimitError(f"a register has at most {MAX_VALUE_BYTES} bytes with its header")
    value = check_register(record)
    if not record[VERSION_END] & TOMBSTONE and codec.malformed_payloads([value]):
        raise ProtocolError(_MALFORMED)


def voted_keys(write: Write) -> list[bytes]:
    """Return the storage keys of the votes of a write."""
    if isinstance(write.votes, Accepts):
        return [storage_key for storage_key, _ in write.votes.entries]
    return list(write.votes.keys) if write.votes is not None else []


def corrupt_keys(write: Write, merged: Merged) -> list[bytes]:
    """Return the storage keys whose records were found corrupt by a vote."""
    if not any(vote.verdict is Verdict.CORRUPT for vote in merged.votes):
        return []
    pairs = zip(voted_keys(write), merged.votes, strict=True)
    return [storage_key for storage_key, vote in pairs if vote.verdict is Verdict.CORRUPT]


def answer_votes(
    message: Prepare | Accept, prepared: Prepared, merged: Merged, life: Life
) -> Promised | Accepted:
    """Return the answer to a request for votes.

    Args:
        message: the request.
        prepared: as it went into the transaction.
        merged: the result.
        life: of the store, after the commit.
    """
    votes: Sequence[Vote] = merged.votes
    if prepared.rejected:
        by_place = dict(zip(prepared.places, merged.votes, strict=True))
        count = len(merged.votes) + len(prepared.rejected)
        votes = [by_place.get(place, _WITHOUT_ROOM) for place in range(count)]
    verdicts = bytes([vote.verdict for vote in votes])
    past = pack_numbers([vote.past for vote in votes])
    if isinstance(message, Accept):
        return Accepted(verdicts, past, life.stamp, life.number, life.began)
    return Promised(
        verdicts,
        b"".join([vote.version for vote in merged.votes]),
        past,
        pack_numbers([vote.horizon for vote in merged.votes]),
        life.stamp,
        life.number,
        life.began,
        Frame(codec.pack_blobs([vote.record for vote in merged.votes])),
    )
