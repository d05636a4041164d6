"""The encoding of replies: each carries the epoch and the time of the peer that sends it."""

from __future__ import annotations

from dstash.cluster.topology.view import View
from dstash.peer.admission.requests import Reply, Ticket
from dstash.wire import codec
from dstash.wire.envelope import Envelope, encode
from dstash.wire.messages import Stored
from dstash.wire.shapes import Message


class ReplyEncoder:
    """Encodes the replies of one peer."""

    def __init__(self) -> None:
        #: The epoch of the view; 0 without a view.
        self._epoch = 0

    def install(self, view: View) -> None:
        """Take a new view."""
        self._epoch = view.epoch

    def stored(self, ticket: Ticket, now: int) -> Reply:
        """Return the reply to a put that was stored as it came, and is not traced."""
        sender, correlation, protocol, _ = ticket
        plain: tuple[list[object], bytes] = ([], b"")
        header = (protocol, Stored.KIND, correlation, self._epoch, now, *plain)
        return Reply(sender, [codec.pack_header(header)])

    def encode(self, ticket: Ticket, message: Message, now: int) -> Reply:
        """Return the reply to a request, and note the answer if the request is traced.

        Args:
            now: this peer's own clock, in milliseconds since 1970.
        """
        sender, correlation, protocol, notes = ticket
        if notes is not None:
            notes.answered(message)
        envelope = Envelope(correlation, self._epoch, now, message, protocol)
        return Reply(sender, encode(envelope))
