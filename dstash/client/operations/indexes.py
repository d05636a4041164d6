"""Operations on whole indexes: the list of all indexes, and the drop of an index.

For the list, one replica of each partition is asked, and the answers are summed. For a drop, a peer
writes an entry into the topology. The call returns when so many peers have confirmed the entry that
no quorum of a partition serves requests without it, and no majority restores a lost topology
without it: from then on no read at ``quorum`` finds a dropped record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from dstash.client.operations.admin import AdminOperation
from dstash.client.operations.base import Chunk, Failure, Operation
from dstash.client.session import Send, Session
from dstash.cluster.topology.drop_acks import DropAcks
from dstash.cluster.topology.drops import FEATURE, Drop
from dstash.cluster.topology.topology import Topology
from dstash.errors import (
    ChangeConflict,
    DStashError,
    ProtocolError,
    TimedOut,
    Unauthorised,
    UsageError,
)
from dstash.limits import PARTITIONS
from dstash.types import Level
from dstash.wire.messages import (
    DropRequest,
    IndexesReply,
    IndexesRequest,
    TopologyReply,
    TopologyRequest,
)
from dstash.wire.shapes import Message

#: A peer counts up to 100,000 records before it answers.
_ANSWER_TIMEOUT_MS: Final = 5000


class IndexSize(NamedTuple):
    """An index and its size: live records, and their bytes on one replica, keys included.

    ``exact`` is false when a part of the partitions was counted, and the rest is estimated. Records
    of writes that the replica asked has missed are not in it.
    """

    name: str
    records: int
    bytes: int
    exact: bool


class _Total:
    def __init__(self) -> None:
        self.records = 0.0
        self.bytes = 0.0
        self.exact = True


class IndexesOperation(Operation):
    """Asks one replica of each partition; the result is a list of ``IndexSize``, by name."""

    def __init__(self, session: Session, deadline: int) -> None:
        super().__init__(session, deadline)
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
            _IndexesChunk(self, peer, asked, attempt, self.session.epoch)
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
        return [
            IndexSize(name, round(total.records), round(total.bytes), total.exact)
            for name, total in sorted(self._totals.items())
            if total.records
        ]


class _IndexesChunk(Chunk):
    patience = _ANSWER_TIMEOUT_MS

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


#: How long (milliseconds) until a peer that had an older topology is asked again.
_PAUSE_MS: Final = 20


class DropOperation(AdminOperation):
    """Drops an index, or the keys of it that begin with a prefix.

    Raises:
        ChangeConflict: the drop is not possible now; the text says why.
        TimedOut: it is not known whether the records are dropped: the order may be lost, or not
            enough peers know it yet.
    """

    waits_for_peers = True

    def __init__(self, session: Session, deadline: int, index: str, prefix: bytes) -> None:
        super().__init__(session, deadline, DropRequest(index, prefix, session.stamp()))
        self._index = index
        self._prefix = prefix.hex()

    @property
    def hungry(self) -> bool:
        """Whether ``more`` has something to send now: first the order, then the questions."""
        return super().hungry and (not self._open or self.topology is not None)

    def _chunks(self) -> Iterator[list[Chunk]]:
        self._check_features(self.session.known_view().topology)
        yield from super()._chunks()
        ordered = self.topology
        covering = self._covering(ordered) if ordered is not None else []
        if ordered is None or not covering:
            self.fail(ProtocolError("a peer answered with a topology without the drop"))
            return
        drop = max(covering, key=lambda drop: drop.stamp)
        self.session.observe(drop.stamp)
        yield [_KnownChunk(self, DropAcks(ordered, drop))]

    def _check_features(self, topology: Topology) -> None:
        """Refuse a drop before anything is sent, if the known members cannot carry it out."""
        old = [member.id for member in topology.members if FEATURE not in member.features.split()]
        if old:
            raise ChangeConflict(
                f"{', '.join(old)} runs an earlier version, which cannot drop; upgrade all members"
            )

    def is_shown(self, topology: Topology, epoch: int) -> bool:
        """Whether a topology has this drop, or a later one of the same keys."""
        return any(
            drop.stamp >= self.request.stamp and drop.number > epoch
            for drop in self._covering(topology)
        )

    def _covering(self, topology: Topology) -> list[Drop]:
        """Return the drops of a topology that include all keys of this drop."""
        return [drop for drop in topology.drops if drop.includes(self._index, self._prefix)]


class _KnownChunk(Chunk):
    """Asks the peers for their topology until enough have confirmed the drop."""

    def __init__(self, operation: DropOperation, acks: DropAcks) -> None:
        self.operation = operation
        self._acks = acks
        self._waiting: set[str] = set()

    def begin(self, now: int) -> list[Send]:
        view = self.operation.session.known_view()
        self._waiting = set(view.members) - self._acks.passed
        return [
            self.operation.ask(peer, self, TopologyRequest(), now) for peer in sorted(self._waiting)
        ]

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        if isinstance(message, TopologyReply):
            self._acks.take(peer, Topology.decode(message.topology))
        view = self.operation.session.known_view()
        if self._acks.is_acked(view):
            self.operation.finish(self)
            return []
        if self._acks.is_lost(view):
            raise TimedOut(
                "the drop is not in the topology of most peers any more: the membership has lost "
                "it, or all peers have removed the records meanwhile; drop again to be sure"
            )
        return self._settle(peer, now)

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        return self._settle(peer, now)

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        return self._settle(peer, now)

    def _settle(self, peer: str, now: int) -> list[Send]:
        """Ask again when all have answered."""
        self._waiting.discard(peer)
        if self._waiting:
            return []
        successor = _KnownChunk(self.operation, self._acks)
        successor.retry_after = _PAUSE_MS
        return self.operation.replace_later(self, [successor], now)

    def expired(self, error: DStashError) -> None:
        text = f"the drop is ordered, but too few peers have confirmed it: {error}"
        self.operation.error = self.operation.error or TimedOut(text)
