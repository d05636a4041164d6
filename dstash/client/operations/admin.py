"""Admin requests: add, remove and replace peers, and control the topology change.

An admin request is sent to one peer. If the answer is lost, the request may have been carried out,
and a second request might start another change. So the client does not send it again: it reads the
topology, which shows the outcome. For the same reason it first finds a peer that answers.
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
from dstash.wire.messages import (
    AdminReply,
    AdminRequest,
    DropRequest,
    IndexSettingsRequest,
    TopologyReply,
    TopologyRequest,
)
from dstash.wire.shapes import Message

#: Errors of a peer that another peer may not return.
_TRY_NEXT_PEER = (NotReady, Busy, DeadlinePassed, Unavailable)

#: Timeout of one peer. It is long, because the peer waits for the membership.
_ANSWER_TIMEOUT_MS = 600_000


class AdminOperation(Operation):
    """Sends an admin request; the result is the topology with the change.

    Raises:
        ChangeConflict: the request is not possible now; the text says why.
        TimedOut: the answer was lost, and the topology does not show the outcome.
    """

    #: Whether to try again until the deadline while no peer is ready to take the request.
    waits_for_peers = False
    #: What a request without an action is, in messages.
    what = ""

    def __init__(
        self,
        session: Session,
        deadline: int,
        request: AdminRequest | DropRequest | IndexSettingsRequest,
    ) -> None:
        super().__init__(session, deadline)
        self.request = request
        self.topology: Topology | None = None

    @property
    def is_dry(self) -> bool:
        """Whether the request changes nothing."""
        return isinstance(self.request, AdminRequest) and self.request.dry

    def is_shown(self, topology: Topology, epoch: int) -> bool:
        """Whether a topology shows the effect of the request, which was sent under an epoch."""
        return isinstance(self.request, AdminRequest) and shows(topology, self.request, epoch)

    @property
    def unknown(self) -> TimedOut:
        """The error for a request without an answer."""
        action = self.request.action if isinstance(self.request, AdminRequest) else self.what
        return TimedOut(
            f"no answer to {action!r} in time: it may or may not be carried out; "
            "check the status before you try again"
        )

    def _chunks(self) -> Iterator[list[Chunk]]:
        yield [_SelectionChunk(self)]

    def peers(self) -> list[str]:
        """Return the members, the likeliest to answer first."""
        return sorted(
            sorted(self.session.known_view().members),
            key=lambda peer: (self.session.is_suspect(peer), not self.is_alive(peer)),
        )

    def is_alive(self, peer: str) -> bool:
        """Whether a member holds its session lock, as far as this client knows."""
        return peer in self.session.known_view().alive

    def result(self) -> Topology:
        """Return the topology."""
        super().result()
        if self.topology is None:
            raise AssertionError("an admin request ended without topology or error")
        return self.topology


class _SelectionChunk(Chunk):
    """Finds a peer that answers, and sends the request to it.

    A request must not be sent twice, so the answer of a silent peer would have to be awaited until
    the deadline. A peer that is not alive is chosen only if no other one answers in time: it may
    not reach the membership.

    Args:
        operation: of the request.
        tried: peers that did not carry it out.
        why: the last reason.
    """

    def __init__(
        self,
        operation: AdminOperation,
        tried: frozenset[str] = frozenset(),
        why: DStashError | None = None,
    ) -> None:
        self.operation = operation
        self._tried = tried
        self._why = why
        self._waiting: set[str] = set()
        self._awaited: set[str] = set()
        self._answered: list[str] = []

    def begin(self, now: int) -> list[Send]:
        operation = self.operation
        peers = [peer for peer in operation.peers() if peer not in self._tried]
        self._waiting = set(peers)
        self._awaited = {peer for peer in peers if operation.is_alive(peer)}
        if not peers:
            return self._no_peer_left(now)
        return [operation.ask(peer, self, TopologyRequest(), now) for peer in peers]

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        self._waiting.discard(peer)
        if isinstance(message, TopologyReply):
            if peer in self._awaited:
                return self._send_to(peer, now)
            self._answered.append(peer)
        return self._give_up(peer, now)

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        if failure.definite and not isinstance(failure.error, _TRY_NEXT_PEER):
            raise failure.error
        self._why = failure.error
        self._waiting.discard(peer)
        return self._give_up(peer, now)

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        return self._give_up(peer, now)

    def _give_up(self, peer: str, now: int) -> list[Send]:
        """Await a peer no longer; it may still answer."""
        self._awaited.discard(peer)
        if self._answered and not self._awaited:
            return self._send_to(self._answered[0], now)
        return [] if self._waiting else self._no_peer_left(now)

    def _send_to(self, peer: str, now: int) -> list[Send]:
        successor = _AdminChunk(self.operation, peer, self._tried)
        successor.attempt = self.attempt
        return self.operation.replace(self, [successor], now)

    def _no_peer_left(self, now: int) -> list[Send]:
        if self.operation.waits_for_peers and isinstance(self._why, NotReady | Busy):
            successor = _SelectionChunk(self.operation)
            successor.attempt = self.attempt + 1
            return self.operation.replace_later(self, [successor], now)
        raise self._why or Unavailable("no peer accepts admin requests now")

    def expired(self, error: DStashError) -> None:
        self.operation.error = self.operation.error or error


class _AdminChunk(Chunk):
    """The request itself: sent to another peer only if this one did not carry it out."""

    patience = _ANSWER_TIMEOUT_MS

    def __init__(self, operation: AdminOperation, peer: str, tried: frozenset[str]) -> None:
        self.operation = operation
        self._peer = peer
        self._tried = tried | {peer}
        self._epoch = 0

    def begin(self, now: int) -> list[Send]:
        self._epoch = self.operation.session.epoch
        return [self.operation.ask(self._peer, self, self.operation.request, now)]

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        if not isinstance(message, AdminReply):
            raise ProtocolError(f"{peer} answered with an unexpected {type(message).__name__}")
        self.operation.topology = Topology.decode(message.topology)
        if not self.operation.is_dry:
            self.operation.session.install(message.topology, [])
        self.operation.finish(self)
        return []

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        is_sure = failure.definite or isinstance(failure.error, ChangeConflict)
        if is_sure and not isinstance(failure.error, _TRY_NEXT_PEER):
            raise failure.error
        successor: Chunk = _OutcomeChunk(self.operation, self._epoch)
        if is_sure or self.operation.is_dry:
            successor = _SelectionChunk(self.operation, self._tried, failure.error)
            successor.attempt, successor.retry_after = self.attempt, self.retry_after
        return self.operation.replace(self, [successor], now)

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        return []

    def expired(self, error: DStashError) -> None:
        self.operation.error = self.operation.error or self.operation.unknown


class _OutcomeChunk(Chunk):
    """Reads the topology until it shows that the request, sent under ``epoch``, was carried out."""

    def __init__(self, operation: AdminOperation, epoch: int) -> None:
        self.operation = operation
        self._epoch = epoch

    def begin(self, now: int) -> list[Send]:
        return [
            self.operation.ask(peer, self, TopologyRequest(), now)
            for peer in self.operation.peers()
        ]

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        if isinstance(message, TopologyReply):
            topology = Topology.decode(message.topology)
            if self.operation.is_shown(topology, self._epoch):
                self.operation.topology = topology
                self.operation.finish(self)
                return []
        return self._again(now)

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        return self._again(now)

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        return self._again(now)

    def _again(self, now: int) -> list[Send]:
        successor = _OutcomeChunk(self.operation, self._epoch)
        successor.attempt = self.attempt + 1
        return self.operation.replace_later(self, [successor], now)

    def expired(self, error: DStashError) -> None:
        self.operation.error = self.operation.error or self.operation.unknown


def shows(topology: Topology, request: AdminRequest, epoch: int) -> bool:
    """Whether a topology shows the effect of an admin request that was sent under an epoch."""
    change = topology.change
    members = {member.id for member in topology.members}
    staying = {member.id for member in topology.members if member.state is not State.LEAVING}
    match request.action, list(request.peers):
        case "add", peers:
            return members.issuperset(peers)
        case "remove" | "forget", peers:
            return staying.isdisjoint(peers)
        case "force-remove", peers:
            gone = change.gone if change is not None else ()
            return staying.difference(gone).isdisjoint(peers)
        case "accept-loss", peers:
            accepted = {member.id for member in topology.members if member.waived or member.synced}
            return members.intersection(peers) <= accepted
        case "replace", [old, new]:
            return old not in staying and new in members
        case "cancel", _:
            return change is None
        case "pause" | "resume" as action, _:
            return change is not None and change.paused is (action == "pause")
        case "rate", _:
            return change is not None and change.rate == request.rate
        case "lower-floors", _:
            return topology.ceiling_epoch > epoch
    return False
