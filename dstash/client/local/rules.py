"""The rules by which a client may read from the store of a peer itself; they do no I/O.

It may read what the peer would answer to a look-up at level ``one`` in the epoch of the client.
What changes later is noticed at each read: see ``SharedStore.read``.
"""

from __future__ import annotations

from collections.abc import Mapping

from dstash.cluster.topology.view import View
from dstash.limits import PARTITIONS
from dstash.store.sharing.mark import ServingMark
from dstash.store.sharing.places import StorePlace


def why_foreign(view: View, peer: str, place: StorePlace, owner: tuple[str, str]) -> str:
    """Return why the store at a place is not that of a member; empty if it is.

    Args:
        view: of the client.
        peer: the member that has named the place.
        place: of the store.
        owner: cluster and peer that the store belongs to.
    """
    if owner != (view.topology.cluster_id, peer):
        return f"the store in {place.directory} belongs to peer {owner[1]!r} of another cluster"
    return ""


def is_listed(view: View, peer: str, place: StorePlace) -> bool:
    """Whether a store is the one that the topology lists for a member: it may have got a new one.

    Args:
        view: of the client.
        peer: the member that has named the place.
        place: of the store.
    """
    member = view.members.get(peer)
    return member is not None and member.store_id == place.store_id


def readable(view: View, peer: str, mark: ServingMark) -> frozenset[int]:
    """Return the partitions that a client with this view may read from the store of a peer.

    Args:
        view: of the client.
        peer: owner of the store.
        mark: the serving mark of the store.
    """
    topology, member = view.topology, view.members.get(peer)
    if not mark.ticket or not topology.formed or member is None or not member.synced:
        return frozenset()
    if (mark.epoch, mark.cluster_id) != (view.epoch, topology.cluster_id):
        return frozenset()
    readers = view.readers
    return frozenset(number for number in mark.partitions if peer in readers[number])


def routes(view: View, marks: Mapping[str, ServingMark]) -> list[str | None]:
    """Return by partition the peer whose store a client may read; None: a peer has to be asked.

    Args:
        view: of the client.
        marks: by peer, the serving marks of the stores on this machine.
    """
    table: list[str | None] = [None] * PARTITIONS
    for peer in sorted(marks, reverse=True):
        for partition in readable(view, peer, marks[peer]):
            table[partition] = peer
    return table
