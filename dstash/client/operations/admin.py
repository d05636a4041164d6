"""Orders about the topology: add, remove and replace peers, and steer what is under way.

An order is sent to one peer. When the answer is lost nobody knows whether it was carried out, and
a second one might begin another change: so it is never sent again then. The topology is read
instead, and tells.
"""

from __future__ import annotations

from collections.abc import Iterator

from dstash.client.operations.base import Chunk, Failure, Operation
from dstash.client.session import Send, Session
from dstash.cluster.topology.topology import State, Topology
from dstash.errors import (
    Busy,
    ChangeConflict,
    DeadlinePassed,
    DStashError,
    NotReady,
    ProtocolError,
    TimedOut,
    Unavailable,
)
from dstash.wire.messages import AdminReply, AdminRequest, TopologyReply, TopologyRequest
from dstash.wire.shapes import Message

#: Why a peer does not take an order that another one may take.
_ELSEWHERE = (NotReady, Busy, DeadlinePassed, Unavailable)

#: How long (milliseconds) a peer may take: it asks the membership, which may be slow.
_PATIENCE_MS = 600_000


class AdminOperation(Operation):
    """Gives an order; the result is the topology that came, or would come, of it.

    Raises:
        ChangeConflict: it cannot be done now; the text says why.
        TimedOut: the answer was lost, and the topology does not show what came of it.
    """

    def __init__(self, session: Session, deadline: int, order: AdminRequest) -> None:
        super().__init__(session, deadline)
        self.order = order
        self.topology: Topology | None = None

    def _chunks(self) -> Iterator[list[Chunk]]:
        yield [_AdminChunk(self)]

    def peers(self) -> list[str]:
        """Return whom to ask, the likeliest to answer first."""
        view = self.session.known_view()
        known = sorted(view.members)
        return sorted(
            known, key=lambda peer: (self.session.is_suspect(peer), peer not in view.alive)
        )

    def result(self) -> Topology:
        """Return the topology."""
        super().result()
        if self.topology is None:
            raise AssertionError("an order ended without topology or error")
        return self.topology


class _AdminChunk(Chunk):
    """The order itself: sent to the next peer only while it surely was not carried out."""

    patience = _PATIENCE_MS

    def __init__(self, operation: AdminOperation) -> None:
        self.operation = operation
        self._left = operation.peers()
        self._asked = False
        self._why: DStashError | None = None

    def begin(self, now: int) -> list[Send]:
        if not self._left:
            return self._nobody()
        self._asked = True
        return [self.operation.ask(self._left.pop(0), self, self.operation.order, now)]

    def _nobody(self) -> list[Send]:
        raise self._why or Unavailable("no peer takes orders at the moment")

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        if not isinstance(message, AdminReply):
            raise ProtocolError(f"{peer} answered with an unexpected {type(message).__name__}")
        self.operation.topology = Topology.decode(message.topology)
        if not self.operation.order.dry:
            self.operation.session.install(message.topology, [])
        self.operation.finish(self)
        return []

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        self._why = failure.error
        is_sure = failure.definite or isinstance(failure.error, ChangeConflict)
        if is_sure and not isinstance(failure.error, _ELSEWHERE):
            raise failure.error
        if is_sure or self.operation.order.dry:
            self._asked = False
            return self.begin(now)
        return self.operation.replace(self, [_OutcomeChunk(self.operation)], now)

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        return []

    def expired(self, error: DStashError) -> None:
        kind = _unknown(self.operation.order) if self._asked else error
        self.operation.error = self.operation.error or kind


class _OutcomeChunk(Chunk):
    """Reads the topology until it shows that the order was carried out."""

    def __init__(self, operation: AdminOperation) -> None:
        self.operation = operation

    def begin(self, now: int) -> list[Send]:
        return [
            self.operation.ask(peer, self, TopologyRequest(), now)
            for peer in self.operation.peers()
        ]

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        if isinstance(message, TopologyReply):
            topology = Topology.decode(message.topology)
            if shows(topology, self.operation.order):
                self.operation.topology = topology
                self.operation.finish(self)
                return []
        return self._again(now)

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        return self._again(now)

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        return self._again(now)

    def _again(self, now: int) -> list[Send]:
        successor = _OutcomeChunk(self.operation)
        successor.attempt = self.attempt + 1
        return self.operation.replace_later(self, [successor], now)

    def expired(self, error: DStashError) -> None:
        self.operation.error = self.operation.error or _unknown(self.operation.order)


def shows(topology: Topology, order: AdminRequest) -> bool:
    """Whether a topology is as an order wants it to be."""
    change = topology.change
    here = {one.id for one in topology.members}
    staying = {one.id for one in topology.members if one.state is not State.LEAVING}
    match order.action, list(order.peers):
        case "add", peers:
            return here.issuperset(peers)
        case "remove" | "forget", peers:
            return staying.isdisjoint(peers)
        case "force-remove", peers:
            gone = change.gone if change is not None else ()
            return staying.difference(gone).isdisjoint(peers)
        case "accept-loss", peers:
            accepted = {one.id for one in topology.members if one.waived or one.synced}
            return here.intersection(peers) <= accepted
        case "replace", [old, new]:
            return old not in staying and new in here
        case "cancel", _:
            return change is None
        case "pause" | "resume" as action, _:
            return change is not None and change.paused is (action == "pause")
        case "rate", _:
            return change is not None and change.rate == order.rate
    return False


def _unknown(order: AdminRequest) -> TimedOut:
    return TimedOut(
        f"no answer to {order.action!r} in time: it may or may not be carried out; "
        "look at the status before you try again"
    )
