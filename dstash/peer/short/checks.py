"""Which requests for one key need no dispatch, because none of its checks could refuse them."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.topology.view import View
from dstash.peer.admission.checks import Admission, Readiness
from dstash.peer.keyspaces import Keyspaces
from dstash.store.record import Keyspace
from dstash.store.register.ballot import SIGN
from dstash.wire.protocol import is_spoken

_NO_INDEXES: Final = frozenset[str]()


class ShortChecks:
    """The checks of the dispatch for requests for one key, in few steps.

    Args:
        peer: its id.
        local_partitions: the records.
        keyspaces: by index.
        admission: a request passes it unchecked only where no check could refuse it.
        health: whether the peer serves.
    """

    def __init__(
        self,
        peer: str,
        local_partitions: LocalPartitions,
        keyspaces: Keyspaces,
        *,
        admission: Admission,
        health: Readiness,
    ) -> None:
        self._peer = peer
        self._local_partitions = local_partitions
        self._keyspaces = keyspaces
        self._admission = admission
        self._health = health
        #: The epoch whose requests this peer serves; 0: none.
        self._epoch = 0
        #: The names of indexes with settings, which apply to their writes.
        self.with_settings: Container[str] = _NO_INDEXES

    def install(self, view: View) -> None:
        """Take a new view."""
        self.with_settings = view.index_settings
        member = view.members.get(self._peer)
        serves = view.topology.formed and member is not None and member.synced
        self._epoch = view.epoch if serves else 0

    def passes(self, protocol: object, correlation: object, epoch: object, moment: object) -> bool:
        """Whether these fields of a request are valid, and no check can refuse it."""
        health = self._health
        return (
            type(protocol) is int
            and type(correlation) is int
            and type(epoch) is int
            and type(moment) is int
            and epoch == self._epoch > 0
            and correlation >= 0
            and moment >= 0
            and is_spoken(protocol)
            and not health.stopping
            and health.not_ready is None
            and self._admission.authority is None
            and self._local_partitions.freshness_confirmed
            and not self._local_partitions.drops.unswept
        )

    def space(self, index: object) -> Keyspace | None:
        """Return the keyspace of an index if it was used before; registers have another path."""
        if type(index) is not str or index.startswith(SIGN):
            return None
        return self._keyspaces.known(index)
