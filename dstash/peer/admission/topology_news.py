"""News of later topologies, from the epochs and refusals of other peers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.view import View
from dstash.errors import ProtocolError, StaleEpoch
from dstash.wire.envelope import Envelope
from dstash.wire.messages import Error, TopologyReply
from dstash.wire.shapes import Message


class TopologyNews:
    """Notes that another peer uses a later topology than this one.

    ``wants_refresh`` is set when a message came from a newer epoch: the shell must read the
    membership and install what it finds. ``heard`` is the later topology of another member, in case
    the membership is out of reach.

    Args:
        peer: the id of this peer.
        store_id: of its store.
        trusted: returns a topology less the members whose keys are not authorised.
        counts: counts malformed messages.
        ask: asks the other members for their topology, unless the membership returns it soon.
    """

    def __init__(
        self,
        peer: str,
        store_id: str,
        trusted: Callable[[Topology], Topology],
        counts: Counter[str],
        ask: Callable[[], None],
    ) -> None:
        self.wants_refresh = False
        self.heard: Topology | None = None
        self._peer = peer
        self._store_id = store_id
        self._trusted = trusted
        self._counts = counts
        self._ask = ask
        self._view: View | None = None

    def install(self, view: View) -> None:
        """Take a new view."""
        self._view = view
        self.wants_refresh = False
        if self.heard is not None and self.heard.epoch <= view.epoch:
            self.heard = None

    def refresh(self) -> None:
        """Read the membership soon, and ask the other members in case it does not answer."""
        self.wants_refresh = True
        self._ask()

    def hear(self, peer: str, envelope: Envelope) -> None:
        """Note the epoch of an answer of another peer, and the topology that it has."""
        view = self._view
        if view is not None and envelope.epoch > view.epoch:
            self.refresh()
            encoded = _topology_in(envelope.message)
            if encoded is not None:
                self._hear_topology(peer, encoded, view)

    def _hear_topology(self, peer: str, encoded: bytes, view: View) -> None:
        """Keep the topology of a member with a later epoch, if this peer may use it."""
        try:
            found = Topology.decode(encoded)
        except ProtocolError:
            self._counts["malformed"] += 1
            return
        known = self.heard or view.topology
        member = found.member(self._peer)
        is_ours = member is not None and member.store_id == self._store_id
        is_usable = found.formed and found.restored is None
        is_successor = found.cluster_id == view.topology.cluster_id and found.epoch > known.epoch
        if peer in view.members and is_ours and is_usable and is_successor:
            self.heard = self._trusted(found)


def _topology_in(message: Message) -> bytes | None:
    """Return the encoded topology in a reply; None if it has none."""
    if isinstance(message, TopologyReply):
        return message.topology
    if not isinstance(message, Error) or not isinstance(error := message.error(), StaleEpoch):
        return None
    encoded = error.details.get("topology")
    return encoded if isinstance(encoded, bytes) else None
