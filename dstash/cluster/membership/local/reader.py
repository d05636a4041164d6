"""The membership in a directory, for clients: it only reads, and creates nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from dstash.cluster.membership.interface import NOTHING, StoredTopology
from dstash.cluster.membership.local.announcements import announcements_in
from dstash.cluster.membership.local.topology_file import TopologyFile
from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.names import safe_name
from dstash.errors import MembershipError, MembershipUnreachable

T = TypeVar("T")


class LocalReader:
    """Reads the topology and the live peers of one cluster.

    Args:
        directory: that the peers of the cluster share.
        cluster: the name of the cluster.

    Raises:
        MembershipError: there is no such directory.
    """

    def __init__(self, directory: Path, cluster: str) -> None:
        if not directory.is_dir():
            raise MembershipError(f"there is no directory {directory}")
        self._home = directory / safe_name(cluster)

    def read(self) -> StoredTopology:
        """See ``Membership.read``."""
        return self._reading(TopologyFile(self._home).read, StoredTopology(None, NOTHING))

    def alive(self) -> Mapping[str, Announcement]:
        """See ``Membership.alive``."""
        return self._reading(lambda: announcements_in(self._home / "peers"), {})

    def close(self) -> None:
        """See ``Membership.close``."""

    def _reading(self, read: Callable[[], T], nothing: T) -> T:
        """Return what ``read`` returns, or ``nothing`` if the cluster has no directory."""
        try:
            return read()
        except FileNotFoundError:
            return nothing
        except OSError as error:
            where = error.filename or self._home
            raise MembershipUnreachable(f"{where}: {error.strerror}") from None
