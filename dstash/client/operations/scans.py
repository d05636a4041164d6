"""Requests to members: status, full repair, compaction, and discovery by the seed addresses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from dstash.client.operations.base import Chunk, Failure, Operation
from dstash.client.session import Send, Session
from dstash.errors import (
    DeadlinePassed,
    DStashError,
    NoPeers,
    Unauthorised,
    Unavailable,
    VersionMismatch,
    WrongCluster,
)
from dstash.wire.messages import (
    Compact,
    Hello,
    Repair,
    StatusReply,
    StatusRequest,
    Welcome,
)
from dstash.wire.shapes import Message

#: How long to wait until a peer starts a repair or a compaction. It is long, because a peer that is
#: reported as silent counts as not repaired.
_REPAIR_TIMEOUT_MS: Final = 5000


class StatusOperation(Operation):
    """Requests the status of every member; the result maps members that answered to it."""

    def __init__(self, session: Session, deadline: int, peers: Sequence[str]) -> None:
        super().__init__(session, deadline)
        self.peers = peers
        self.answers: dict[str, dict[str, Any]] = {}

    def _chunks(self) -> Iterator[list[Chunk]]:
        yield [self._chunk(peer) for peer in self.peers]

    def _chunk(self, peer: str) -> Chunk:
        return _StatusChunk(self, peer, StatusRequest())

    def result(self) -> dict[str, dict[str, Any]]:
        """Return the answers."""
        super().result()
        return self.answers


class RepairOperation(StatusOperation):
    """Starts a full repair on every member; the result is that of ``StatusOperation``.

    Raises:
        Unavailable: no member started it.
    """

    def _chunk(self, peer: str) -> Chunk:
        return _RepairChunk(self, peer, Repair())

    def result(self) -> dict[str, dict[str, Any]]:
        """Return the answers."""
        answers = super().result()
        if not answers:
            raise Unavailable("no member started a repair: none answered or was ready")
        return answers


class CompactOperation(StatusOperation):
    """Starts a compaction of the store of one peer; the result is its status.

    Raises:
        Busy: a compaction of the peer runs already.
        Unavailable: the peer does not answer.
    """

    def __init__(self, session: Session, deadline: int, peer: str) -> None:
        super().__init__(session, deadline, [peer])
        self.peer = peer

    def _chunk(self, peer: str) -> Chunk:
        return _CompactChunk(self, peer, Compact())

    def result(self) -> dict[str, dict[str, Any]]:
        """Return the status of the peer, by its id."""
        answers = super().result()
        if not answers:
            raise Unavailable(f"{self.peer} does not answer; it may or may not be compacted")
        return answers


class _StatusChunk(Chunk):
    def __init__(self, operation: StatusOperation, peer: str, question: Message) -> None:
        self.operation = operation
        self.peer = peer
        self.question = question

    def begin(self, now: int) -> list[Send]:
        return [self.operation.ask(self.peer, self, self.question, now)]

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        if isinstance(message, StatusReply):
            self.operation.answers[peer] = message.status
        self.operation.finish(self)
        return []

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        if isinstance(failure.error, Unauthorised):
            raise failure.error
        if isinstance(failure.error, DeadlinePassed) and not self.attempt:
            self.attempt = 1  # its clock has now been read
            return self.begin(now)
        self.operation.finish(self)
        return []

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        self.operation.finish(self)
        return []

    def expired(self, error: DStashError) -> None:
        """Leave the members that did not answer out of the result."""


class _RepairChunk(_StatusChunk):
    patience = _REPAIR_TIMEOUT_MS


class _CompactChunk(_StatusChunk):
    patience = _REPAIR_TIMEOUT_MS

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        if isinstance(failure.error, DeadlinePassed) and not self.attempt:
            return super().failed(peer, failure, now)
        raise failure.error


class DiscoverOperation(Operation):
    """Greets the seed addresses until a peer answers with its view of the cluster."""

    def __init__(self, session: Session, deadline: int, seeds: Sequence[str], cluster: str) -> None:
        super().__init__(session, deadline)
        self.seeds = seeds
        self.cluster = cluster

    def _chunks(self) -> Iterator[list[Chunk]]:
        yield [_GreetingChunk(self)]


class _GreetingChunk(Chunk):
    def __init__(self, operation: DiscoverOperation) -> None:
        self.operation = operation
        #: The failures of this attempt, and the last failure of each seed in any attempt.
        self._failures: dict[str, DStashError] = {}
        self._last_failures: dict[str, DStashError] = {}

    def begin(self, now: int) -> list[Send]:
        self._failures = {}
        hello = Hello(self.operation.cluster)
        return [self.operation.ask(seed, self, hello, now) for seed in self.operation.seeds]

    def answered(self, peer: str, message: Message, now: int) -> list[Send]:
        if isinstance(message, Welcome) and self.operation.session.view is not None:
            self.operation.finish(self)
        return []

    def failed(self, peer: str, failure: Failure, now: int) -> list[Send]:
        self._failures[peer] = self._last_failures[peer] = failure.error
        if len(self._failures) < len(self.operation.seeds):
            return []
        hopeless = WrongCluster | Unauthorised | VersionMismatch
        final = [error for error in self._failures.values() if isinstance(error, hopeless)]
        if final:
            raise final[0]
        if all(error.details.get("is_lasting") for error in self._failures.values()):
            self.operation.fail(self._no_peers(self._reasons()))
            return []
        self.operation.again_later(self, now)
        self.attempt += 1
        return []

    def on_timeout(self, peer: str, now: int) -> list[Send]:
        return []

    def expired(self, error: DStashError) -> None:
        self.operation.error = self._no_peers(self._reasons(), "; is it running?")

    def _reasons(self) -> dict[str, str]:
        """Return the last failure by address; of several keys for one address, the last."""
        return {
            seed.partition(" ")[0]: str(self._last_failures[seed]).removeprefix(f"{seed}: ")
            for seed in self.operation.seeds
            if seed in self._last_failures
        }

    def _no_peers(self, reasons: dict[str, str], question: str = "") -> NoPeers:
        places = ", ".join(dict.fromkeys(seed.partition(" ")[0] for seed in self.operation.seeds))
        if len(set(reasons.values())) > 1:
            why = "; ".join(f"{place}: {reason}" for place, reason in reasons.items())
        else:
            why = next(iter(reasons.values()), "no answer")
        return NoPeers(f"no peer answered at {places} ({why}){question}", reasons=reasons)
