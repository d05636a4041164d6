"""The end of a change of placement: when nobody can read from the old replica sets any more.

A read under an older topology asks a quorum of the old replica set. A write that goes to the new
one alone might miss all of them: so writes go to both until, in each partition, so many of the
old replicas have moved on that those left make no quorum. A peer that has moved on refuses what
comes under an older epoch. (Raft's joint consensus has the same two steps; Ongaro, 2014, 4.3.)
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

__all__ = ["can_read", "conductor", "given_up", "witness"]

_RETRY_MS: Final = 100


def conductor(view: View) -> str | None:
    """Return who looks after the end of the change: any would do, and two do no harm."""
    return min((one.id for one in view.topology.after() if one.id in view.alive), default=None)


def given_up(view: View) -> frozenset[str]:
    """Return the dead members for which an operator lets the change not wait."""
    change = view.topology.change
    return frozenset(change.gone if change is not None else ()) - view.alive


def witness(replica: Replica) -> Generator[Effect, Any, None]:
    """Wait until nobody can read from the old replica sets of the change under way."""
    view = replica.view()
    passed = frozenset({replica.me})
    while True:
        passed |= given_up(replica.view())
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
        answer = yield from ask(peer, TopologyRequest(), TopologyReply)
        return Topology.decode(answer.topology).epoch >= epoch
    except DStashError:
        return False  # it may come back: it is asked again
