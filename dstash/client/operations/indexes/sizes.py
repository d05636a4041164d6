"""The list of all indexes: one replica of each partition is asked, and the answers are summed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from dstash.client.operations.base import Chunk, Failure, Operation
from dstash.client.session import SILENCE_MS, Send, Session
from dstash.cluster.topology.indexes.settings import IndexSettings
from dstash.cluster.topology.indexes.steps import check_features
from dstash.cluster.topology.topology import Topology
from dstash.errors import DStashError, ProtocolError, Unauthorised, UsageError
from dstash.limits import PARTITIONS
from dstash.types import Level
from dstash.wire.messages import IndexesReply, IndexesRequest
from dstash.wire.shapes import Message

#: A peer counts up to 100,000 records before it answers. But a call has time to ask another one.
_ANSWER_TIMEOUT_MS: Final = 5000
_ANSWER_TIMEOUT_SHARE: Final = 1 / 5


class IndexSize(NamedTuple):
    """An index and its size: live records, and their bytes on one replica, keys included.

    ``exact`` is false when a part of the partitions was counted, and the rest is estimated. Records
    of writes that the replica asked has missed are not in it. ``ttl`` and ``max_ttl`` are the
    settings of the index in seconds, None where it has none.
    """

    name: str
    records: int
    bytes: int
    exact: bool
    ttl: float | None = None
    max_ttl: float | None = None


class IndexDefaults(NamedTuple):
    """The settings of an index in seconds, None where it has none; see ``Admin.set_index``."""

    name: str
    ttl: float | None
    max_ttl: float | None


def defaults_in(topology: Topology) -> list[IndexDefaults]:
    """Return the settings of all indexes, by name.

    Raises:
        ChangeConflict: a member runs an earlier version: a topology from it has no settings.
    """
    check_features(topology)
    return [IndexDefaults(known.name, *seconds_of(known)) for known in topology.indexes]


def seconds_of(settings: IndexSettings | None) -> tuple[float | None, float | None]:
    """Return ``ttl`` and ``max_ttl`` of an index in seconds, None where it has none."""
    if settings is None:
        return None, None
    return settings.ttl / 1000 or None, settings.max_ttl / 1000 or None


class _Total:
    def __init__(self) -> None:
        self.records = 0.0
        self.bytes = 0.0
        self.exact = True


class IndexesOperation(Operation):
    """Asks one replica of each partition; the result is a list of ``IndexSize``, by name."""

    def __init__(self, session: Session, deadline: int) -> None:
        super().__init__(session, deadline)
        share = round((deadline - session.wall()) * _ANSWER_TIMEOUT_SHARE)
        #: How long the first peers have, in milliseconds; later ones have longer.
        self.patience = min(_ANSWER_TIMEOUT_MS, max(share, SILENCE_MS))
        self._totals: dict[str, _Total] = {}

    def _chunks(self) -> Iterator[list[Chunk]]:
        yield self.cut(range(PARTITIONS))

    def cut(self, partitions: Sequence[int], attempt: int = 0) -> list[Chunk]:
        """Return a chunk for each peer that is asked about some of the partitions."""
        table = self.session.read_targets(Level.ONE)
        by_peer: dict[str, list[int]] = {}
        for partition in partitions:
            peer = table[partition][0] if table[partition] else ""
            by_peer.setdefault(peer, []).append(partition)
        return [
            _IndexesChunk(self, peer, asked, attempt, table.epoch)
            for peer, asked in sorted(by_peer.items())
        ]

    def take(self, reply: IndexesReply) -> None:
        """Add an answer.

        Raises:
            ProtocolError: it is malformed.
        """
        share = reply.counted / reply.partitions if reply.partitions else 1.0
        try:
            for name, records, size, partitions in reply.indexes:
                total = self._totals.setdefault(str(name), _Total())
                estimate = max(records / share, partitions) if share < 1 else records
                total.records += estimate
                total.bytes += size / share
                total.exact = total.exact and share == 1
        except (TypeError, ValueError, ZeroDivisionError):
            raise ProtocolError("a peer sent a malformed list of indexes") from None

    def result(self) -> list[IndexSize]:
        """Return the indexes that have live records, as far as that is known."""
        super().result()
        settings = self.session.known_view().index_settings
        return [
            IndexSize(
                name,
                round(total.records),
                round(total.bytes),
                total.exact,
                *seconds_of(settings.get(name)),
            )
            for name, total in sorted(self._totals.items())
            if total.records
        ]


class _IndexesChunk(Chunk):
    def __init__(
        self,
        operation: IndexesOperation,
        peer: str,
        partitions: Sequence[int],
        attempt: int,
        epoch: int,
    ) -> None:
        self.operation = operation
        self.peer = peer
        self.attempt = attempt
        self.epoch: int = epoch
        self.patience = operation.patience
        self._partitions = partitions

    def begin(self, now: int) -> list[Send]:
        if not self.peer or self.operation.session.epoch > self.epoch:
            return self._again(now)
        packed = b"".join([partition.to_bytes(2, "big") for partition in self._partitions])
        return [self.operation.ask(self.peer, self, IndexesRequest(packed), now)]

    def _again(self, now: int) -> list[Send]:
        chunks = self.operation.cut(self._partitions, self.attempt + 1)
        return self.operation.replace_later(self, chunks, now)

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        if not isinstance(message, IndexesReply):
            raise ProtocolError(f"{peer} answered with an unexpected {type(message).__name__}")
        self.operation.take(message)
        self.operation.finish(self)
        return []

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        if isinstance(failure.error, Unauthorised):
            raise failure.error
        if isinstance(failure.error, ProtocolError):
            raise UsageError(f"{peer} runs an earlier version, which cannot list indexes")
        return self._again(now)

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        return self._again(now)

    def expired(self, error: DStashError) -> None:
        self.operation.error = self.operation.error or error
