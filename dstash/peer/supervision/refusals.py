"""Logs which clients a peer refuses, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog

from dstash import events
from dstash.errors import Busy, DStashError, ProtocolError, Unauthorised, WrongCluster
from dstash.peer.supervision.rate_limit import RateLimit

_log = structlog.get_logger("dstash.peer")

#: One line per minute (milliseconds) about one client and cause, and some for each cause.
_PERIOD_MS: Final = 60_000
_LINES_PER_CAUSE: Final = 5
#: The text of an error may quote what the client has sent.
_MAX_WHY_CHARS: Final = 300
#: Refusals that an operator can act on. Others, such as an old epoch, are part of the protocol.
_LOGGED: Final = (Busy, ProtocolError, Unauthorised, WrongCluster)


class Refusals:
    """Logs the refusals of one peer."""

    def __init__(self) -> None:
        #: Returns the address of the connection with a routing id; empty if it is not known.
        self.address_of: Callable[[bytes], str] = lambda sender: ""
        self._by_client = RateLimit(1, _PERIOD_MS)
        self._by_cause = RateLimit(_LINES_PER_CAUSE, _PERIOD_MS)
        self._unlogged: Counter[str] = Counter()

    def note(self, sender: bytes, user: str | None, error: DStashError, now: int) -> None:
        """Log a refusal, if it is of interest and not logged lately.

        Args:
            sender: the routing id of the client.
            user: its public key; None without CURVE.
            error: the answer that it gets.
            now: milliseconds.
        """
        if not isinstance(error, _LOGGED):
            return
        cause = type(error).__name__
        client = (cause, user or sender)
        if not (self._by_client.admits(client, now) and self._by_cause.admits(cause, now)):
            self._unlogged[cause] += 1
            return
        _log.warning(
            events.CLIENT_REFUSED,
            why=str(error)[:_MAX_WHY_CHARS],
            cause=cause,
            address=self.address_of(sender),
            key=user,
            unlogged=self._unlogged.pop(cause, 0),
        )
