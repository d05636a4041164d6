"""Writes that wait for the disk: what a client or a peer sent, and what this peer's tasks write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dstash.cluster.replication.tasks import Merge
from dstash.cluster.topology.indexes.settings import IndexSettings
from dstash.errors import DStashError
from dstash.peer.admission.requests import Ticket
from dstash.store.record import Keyspace
from dstash.wire.messages import Apply, Delete, Put
from dstash.wire.registers.consensus import Accept, Prepare
from dstash.wire.replication import Push

#: The most bytes of requests that one transaction takes. It bounds the time until an ack.
COMMIT_BYTES: Final = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Internal:
    """A write of this peer's own maintenance; ``done`` is called with the error, if any."""

    merge: Merge
    done: Callable[[DStashError | None], None]


@dataclass(slots=True)
class WaitingWrite:
    """A write that waits for a commit; an internal write has an empty ticket and no keyspace.

    ``settings`` are those of its index in the epoch in which it was admitted: replicas that commit
    it in different epochs must store the same.
    """

    ticket: Ticket
    message: Put | Delete | Apply | Push | Prepare | Accept | Internal
    space: Keyspace | None
    weight: int
    #: In which a request for votes was sent.
    epoch: int = 0
    settings: IndexSettings | None = None
    #: Storage key and record of a put of one key; None if they are made at the commit.
    entry: tuple[bytes, bytes] | None = None

    @classmethod
    def of(
        cls,
        ticket: Ticket,
        message: Put | Delete | Apply | Push | Prepare | Accept,
        space: Keyspace | None,
        epoch: int = 0,
        settings: IndexSettings | None = None,
    ) -> WaitingWrite:
        """Return a write that came as a message, with its weight: the bytes of keys and content."""
        content = getattr(message, "payloads", b"") or getattr(message, "records", b"")
        weight = len(message.keys) + len(content)
        return cls(ticket, message, space, weight, epoch, settings)
