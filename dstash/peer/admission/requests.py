"""What comes to a peer and what goes out, as its core sees it; and what it announces of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from dstash.limits import (
    MAX_FRAME_BYTES,
    MAX_INDEX_BYTES,
    MAX_KEY_BYTES,
    MAX_KEYS_PER_FRAME,
    MAX_VALUE_BYTES,
    PARTITIONS,
)
from dstash.peer.commits import Ticket
from dstash.peer.telemetry.tracing import Notes
from dstash.wire.envelope import Envelope
from dstash.wire.messages import AdminRequest
from dstash.wire.shapes import Message

#: Announced in ``Welcome``, so that clients in other languages need not guess.
LIMITS: Final = {
    "partitions": PARTITIONS,
    "index_bytes": MAX_INDEX_BYTES,
    "key_bytes": MAX_KEY_BYTES,
    "value_bytes": MAX_VALUE_BYTES,
    "message_bytes": MAX_FRAME_BYTES,
    "keys_per_frame": MAX_KEYS_PER_FRAME,
}


class Reply(NamedTuple):
    """Frames for whoever sent a request."""

    to: bytes
    frames: list[bytes]


class Request(NamedTuple):
    """A message, who sent it (a routing id, and the public key that was proved), and its size."""

    sender: bytes
    user: str | None
    envelope: Envelope
    came: int
    size: int
    #: None unless it is traced.
    notes: Notes | None = None

    @property
    def ticket(self) -> Ticket:
        """Whom to answer."""
        envelope = self.envelope
        return Ticket(self.sender, envelope.correlation, envelope.protocol, self.notes)


class PendingAdminRequest(NamedTuple):
    """An operator's order, and what turns its answer into a reply."""

    order: AdminRequest
    answer: Callable[[Message, int], list[Reply]]
