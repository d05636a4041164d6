"""States of a peer in which it may refuse a request that it would serve otherwise."""

from __future__ import annotations

from dstash.cluster.topology.drops import Drop
from dstash.peer.admission.authority import Authority
from dstash.version import stamp_at
from tests.peer.test_core import EPOCH, START, Peer


def stop(peer: Peer) -> None:
    peer.core.health.stopping = True


def not_ready(peer: Peer) -> None:
    peer.core.health.not_ready = "it starts"


def unconfirmed(peer: Peer) -> None:
    peer.core.local_partitions.freshness_confirmed = False


def closed(peer: Peer) -> None:
    peer.core.admission.authorise(Authority({}))


def dropped(peer: Peer) -> None:
    peer.core.local_partitions.install_drops((Drop("i", "", stamp_at(START), EPOCH),))


#: All of them.
REFUSING = (stop, not_ready, unconfirmed, closed, dropped)
