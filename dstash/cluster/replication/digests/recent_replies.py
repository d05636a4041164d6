"""Recent replies to requests for digests, for as long as they are still true.

In an idle cluster the same digests are requested, answered and compared every few seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dstash.wire.replication import DigestsReply, DigestsRequest

#: Requests, of up to some 15 KB with their replies.
_MAX_REPLIES: Final = 256


class RecentReplies:
    """Replies of this peer, and replies of other peers that have shown no difference.

    Args:
        unchanged_since: returns, at a time, a number that is the same as long as this peer would
            give the same reply; None if that depends on more.
    """

    def __init__(self, unchanged_since: Callable[[int], int | None]) -> None:
        self._unchanged_since = unchanged_since
        self._own: dict[DigestsRequest, tuple[int, DigestsReply]] = {}
        self._equal: dict[tuple[str, DigestsRequest], tuple[int, DigestsReply]] = {}

    def own(self, request: DigestsRequest, now: int) -> DigestsReply | None:
        """Return this peer's earlier reply to the same request; None if it may not be true now."""
        since, reply = self._own.get(request, (None, None))
        return reply if since is not None and since == self._unchanged_since(now) else None

    def note_own(self, request: DigestsRequest, reply: DigestsReply, since: int | None) -> None:
        """Take this peer's reply of digests that were all known.

        Args:
            request: what it replies to.
            reply: the reply.
            since: what ``unchanged_since`` returned before the first digest was taken.
        """
        if since is not None:
            if len(self._own) >= _MAX_REPLIES:
                self._own.clear()
            self._own[request] = since, reply

    def is_equal(self, peer: str, request: DigestsRequest, reply: DigestsReply, now: int) -> bool:
        """Whether another peer's reply has shown no difference before, and nothing has changed."""
        since, equal = self._equal.get((peer, request), (None, None))
        return since is not None and equal == reply and since == self._unchanged_since(now)

    def note_equal(
        self, peer: str, request: DigestsRequest, reply: DigestsReply, since: int | None
    ) -> None:
        """Take another peer's reply that equals what is known of all its partitions here."""
        if since is not None:
            if len(self._equal) >= _MAX_REPLIES:
                self._equal.clear()
            self._equal[peer, request] = since, reply
