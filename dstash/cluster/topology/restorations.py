"""Restorations: how new the restored topologies are that a peer has helped to restore.

A restored topology may be lost again when only some members use it. The other members have
confirmed it, but know only the topology before it. If they restored that a second time, another
topology would have the same epochs. A majority has to confirm each restored topology, so one member
has confirmed both: it remembers the first, and restores the second under later epochs.
"""

from __future__ import annotations

from typing import Final

import structlog

from dstash.cluster.topology.joining import RESTORED_JUMP
from dstash.cluster.topology.topology import Topology
from dstash.errors import DStashError
from dstash.store.interface import Store

_log = structlog.get_logger("dstash.peer")

#: The mark under which the store keeps the highest epoch.
_MARK: Final = b"restored epoch"


class Restorations:
    """Remembers, in the store, the highest epoch of the restored topologies of a peer.

    Args:
        store: of the peer.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        #: Of the topologies that the membership has had.
        self.epoch = int.from_bytes(store.marked(_MARK) or b"", "big")
        #: Of those too that it may have had.
        self._on_disk = self.epoch

    def begin(self, epoch: int) -> None:
        """Remember a restored topology before it is sent to the membership.

        A full disk does not prevent the restoration: until a restart, memory is enough.
        """
        if epoch <= self._on_disk:
            return
        try:
            self._store.mark(_MARK, epoch.to_bytes(8, "big"))
            self._on_disk = epoch
        except DStashError as error:
            _log.warning("the epoch of a restored topology cannot be stored", why=str(error))

    def finish(self, epoch: int) -> None:
        """Remember a restored topology that the membership has accepted."""
        self.epoch = max(self.epoch, epoch)

    def may_repeat(self, restored: Topology, peer: str) -> bool:
        """Whether a restored topology may have the epochs of an earlier restored topology.

        Args:
            restored: the topology of the membership; it is not confirmed by a majority yet.
            peer: the id of this peer.
        """
        if restored.restored is None or peer in restored.restored.confirmed:
            return False
        is_member = restored.member(peer) is not None
        return is_member and bool(self.epoch) and restored.epoch < self.epoch + RESTORED_JUMP // 2
