"""Admission of requests: the checks that every request passes before a peer serves it.

Each check raises the error that the sender gets. The order matters: a request of an old epoch must
learn the new topology before any other check can refuse it for a reason that no longer holds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.view import View
from dstash.errors import Busy, Forming, NotReady, StaleEpoch, Unauthorised, UsageError
from dstash.peer.admission.authority import Authority
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.future_epochs import FutureEpochRequests
from dstash.peer.admission.requests import Request
from dstash.peer.admission.write_floor import WriteFloor
from dstash.store.register.ballot import SIGN
from dstash.wire.envelope import Envelope
from dstash.wire.messages import (
    Apply,
    Count,
    Delete,
    Fetch,
    Lookup,
    Put,
    Scan,
    ScanKeys,
    Want,
)
from dstash.wire.replication import Hint, SeenRequest
from dstash.wire.shapes import Message


class Readiness(Protocol):
    """What the checks need of the peer's health."""

    stopping: bool
    not_ready: str | None

    @property
    def freshness_confirmed(self) -> bool:
        """Whether other peers have confirmed that the store was not rolled back."""

    def refusal(self) -> NotReady:
        """Return the error for a request that the peer cannot serve now."""


class Unread(Protocol):
    """What clients have left unread of their answers; senders are routing ids."""

    def defers(self, sender: bytes) -> bool:
        """Whether a read of a client must wait because its answer might have no room."""

    def lacks_room(self, sender: bytes) -> bool:
        """Whether there is no room for a large answer to a client."""


class _NothingUnread:
    def defers(self, sender: bytes) -> bool:
        return False

    def lacks_room(self, sender: bytes) -> bool:
        return False


class Admission:
    """The checks of one peer.

    Args:
        peer: its id.
        readiness: its health.
        backlog: the accepted writes; says when a request that is rejected as busy may be retried.
        floor: decides which writes are too old.
        max_waiting_bytes: of requests that wait for a newer topology.
    """

    def __init__(
        self,
        peer: str,
        readiness: Readiness,
        backlog: Backlog,
        floor: WriteFloor,
        max_waiting_bytes: int,
    ) -> None:
        self.unread: Unread = _NothingUnread()
        #: The topology as it is sent to clients and peers; empty before the first view.
        self.topology_bytes = b""
        self._peer = peer
        self._readiness = readiness
        self._backlog = backlog
        self._floor = floor
        self._view: View | None = None
        self._authority: Authority | None = None
        self._future_epoch = FutureEpochRequests(max_waiting_bytes)

    def install(self, view: View) -> list[Request]:
        """Take a new view; returns the requests that waited for it."""
        if self._view is None or view.epoch != self._view.epoch:
            self.topology_bytes = self.trusted(view.topology).encode()
        self._view = view
        return self._future_epoch.take()

    # -- keys and membership

    @property
    def authority(self) -> Authority | None:
        """The permissions of each key; None in an open cluster, where every request is allowed."""
        return self._authority

    def authorise(self, authority: Authority) -> None:
        """Use another list of keys, from the next message on."""
        self._authority = authority
        if self._view is not None:
            self.topology_bytes = self.trusted(self._view.topology).encode()

    def check_permission(self, user: str | None, message: Message) -> None:
        """Refuse a message that the role of its sender does not allow.

        Raises:
            Unauthorised: it does not.
        """
        if self._authority is not None:
            self._authority.check(user, message)

    def trusted(self, topology: Topology) -> Topology:
        """Return the topology without the keys of members that are not authorised as peers.

        Write access to the membership is enough to add a member, but not to make peers and clients
        connect to it.
        """
        authority = self._authority
        if authority is None:
            return topology
        members = tuple(
            member if authority.is_peer(member.key) else replace(member, key="")
            for member in topology.members
        )
        return replace(topology, members=members)

    def _check_membership(self, request: Request) -> None:
        """Refuse a request that only peers may send from a sender that the topology lacks."""
        authority, view, message = self._authority, self._view, request.envelope.message
        members = view.topology.members if view else ()
        if authority is not None and authority.needs_membership(request.user, message):
            members = tuple(member for member in members if member.key == request.user)
            if not members:
                raise Unauthorised("no member of the cluster has this key")
        if isinstance(message, SeenRequest) and message.peer not in {
            member.id for member in members
        }:
            # The claims in it are stored: only a member may make them, and only about itself.
            raise Unauthorised(f"{message.peer!r} is not the member that asks")

    # -- epoch and readiness

    def is_future_epoch(self, envelope: Envelope) -> bool:
        """Whether a request was sent under a newer topology than this peer has."""
        return self._view is not None and envelope.epoch > self._view.epoch

    def wait_for_topology(self, request: Request) -> bool:
        """Keep a request of a future epoch; returns whether it is the first that waits.

        Only the first makes the peer refresh, so that invented epochs cannot keep it busy.

        Raises:
            Busy: too many requests wait already.
        """
        is_first = not self._future_epoch
        if not self._future_epoch.add(request):
            raise self._backlog.busy("too many requests wait for the topology")
        return is_first

    @property
    def has_waiting(self) -> bool:
        """Whether requests wait for a topology."""
        return bool(self._future_epoch)

    def expired(self, now: int) -> list[tuple[Request, NotReady]]:
        """Return the requests that waited too long for a topology, each with its error."""
        return [
            (request, NotReady(f"epoch {request.envelope.epoch} is not known here"))
            for request in self._future_epoch.expired(now)
        ]

    def check(self, request: Request) -> None:
        """Refuse a request that this peer cannot serve in its present state.

        Raises:
            NotReady: the peer is starting, stopping, or without a view.
            StaleEpoch: the request was sent under an older topology; the error carries the current
            topology.
            Forming: the cluster has fewer than its minimum of peers.
            Unauthorised: only members may send it.
        """
        self._check_epoch(request.envelope)
        self._check_membership(request)

    def _check_epoch(self, envelope: Envelope) -> None:
        view, readiness = self._view, self._readiness
        # A peer that stops still learns how new the stores are that stop together with it.
        is_stopping = readiness.stopping and not isinstance(envelope.message, SeenRequest)
        if is_stopping or readiness.not_ready or view is None:
            raise readiness.refusal()
        if envelope.epoch < view.epoch:
            raise StaleEpoch(
                f"epoch {envelope.epoch} is over; now is {view.epoch}",
                topology=self.topology_bytes,
            )
        if not view.topology.formed:
            raise forming(view)

    # -- reads, writes, questions of peers

    def check_read(self, request: Request) -> None:
        """Refuse a read while the store lacks data, or while the client reads too slowly.

        Raises:
            NotReady: the store was rolled back or is being streamed.
            Busy: the client has left too many answers unread.
        """
        self.check_freshness()
        member = self._view.members.get(self._peer) if self._view else None
        if member is None or not member.synced:
            raise self._readiness.refusal()
        if self.unread.defers(request.sender):
            raise self._too_much_unread()
        self._backlog.served()

    def check_room(self, request: Request) -> None:
        """Refuse a request with a large answer while the client has no room for it.

        Raises:
            Busy: the client has left too many answers unread.
        """
        if self.unread.lacks_room(request.sender):
            raise self._too_much_unread()

    def check_freshness(self) -> None:
        """Refuse a request until other peers have confirmed that the store was not rolled back.

        Raises:
            NotReady: they have not.
        """
        if not self._readiness.freshness_confirmed:
            raise self._readiness.refusal()

    def check_index(self, message: Put | Delete | Apply | Hint) -> None:
        """Refuse a write to an index that is reserved for registers.

        Raises:
            UsageError: its name begins with ``@``.
        """
        if message.index.startswith(SIGN):
            raise UsageError(
                f"index {message.index!r} has registers: it is changed by atomic operations "
                "(Change), not by plain writes; use a client of this version, or another name"
            )

    def check_readable(self, message: Lookup | Fetch | Scan | ScanKeys | Count) -> None:
        """Refuse a read by comparison of replicas in an index of registers.

        Equal answers of replicas are no agreement there, and expiry is no matter of clocks.

        Raises:
            UsageError: the index has registers, and the read is not at level one.
        """
        if not message.index.startswith(SIGN):
            return
        if type(message) is Fetch or (type(message) is Lookup and message.want & Want.DIGEST):
            raise UsageError(
                f"index {message.index!r} has registers: it is read by Settle, or at level one; "
                "use a client of this version"
            )

    def check_floor(self, message: Put | Delete, now: int) -> None:
        """Refuse a write of a client that is too old.

        Raises:
            BelowFloor: this peer has promised to refuse it.
        """
        self._floor.check(message.index, message.version, now)

    def _too_much_unread(self) -> Busy:
        return self._backlog.busy("too many answers wait for their clients to read them")


def forming(view: View) -> Forming:
    """Return the error of a cluster that has too few peers."""
    topology = view.topology
    return Forming(
        f"cluster {topology.cluster!r} has {len(topology.members)} of at least "
        f"{topology.min_peers} peers (min_peers)"
    )
