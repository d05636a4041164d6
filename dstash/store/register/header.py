"""The header of a register: what is stored in front of its value.

::

    header | size 4 | changed 8 | fence 8 | forgotten 8 | count 2 | count x entry |
    entry  | caller 8 | number 8 | changed 8 | outcome 1 | size 1 | answer 0-32 |

Numbers are big-endian. A tombstone has a header too, and no value. Entries make operations
exactly-once: a request that is repeated finds its entry, on every replica that holds the record.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from dstash.errors import ProtocolError
from dstash.store.record import CHECKSUM_END, HEAD_BYTES, VERSION_END
from dstash.types import RecordFlag
from dstash.version import MAX_STAMP, WRITE_BYTES, Stamp, newest_stamp

CALLER_BYTES: Final = 8
MAX_ANSWER_BYTES: Final = 32
MAX_ENTRIES: Final = 1024

HEADER: Final = struct.Struct(">IQQQH")
ENTRY: Final = struct.Struct(">8sQQBB")
_SIZE: Final = struct.Struct(">I")
_BEGINNING: Final = struct.Struct(">IQ")
#: The size of the largest header.
MAX_HEADER_BYTES: Final = HEADER.size + MAX_ENTRIES * (ENTRY.size + MAX_ANSWER_BYTES)
_TOMBSTONE: Final = RecordFlag.TOMBSTONE.value
_REGISTER: Final = RecordFlag.REGISTER.value


class Applied(IntEnum):
    """The outcome of a request, as its entry keeps it. The numbers are stored."""

    APPLIED = 0
    #: Its condition was not met. Kept for requests that were sent more than once.
    CONFLICT = 1
    #: It would not have changed the value. Kept like ``CONFLICT``.
    UNCHANGED = 2
    #: It was applied, and its answer is too large to be kept.
    ANSWER_LOST = 3


class Entry(NamedTuple):
    """A request that was decided, with its answer.

    ``number``: of the request, in the order of its caller; a stamp. ``changed``: the version that
    was answered. ``answer``: up to 32 bytes.
    """

    caller: bytes
    number: Stamp
    changed: Stamp
    outcome: int = Applied.APPLIED
    answer: bytes = b""


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a register.

    ``changed``: the stamp of the step that last changed the value; the version that users see.
    ``fence``: the highest fencing token that a write has carried. ``forgotten``: requests with a
    number up to this may have been applied although they have no entry.
    """

    changed: Stamp
    fence: Stamp = 0
    forgotten: Stamp = 0
    entries: tuple[Entry, ...] = ()

    @property
    def newest_number(self) -> Stamp:
        """The highest number of a request that this register knows."""
        return max([self.forgotten, *(entry.number for entry in self.entries)])


def pack_header(header: Header) -> bytes:
    """Return a header as it is stored."""
    body = b"".join(
        ENTRY.pack(entry.caller, entry.number, entry.changed, int(entry.outcome), len(entry.answer))
        + entry.answer
        for entry in header.entries
    )
    size = HEADER.size + len(body)
    fixed = (header.changed, header.fence, header.forgotten, len(header.entries))
    return HEADER.pack(size, *fixed) + body


def split(payload: bytes) -> tuple[Header, bytes]:
    """Return the header and the value of a register's payload.

    Raises:
        ProtocolError: the header is malformed.
    """
    try:
        return _split(payload)
    except (struct.error, IndexError):
        raise ProtocolError("the header of a register is too short") from None


def _split(payload: bytes) -> tuple[Header, bytes]:
    size, changed, fence, forgotten, count = HEADER.unpack_from(payload)
    if count > MAX_ENTRIES:
        raise ProtocolError(f"a register has {count} entries; allowed are {MAX_ENTRIES}")
    place, entries = HEADER.size, []
    for _ in range(count):
        caller, number, version, outcome, length = ENTRY.unpack_from(payload, place)
        if length > MAX_ANSWER_BYTES:
            raise ProtocolError(
                f"an answer of {length} bytes in a register; allowed are {MAX_ANSWER_BYTES}"
            )
        place += ENTRY.size
        answer = payload[place : place + length]
        entries.append(Entry(caller, number, version, outcome, answer))
        place += length
    if size != place or len(payload) < size:
        raise ProtocolError(f"the header of a register has {place} bytes, but states {size}")
    return Header(changed, fence, forgotten, tuple(entries)), payload[size:]


def value_of(payload: bytes) -> bytes:
    """Return the value in the payload of a valid register, without reading the entries."""
    return payload[_SIZE.unpack_from(payload)[0] :]


def read_value(record: bytes) -> tuple[Stamp, bytes]:
    """Return ``changed`` and the value of a valid register, without reading the entries."""
    size, changed = _BEGINNING.unpack_from(record, HEAD_BYTES)
    return changed, record[HEAD_BYTES + size :]


def check_register(record: bytes) -> bytes:
    """Return the value of a register; empty for a tombstone.

    Args:
        record: a sound record with the register flag.

    Raises:
        ProtocolError: the record is malformed.
    """
    _, value = split(record[HEAD_BYTES:])
    if int.from_bytes(record[CHECKSUM_END + WRITE_BYTES : VERSION_END], "big"):
        raise ProtocolError("a register has a version with a touch")
    if record[VERSION_END] & RecordFlag.RESTORED:
        raise ProtocolError("a register has the flag of a restored record")
    if value and record[VERSION_END] & _TOMBSTONE:
        raise ProtocolError("a tombstone has a value")
    return value


def is_register(record: bytes) -> bool:
    """Whether a record has the flag of a register."""
    return bool(record[VERSION_END] & _REGISTER)


def is_collectable(record: bytes, stamp: Stamp) -> bool:
    """Whether a register may be dropped when ``stamp`` is the horizon."""
    # Most registers are newer.
    is_covered = newest_stamp(record[CHECKSUM_END:VERSION_END]) <= stamp
    return is_covered and collectable_from(record) <= stamp


def collectable_from(record: bytes) -> Stamp:
    """Return the lowest horizon at which a register may be dropped; above every stamp if at none.

    Only a tombstone may, and only if every request that it knows is covered by the horizon too:
    afterwards the horizon alone says which requests are too old to be recognised. A tombstone with
    a fencing token stays, because nothing else would refuse a lower token.
    """
    if not record[VERSION_END] & _TOMBSTONE:
        return MAX_STAMP + 1
    header, _ = split(record[HEAD_BYTES:])
    if header.fence:
        return MAX_STAMP + 1
    return max(newest_stamp(record[CHECKSUM_END:VERSION_END]), header.newest_number)
