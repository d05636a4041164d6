"""Requests about whole indexes: a drop, and the settings of an index.

A peer writes an entry into the topology. The call returns when so many peers have confirmed the
entry that no quorum of a partition serves requests without it, and no majority restores a lost
topology without it: from then on no read at ``quorum`` finds a dropped record, and no write is
stored by the earlier settings alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Final

from dstash.client.operations.admin import AdminOperation
from dstash.client.operations.base import Chunk, Failure
from dstash.client.session import Send, Session
from dstash.cluster.topology.drops import FEATURE, Drop
from dstash.cluster.topology.indexes.acks import DropAcks, RequestAcks, SettingsAcks
from dstash.cluster.topology.indexes.settings import check_settings
from dstash.cluster.topology.indexes.steps import check_features, check_target, has_settings
from dstash.cluster.topology.topology import Topology
from dstash.errors import ChangeConflict, DStashError, ProtocolError, TimedOut
from dstash.wire.messages import (
    DropRequest,
    IndexSettingsRequest,
    TopologyReply,
    TopologyRequest,
)
from dstash.wire.shapes import Message

#: How long (milliseconds) until a peer that had an older topology is asked again.
_PAUSE_MS: Final = 20


class IndexOperation(AdminOperation):
    """A request about an index that is complete when enough peers have confirmed its entry."""

    waits_for_peers = True
    #: Why most peers may have a topology without the entry, and what to do.
    why_lost: str

    @property
    def hungry(self) -> bool:
        """Whether ``more`` has something to send now: first the request, then the questions."""
        return super().hungry and (not self._open or self.topology is not None)

    def _chunks(self) -> Iterator[list[Chunk]]:
        self.check(self.session.known_view().topology)
        yield from super()._chunks()
        acks = self.acks(self.topology) if self.topology is not None else None
        if acks is None:
            self.fail(ProtocolError(f"a peer answered with a topology without the {self.what}"))
            return
        yield [_KnownChunk(self, acks)]

    @abstractmethod
    def check(self, topology: Topology) -> None:
        """Refuse the request before anything is sent, if the known members cannot carry it out."""

    @abstractmethod
    def acks(self, requested: Topology) -> RequestAcks | None:
        """Return what confirms the request, from its answer; None if the answer lacks it."""


class DropOperation(IndexOperation):
    """Drops an index, or the keys of it that begin with a prefix.

    Raises:
        ChangeConflict: the drop is not possible now; the text says why.
        TimedOut: it is not known whether the records are dropped: the request may be lost, or not
            enough peers know it yet.
    """

    what = "drop"
    why_lost = (
        "the membership has lost it, or all peers have removed the records meanwhile; "
        "drop again to be sure"
    )

    def __init__(self, session: Session, deadline: int, index: str, prefix: bytes) -> None:
        super().__init__(session, deadline, DropRequest(index, prefix, session.stamp()))
        self._index = index
        self._prefix = prefix.hex()

    def check(self, topology: Topology) -> None:
        """Refuse a drop before anything is sent, if the known members cannot carry it out."""
        old = [member.id for member in topology.members if FEATURE not in member.features.split()]
        if old:
            raise ChangeConflict(
                f"{', '.join(old)} runs an earlier version, which cannot drop; upgrade all members"
            )

    def acks(self, requested: Topology) -> DropAcks | None:
        """Return what confirms the drop, and move the clock past it."""
        covering = self._covering(requested)
        if not covering:
            return None
        drop = max(covering, key=lambda drop: drop.stamp)
        self.session.observe(drop.stamp)
        return DropAcks(requested, drop)

    def is_shown(self, topology: Topology, epoch: int) -> bool:
        """Whether a topology has this drop, or a later one of the same keys."""
        return any(
            drop.stamp >= self.request.stamp and drop.number > epoch
            for drop in self._covering(topology)
        )

    def _covering(self, topology: Topology) -> list[Drop]:
        """Return the drops of a topology that include all keys of this drop."""
        return [drop for drop in topology.drops if drop.includes(self._index, self._prefix)]


class IndexSettingsOperation(IndexOperation):
    """Changes the settings of an index; those that are not named stay.

    Args:
        session: of the client.
        deadline: of the call.
        index: its name.
        settings: milliseconds by name; 0 removes a setting.

    Raises:
        LimitError, UsageError: the index or a setting is not allowed.
        ChangeConflict: it is not possible now; the text says why.
        TimedOut: it is not known whether they are changed: the request may be lost, or not enough
            peers know it yet.
    """

    what = "change of settings"
    why_lost = (
        "the membership has lost it, or another request has changed them meanwhile; "
        "check dstash index show"
    )

    def __init__(
        self, session: Session, deadline: int, index: str, settings: Mapping[str, int]
    ) -> None:
        check_target(index)
        check_settings(settings)
        request = IndexSettingsRequest(index, dict(settings), session.stamp())
        super().__init__(session, deadline, request)
        self._index = index
        self._settings = dict(settings)

    def check(self, topology: Topology) -> None:
        """Refuse the request before anything is sent, if a member would not apply it."""
        check_features(topology)

    def acks(self, requested: Topology) -> SettingsAcks | None:
        """Return what confirms the settings."""
        if not self.is_shown(requested, 0):
            return None
        return SettingsAcks(requested, self._index, self._settings)

    def is_shown(self, topology: Topology, epoch: int) -> bool:
        """Whether a topology has these settings."""
        return has_settings(topology, self._index, self._settings)


class _KnownChunk(Chunk):
    """Asks the peers for their topology until enough have confirmed the request."""

    def __init__(self, operation: IndexOperation, acks: RequestAcks) -> None:
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
            found = Topology.decode(message.topology)
            self._acks.take(peer, found, is_kept=message.is_kept)
        view = self.operation.session.known_view()
        if self._acks.is_acked(view):
            self.operation.finish(self)
            return []
        if self._acks.is_lost(view):
            raise TimedOut(
                f"the {self.operation.what} is not in the topology of most peers any more: "
                f"{self.operation.why_lost}"
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
        text = (
            f"the {self.operation.what} is requested, but too few peers have confirmed it: {error}"
        )
        self.operation.error = self.operation.error or TimedOut(text)
