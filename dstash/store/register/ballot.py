"""Ballots: the versions of registers, and promises not to take lower ones.

A register is a record in an index whose name begins with ``@``. Its version is a ballot: the
milliseconds of the stamp are the *round*, its counter is the *step* in the round. The algorithm for
each key is CASPaxos (Rystsov, "CASPaxos: Replicated State Machines without logs", 2018);
``docs/atomic.md`` has the rules and the proofs.

A promise on disk, under the storage key of its register::

    | checksum 8 | round 8 | writer 4 | earlier 8, or nothing |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from xxhash import xxh3_64_digest, xxh3_64_intdigest

from dstash.version import WRITE_BYTES, WRITER_BYTES, Stamp, Version, write_stamp
from dstash.version import stamp_milliseconds as milliseconds

#: The first character of the name of an index with registers.
SIGN: Final = "@"

SIGN_BYTE: Final = ord(SIGN)
#: Where the name of the index begins in a storage key.
_INDEX_BEGIN: Final = 3
_STAMP_BYTES: Final = 8
_CHECKSUM_BYTES: Final = 8
_ROUND_BYTES: Final = 8
_PROMISE_BYTES: Final = _CHECKSUM_BYTES + _ROUND_BYTES + WRITER_BYTES

#: The writer of a promise that is corrupt: equal to that of no ballot.
_UNKNOWN_WRITER: Final = b""
#: The writer of the promise of an earlier voter: equal to that of no ballot, too.
EARLIER_WRITER: Final = bytes(WRITER_BYTES)


class Promise(NamedTuple):
    """A voter's statement that it takes no lower round, nor this round of another writer.

    ``earlier``: the highest round that was promised by a voter from which this store was streamed
    (T2), 0 for none: what this store holds may come from another one, which did not promise it.
    """

    round: int
    writer: bytes
    earlier: int = 0

    @property
    def unsettled(self) -> int:
        """The round up to which what the voter holds may be superseded (T3)."""
        return self.earlier if self.writer != _UNKNOWN_WRITER else self.round

    def forbids_merge(self, version: Version) -> bool:
        """Whether a register must not be merged: an earlier voter's promise forbids votes only."""
        return self.round > self.earlier and self.forbids(version)

    def with_earlier(self, number: int) -> Promise:
        """Return the promise together with that of an earlier voter."""
        earlier = max(self.earlier, number)
        if number > self.round:
            return Promise(number, EARLIER_WRITER, earlier)
        return Promise(self.round, self.writer, earlier)

    def forbids(self, version: Version) -> bool:
        """Whether a register with this version must not be taken."""
        number = round_of(version)
        return number < self.round or (number == self.round and writer_of(version) != self.writer)


def is_register_key(storage_key: bytes) -> bool:
    """Whether a storage key is in an index with registers."""
    return storage_key[_INDEX_BEGIN] == SIGN_BYTE


def has_register_keys(entries: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether any of some (storage key, record) pairs is in an index with registers."""
    # A set of bytes is faster than a test of each key: streaming passes all its records here.
    return SIGN_BYTE in {storage_key[_INDEX_BEGIN] for storage_key, _ in entries}


def registers_between(
    walk: Callable[[bytes, bytes], Iterator[tuple[bytes, bytes]]], begin: bytes, end: bytes
) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (storage key, record) pairs of registers in a range of one partition.

    Names of indexes are sorted by their length, so it looks once for each length that is used.

    Args:
        walk: yields the pairs with ``begin <= storage key < end``, in order.
        begin: where the range begins.
        end: where it ends.
    """
    while begin < end:
        following = next(walk(begin, end), None)
        if following is None:
            return
        place, sign = following[0][:_INDEX_BEGIN], following[0][_INDEX_BEGIN]
        first, last = place + SIGN.encode(), place + bytes((SIGN_BYTE + 1,))
        if sign <= SIGN_BYTE:
            yield from walk(max(begin, first), min(end, last))
            begin = last
        else:
            begin = _next_length(place, end)


def _next_length(place: bytes, end: bytes) -> bytes:
    """Return where the names of the next length begin in a partition."""
    length = place[-1]
    return place[:-1] + bytes((length + 1,)) if length < 0xFF else end


def round_of(version: Version) -> int:
    """Return the round of a ballot, in milliseconds."""
    return milliseconds(write_stamp(version))


def writer_of(version: Version) -> bytes:
    """Return the writer of a ballot."""
    return version[_STAMP_BYTES:WRITE_BYTES]


def is_rival(version: Version, other: Version) -> bool:
    """Whether two versions are of one round, but of different writers."""
    return round_of(version) == round_of(other) and writer_of(version) != writer_of(other)


def pack_promise(storage_key: bytes, promise: Promise) -> bytes:
    """Return a promise as it is stored."""
    body = promise.round.to_bytes(_ROUND_BYTES, "big") + promise.writer
    if promise.earlier:
        body += promise.earlier.to_bytes(_ROUND_BYTES, "big")
    return _checksum(storage_key, body) + body


def unpack_promise(storage_key: bytes, stored: bytes, bound: Stamp) -> Promise:
    """Return a stored promise.

    Args:
        storage_key: the key of the register.
        stored: as ``pack_promise`` returned it.
        bound: a stamp above which this store had promised no round: if the promise is corrupt, it
            counts as a promise for all rounds up to this bound.
    """
    body = stored[_CHECKSUM_BYTES:]
    if not is_sound_promise(storage_key, stored):
        return Promise(milliseconds(bound), _UNKNOWN_WRITER)
    end = _ROUND_BYTES + WRITER_BYTES
    return Promise(
        int.from_bytes(body[:_ROUND_BYTES], "big"),
        body[_ROUND_BYTES:end],
        int.from_bytes(body[end:], "big"),
    )


def is_sound_promise(storage_key: bytes, stored: bytes) -> bool:
    """Whether the checksum of a stored promise matches its content and its key."""
    body = stored[_CHECKSUM_BYTES:]
    is_whole = len(stored) in (_PROMISE_BYTES, _PROMISE_BYTES + _ROUND_BYTES)
    return is_whole and stored == _checksum(storage_key, body) + body


def _checksum(storage_key: bytes, body: bytes) -> bytes:
    return xxh3_64_digest(body, xxh3_64_intdigest(storage_key))
