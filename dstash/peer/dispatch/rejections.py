"""Rejected requests: each is counted and logged, and answered if its sender can use the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from dstash.errors import DeadlinePassed, DStashError, ProtocolError
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.requests import Reply, Request, Ticket
from dstash.peer.dispatch.replies import ReplyEncoder
from dstash.peer.supervision.refusals import Refusals
from dstash.wire.envelope import Envelope, decode
from dstash.wire.messages import Error
from dstash.wire.protocol import LOWEST_PROTOCOL
from dstash.wire.replication import Hint


class Rejections:
    """The requests that one peer rejects.

    Args:
        counts: counts them, by cause.
        refusals: logs those that an operator can act on.
        backlog: says when a request that is rejected as busy may be retried.
        replies: encodes the errors.
        may_refuse: is called with the ticket and the envelope of each, and with the time; returns
            whether to answer it. Duplicates of some requests must be refused, too, and those of
            requests that are being carried out must not be answered.
    """

    def __init__(
        self,
        counts: Counter[str],
        refusals: Refusals,
        backlog: Backlog,
        replies: ReplyEncoder,
        may_refuse: Callable[[Ticket, Envelope, int], bool],
    ) -> None:
        self._counts = counts
        self._refusals = refusals
        self._backlog = backlog
        self._replies = replies
        self._may_refuse = may_refuse

    def malformed(
        self, sender: bytes, user: str | None, error: ProtocolError, now: int
    ) -> list[Reply]:
        """Reject a message that cannot be decoded; no reply if its header is not valid either.

        Args:
            sender: the routing id of the connection.
            user: the public key that the sender has proved to own; None without CURVE.
            error: why it cannot be decoded.
            now: this peer's own clock, in milliseconds since 1970.
        """
        self._counts["malformed"] += 1
        self._refusals.note(sender, user, error, now)
        correlation = error.details.pop("correlation", None)
        protocol = error.details.pop("protocol", LOWEST_PROTOCOL)
        if correlation is None:
            return []
        return [self._replies.encode(Ticket(sender, correlation, protocol), Error.of(error), now)]

    def busy(self, sender: bytes, parts: list[bytes], now: int, why: str) -> list[Reply]:
        """Reject a message of any kind before it is dispatched: its sender may retry later."""
        try:
            envelope = decode(parts)
        except ProtocolError:
            return []
        self._counts["rejected_as_busy"] += 1
        ticket = Ticket(sender, envelope.correlation, envelope.protocol)
        error = self._backlog.busy(why)
        self._refusals.note(sender, None, error, now)
        if not self._may_refuse(ticket, envelope, now):
            return []
        return [self._replies.encode(ticket, Error.of(error), now)]

    def late(self, request: Request, now: int) -> list[Reply]:
        """Reject a request whose deadline has passed; no reply to a hint, which has no answer."""
        self._counts["late"] += 1
        if request.notes is not None:
            request.notes.late()
        if isinstance(request.envelope.message, Hint):
            return []
        if not self._may_refuse(request.ticket, request.envelope, now):
            return []
        # The time in the reply lets a client with a wrong clock correct it and retry.
        late = now - request.envelope.moment
        text = f"the request came {late} ms after its deadline"
        if late < 0:
            text = "the request was sent before the clock of this peer was set back"
        error = DeadlinePassed(text)
        ticket = request.ticket._replace(notes=None)
        return [self._replies.encode(ticket, Error.of(error), now)]

    def refused(self, request: Request, error: DStashError, now: int) -> Error | None:
        """Return the answer to a request that a check or its handler refuses; None for none."""
        self._counts[f"refused:{type(error).__name__}"] += 1
        self._refusals.note(request.sender, request.user, error, now)
        is_refused = self._may_refuse(request.ticket, request.envelope, now)
        return Error.of(error) if is_refused else None
