"""The interface of a membership service: one value changed by compare-and-set, and locks.

Two backends implement it: ``local`` (a directory on one machine) and ``consul``. Others, such as
Kubernetes, can implement the same interface; the same tests run against all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.topology import Topology
from dstash.errors import MembershipUnreachable

#: Identifies one state of the stored topology; only for comparison and compare-and-set.
Token = int

#: The token while no topology is stored.
NOTHING: Token = 0


class StoredTopology(NamedTuple):
    """The topology in the membership (None if there is none) and its token.

    ``corruption`` is the reason why a stored topology cannot be read; empty otherwise.
    """

    topology: Topology | None
    token: Token
    corruption: str = ""


def may_pass(error: MembershipUnreachable) -> bool:
    """Whether a later request may succeed without a change of settings.

    It cannot if the membership has replied that the request is invalid or not allowed.
    """
    status = error.details.get("status")
    return status is None or status >= 500


class Membership(Protocol):
    """The service that stores the topology and the session locks of a cluster.

    Thread-safe. Every method except ``close`` and ``resign`` may raise ``MembershipUnreachable``
    after a bounded time, and works again when the backend does.
    """

    def read(self) -> StoredTopology:
        """Return the currently stored topology, never a stale copy."""
        ...

    def compare_and_set(self, topology: Topology, token: Token) -> bool:
        """Store ``topology`` if ``token`` is still current (``NOTHING``: if none is stored).

        Return whether it was stored. After ``MembershipUnreachable`` the result is unknown.
        """
        ...

    def announce(self, announcement: Announcement) -> None:
        """Take this peer's lock and keep it, renewing it in the background, until ``resign``.

        If the backend loses the lock (after an outage or a leader election), the lock is taken
        again automatically. A second call updates the announcement.

        Raises:
            PeerIdInUse: a live process holds the lock of this id.
        """
        ...

    def is_announced(self) -> bool:
        """Whether this peer holds its lock, as far as it knows."""
        ...

    def alive(self) -> Mapping[str, Announcement]:
        """Return the announcements of all peers that hold their lock."""
        ...

    def watch(self, timeout: float) -> bool:
        """Wait until topology or liveness may have changed since the last ``watch``.

        Return False when ``timeout`` (seconds) passed, or ``wake`` was called, without a change.
        Called by one thread.
        """
        ...

    def wake(self) -> None:
        """Make a waiting ``watch`` return soon."""
        ...

    def acquire(self, name: str) -> bool:
        """Try to take a named lock for this peer without waiting; True while this peer holds it.

        ``release``, ``resign`` and the end of the process release it. The lock only reduces
        duplicate work; it is not a fence, so the guarded action must be a compare-and-set.
        """
        ...

    def release(self, name: str) -> None:
        """Release a named lock."""
        ...

    def resign(self) -> None:
        """Release the session lock: the peer is no longer alive, but stays a member."""
        ...

    def close(self) -> None:
        """Resign and release all resources."""
        ...
