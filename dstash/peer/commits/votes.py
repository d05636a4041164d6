"""Votes on registers: the checks of a request before the transaction, and its answer after it.

A vote is a write like any other: it waits in the backlog and is answered when it is on disk. The
sender is a peer, so a malformed request is refused as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

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
from dstash.store.record import HEAD_BYTES, VERSION_END, is_sound
from dstash.store.register.ballot import Promise, is_register_key
from dstash.store.register.header import check_register, is_register
from dstash.store.register.voter import Verdict
from dstash.store.register.votes import Accepts, Prepares, Vote
from dstash.version import COUNTER_BITS, MAX_STAMP, VERSION_BYTES, WRITER_BYTES, ZERO
from dstash.wire import codec
from dstash.wire.registers.consensus import Accept, Accepted, Prepare, Promised
from dstash.wire.shapes import Frame

_MAX_ROUND: Final = MAX_STAMP >> COUNTER_BITS
_NO_ROOM: Final = "the disk is full; only deletes still succeed"

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
    for storage_key in keys:
        _check_register_key(storage_key, rules)
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
    for storage_key, record in entries:
        _check_register_key(storage_key, rules)
        check_register_record(storage_key, record)
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


def _check_register_key(storage_key: bytes, rules: Rules) -> None:
    check_storage_key(storage_key, rules.owned)
    if not is_register_key(storage_key):
        raise ProtocolError("a vote is requested on a key of an index without registers")


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
        raise ProtocolError("the value of a register is not one well-formed msgpack object")


def voted_keys(write: Write) -> list[bytes]:
    """Return the storage keys of the votes of a write."""
    if isinstance(write.votes, Accepts):
        return [storage_key for storage_key, _ in write.votes.entries]
    return list(write.votes.keys) if write.votes is not None else []


def corrupt_keys(write: Write, merged: Merged) -> list[bytes]:
    """Return the storage keys whose records were found corrupt by a vote."""
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
    votes: list[Vote | None] = [None] * (len(merged.votes) + len(prepared.rejected))
    for place, vote in zip(prepared.places, merged.votes, strict=True):
        votes[place] = vote
    verdicts = bytes(Verdict.NO_ROOM if vote is None else vote.verdict for vote in votes)
    past = b"".join((vote.past if vote else 0).to_bytes(8, "big") for vote in votes)
    if isinstance(message, Accept):
        return Accepted(verdicts, past, life.stamp, life.number, life.began)
    return Promised(
        verdicts,
        b"".join(vote.version for vote in merged.votes),
        past,
        b"".join(vote.horizon.to_bytes(8, "big") for vote in merged.votes),
        life.stamp,
        life.number,
        life.began,
        Frame(codec.pack_blobs([vote.record for vote in merged.votes])),
    )
