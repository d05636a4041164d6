"""The requests of a peer to other peers, from the moment they are sent until they are answered."""

from __future__ import annotations

from collections import Counter

from dstash.cluster.replication.tasks import Outgoing
from dstash.errors import ProtocolError
from dstash.peer.admission.topology_news import TopologyNews
from dstash.peer.background.background import Background
from dstash.peer.registers.service import Registers
from dstash.wire.envelope import decode


class OutgoingRequests:
    """Hands the answers of other peers, or their absence, to the tasks or registers that asked.

    Args:
        background: the tasks.
        registers: request votes.
        topology_news: notes later epochs.
        counts: counts malformed messages.
    """

    def __init__(
        self,
        background: Background,
        registers: Registers,
        topology_news: TopologyNews,
        counts: Counter[str],
    ) -> None:
        self._background = background
        self._registers = registers
        self._topology_news = topology_news
        self._counts = counts

    def answered(self, peer: str, parts: list[bytes], now: int) -> bool:
        """Handle a message from another peer; returns whether it answered a request for votes.

        Args:
            peer: its id.
            parts: the frames.
            now: this peer's own clock, in milliseconds since 1970.
        """
        self._background.set_time(now)
        try:
            envelope = decode(parts)
        except ProtocolError:
            self._counts["malformed"] += 1
            return False
        self._topology_news.hear(peer, envelope)
        if self._registers.answered(peer, envelope):
            return True
        self._background.answered(peer, envelope)
        return False

    def lost(self, peer: str) -> None:
        """Take note that the connection to another peer broke."""
        self._background.lost(peer)
        self._registers.lost(peer)

    def unsent(self, outgoing: Outgoing) -> None:
        """Take note that a message to another peer could not be sent."""
        if not self._registers.unsent(outgoing):
            self._background.unsent(outgoing)
