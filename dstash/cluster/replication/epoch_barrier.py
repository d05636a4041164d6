"""The epoch barrier: a topology change ends once no quorum serves the old replica sets.

A read under an older topology asks a quorum of the old replica set. A write to the new replica set
alone could miss all of those replicas. So writes go to both sets until, in each partition, the old
replicas that have not reached the new epoch are fewer than a quorum. A peer that has reached it
refuses requests of an older epoch. (Raft's joint consensus has the same two steps; Ongaro, 2014,
4.3.)
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Effect, Pause
from dstash.cluster.replication.transfer import ask
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.view import View, can_read
from dstash.errors import DStashError
from dstash.wire.messages import TopologyReply, TopologyRequest

_RETRY_MS: Final = 100


def coordinator(view: View) -> str | None:
    """Return the member that waits for the barrier: any member could, and two may."""
    live = (member.id for member in view.topology.after() if member.id in view.alive)
    return min(live, default=None)


def removed_members(view: View) -> frozenset[str]:
    """Return the members that are down and that an operator has force-removed."""
    change = view.topology.change
    return frozenset(change.gone if change is not None else ()) - view.alive


def await_barrier(replica: Replica) -> Generator[Effect, Any, None]:
    """Wait until no quorum serves the old replica sets of the topology change."""
    view = replica.view()
    passed = frozenset({replica.me})
    while True:
        passed |= removed_members(replica.view())
        for peer in sorted(view.members.keys() - passed):
            if not can_read(view, passed):
                return
            if replica.is_alive(peer) and (yield from _has_passed(peer, view.epoch)):
                passed |= {peer}
        if not can_read(view, passed):
            return
        yield Pause(_RETRY_MS)


def _has_passed(peer: str, epoch: int) -> Generator[Effect, Any, bool]:
    try:
        reply = yield from ask(peer, TopologyRequest(), TopologyReply)
        return Topology.decode(reply.topology).epoch >= epoch
    except DStashError:
        return False  # it may restart, and is asked again
