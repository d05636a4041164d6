"""The keyspaces of the indexes that a peer was asked for lately."""

from __future__ import annotations

from typing import Final

from dstash.cluster.topology.view import View
from dstash.limits import check_index
from dstash.store.record import Keyspace, keyspace

#: Indexes whose keyspace is cached, at most.
_MAX_INDEXES: Final = 32


class Keyspaces:
    """A cache of keyspaces by index.

    ``store.record`` has another cache, shared by all peers of a process. To find a keyspace there
    compares all partitions once for each set of them, so this cache avoids it for each request.

    Args:
        peer: the id of this peer.
    """

    def __init__(self, peer: str) -> None:
        #: The partitions that this peer holds, before and after a topology change.
        self.owned: frozenset[int] = frozenset()
        #: The partitions whose registers rest, because a topology change moves them.
        self.resting: frozenset[int] = frozenset()
        #: Whether this peer has lost data that it is streamed again.
        self.lacks_data = False
        self._peer = peer
        self._epoch: int | None = None
        self._by_index: dict[str, Keyspace] = {}

    def __len__(self) -> int:
        return len(self._by_index)

    def install(self, view: View) -> None:
        """Take a new view: of a new epoch the partitions, of any whether the store lacks data."""
        if view.epoch != self._epoch:
            self._epoch = view.epoch
            self.owned = view.owned_by(self._peer)
            self.resting = view.resting if view.topology.change is not None else frozenset()
            self._by_index.clear()
        member = view.members.get(self._peer)
        self.lacks_data = member is not None and not member.synced

    def known(self, index: str) -> Keyspace | None:
        """Return the keyspace of an index if it is cached."""
        return self._by_index.get(index)

    def find(self, index: str) -> Keyspace:
        """Return the keyspace of an index.

        Raises:
            LimitError: it is no name of an index.
        """
        space = self._by_index.get(index)
        if space is None:
            if len(self._by_index) >= _MAX_INDEXES:
                self._by_index.clear()
            space = self._by_index[index] = keyspace(check_index(index), self.owned)
        return space
