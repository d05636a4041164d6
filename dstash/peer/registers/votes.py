"""The answers of voters, from their messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from dstash.errors import ProtocolError
from dstash.store.record import ABSENT
from dstash.store.register.header import is_register
from dstash.store.register.voter import Verdict
from dstash.store.register.votes import Vote
from dstash.version import VERSION_BYTES
from dstash.wire import codec
from dstash.wire.registers import unpack_numbers
from dstash.wire.registers.consensus import Accepted, Promised
from dstash.wire.shapes import Message

_VERDICTS: Final = frozenset(Verdict)
_VOTED_BYTE: Final = bytes((Verdict.VOTED,))


class Columns(NamedTuple):
    """The votes of one voter on many registers, as its message has them.

    ``held`` has 20 bytes for each register, ``horizons`` 8; they are empty in answers to an accept.
    """

    verdicts: bytes
    past: bytes
    held: bytes = b""
    horizons: bytes = b""
    records: Sequence[bytes | None] = ()

    @property
    def refused(self) -> set[int]:
        """The places without a plain vote."""
        if not self.verdicts.strip(_VOTED_BYTE):
            return set()
        return {place for place, verdict in enumerate(self.verdicts) if verdict}

    def vote(self, place: int) -> Vote:
        """Return the vote at a place, as far as it counts when it is refused."""
        past = int.from_bytes(self.past[8 * place : 8 * place + 8], "big")
        return Vote(Verdict(self.verdicts[place]), ABSENT, past, 0)

    def only(self, places: Sequence[int]) -> Columns:
        """Return the votes at some places."""
        held, past, horizons = self.held, self.past, self.horizons
        return Columns(
            bytes([self.verdicts[place] for place in places]),
            b"".join([past[8 * place : 8 * place + 8] for place in places]),
            b"".join(
                [held[VERSION_BYTES * place : VERSION_BYTES * (place + 1)] for place in places]
            ),
            b"".join([horizons[8 * place : 8 * place + 8] for place in places]),
            [self.records[place] for place in places] if self.records else (),
        )


def columns_of(message: Message, count: int) -> Columns | None:
    """Return the votes on ``count`` registers; None if the message has none, or is malformed."""
    if not isinstance(message, Promised | Accepted):
        return None
    is_whole = len(message.verdicts) == count and len(message.past) == 8 * count
    if not is_whole or not _VERDICTS.issuperset(message.verdicts):
        return None
    if isinstance(message, Accepted):
        return Columns(message.verdicts, message.past)
    try:
        records = codec.unpack_optional_blobs(message.records)
    except ProtocolError:
        return None
    lengths = (len(message.held), len(message.horizons), len(records))
    if lengths != (VERSION_BYTES * count, 8 * count, count):
        return None
    if any(record is not None and not is_register(record) for record in records):
        return None
    return Columns(message.verdicts, message.past, message.held, message.horizons, records)


def unpack_promised(message: Promised) -> list[Vote]:
    """Return the vote on each key; an empty list if the message is malformed."""
    count, held = len(message.verdicts), message.held
    try:
        past, horizons = unpack_numbers(message.past), unpack_numbers(message.horizons)
        records = codec.unpack_optional_blobs(message.records)
    except ProtocolError:
        return []
    lengths = {len(past), len(horizons), len(records), len(held) // VERSION_BYTES}
    if lengths != {count} or not _VERDICTS.issuperset(message.verdicts):
        return []
    if any(record is not None and not is_register(record) for record in records):
        return []
    return [
        Vote(
            Verdict(verdict),
            held[place * VERSION_BYTES : (place + 1) * VERSION_BYTES],
            past[place],
            horizons[place],
            records[place],
        )
        for place, verdict in enumerate(message.verdicts)
    ]


def unpack_accepted(message: Accepted) -> list[Vote]:
    """Return the vote on each key; an empty list if the message is malformed."""
    try:
        past = unpack_numbers(message.past)
    except ProtocolError:
        return []
    if len(past) != len(message.verdicts) or not _VERDICTS.issuperset(message.verdicts):
        return []
    pairs = zip(message.verdicts, past, strict=True)
    return [Vote(Verdict(verdict), ABSENT, number, 0) for verdict, number in pairs]
