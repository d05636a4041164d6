"""The answers of voters, from their messages."""

from __future__ import annotations

from typing import Final

from dstash.errors import ProtocolError
from dstash.store.record import ABSENT
from dstash.store.register.header import is_register
from dstash.store.register.voter import Verdict
from dstash.store.register.votes import Vote
from dstash.version import VERSION_BYTES
from dstash.wire import codec
from dstash.wire.registers import unpack_numbers
from dstash.wire.registers.consensus import Accepted, Promised

_VERDICTS: Final = frozenset(Verdict)


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
