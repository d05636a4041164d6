"""A cluster in memory as the source of a backup: see ``tests/harness/joined.py``."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from dstash.backup.copy import Copier
from dstash.backup.pieces import Entries, Header, PieceReader, PieceWriter, partitions_of
from dstash.backup.source import LiveCluster
from dstash.client.operations.base import Operation
from dstash.client.session import Send, Session
from dstash.store.record import open_record
from dstash.types import Level
from tests.harness.joined import Joined

#: Keys of the first piece: one piece is enough for these tests.
NUMBER = 0
PARTITIONS = partitions_of(NUMBER)


class Caller(Joined):
    """Peers that answer requests of peers also to a client, and this client."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = LiveCluster(_Client(self), Level.QUORUM, 5.0)

    def _deliver(self, operation: Operation, send: Send) -> list[Send]:
        sends = super()._deliver(operation, send)
        self.settle()
        return sends

    def save(self) -> dict[bytes, bytes]:
        """Copy one piece; return its records by storage key."""
        return dict(self.saved()[1])

    def saved(self) -> tuple[int, Entries]:
        """Copy one piece; return the number of partitions that kept changing, and the records."""
        target = io.BytesIO()
        writer = PieceWriter(target, Header("id", NUMBER), "then")
        moving = Copier(self.cluster, writer).copy(PARTITIONS)
        piece = writer.finish(moving, "now")
        target.seek(0)
        reader = PieceReader(target)
        entries = [entry for block in reader.blocks() for entry in block]
        assert reader.piece == piece
        return moving, entries

    def drop_tombstones(self) -> None:
        """Let time pass until all dead records have left the disk."""
        for _ in range(100):
            self.now += 31_000  # replicas are compared first, and agree on horizons the next time
            self.settle()
            if not any(
                open_record(record).is_tombstone
                for store in self.stores.values()
                for record in store.records.values()
            ):
                return
        raise AssertionError("no tombstone was dropped")


class _Client:
    def __init__(self, joined: Joined) -> None:
        self._joined = joined

    def session(self, *, timeout: float | None = None) -> Session:
        return self._joined.session

    def run(
        self, make: Callable[[Session, int], Operation], *, timeout: float | None = None
    ) -> Any:
        return self._joined.run(make(self._joined.session, self._joined.now + 5000))
