"""Requests and replies as the core of a peer sees them, and the limits that a peer announces."""

from __future__ import annotations

from typing import Final, NamedTuple

from dstash.limits import (
    MAX_FRAME_BYTES,
    MAX_INDEX_BYTES,
    MAX_KEY_BYTES,
    MAX_KEYS_PER_FRAME,
    MAX_VALUE_BYTES,
    PARTITIONS,
)
from dstash.peer.telemetry.tracing import Notes
from dstash.wire.envelope import Envelope
from dstash.wire.protocol import LOWEST_PROTOCOL

#: Announced in ``Welcome``, so that clients in other languages need no constants.
LIMITS: Final = {
    "partitions": PARTITIONS,
    "index_bytes": MAX_INDEX_BYTES,
    "key_bytes": MAX_KEY_BYTES,
    "value_bytes": MAX_VALUE_BYTES,
    "message_bytes": MAX_FRAME_BYTES,
    "keys_per_frame": MAX_KEYS_PER_FRAME,
}


class Ticket(NamedTuple):
    """Where a reply goes: routing id, correlation id, protocol version, notes of the trace."""

    sender: bytes
    correlation: int
    protocol: int = LOWEST_PROTOCOL
    notes: Notes | None = None


class Reply(NamedTuple):
    """Frames for the sender of a request."""

    to: bytes
    frames: list[bytes]


class Request(NamedTuple):
    """A message with its sender (routing id, proved public key), arrival time and size in bytes."""

    sender: bytes
    user: str | None
    envelope: Envelope
    came: int
    size: int
    #: None unless the request is traced.
    notes: Notes | None = None

    @property
    def ticket(self) -> Ticket:
        """Where the reply goes."""
        envelope = self.envelope
        return Ticket(self.sender, envelope.correlation, envelope.protocol, self.notes)
