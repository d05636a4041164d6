"""Rollback detection as a task: peers exchange how new each of their stores was.

See ``lineage`` for the reason and for the comparison.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Effect
from dstash.cluster.replication.transfer import ask
from dstash.cluster.topology.life import Life, lives_of
from dstash.errors import ProtocolError
from dstash.wire.replication import SeenReply, SeenRequest


class Evidence(NamedTuple):
    """What the reply of a peer says about this peer's store.

    Attributes:
        store_id: the store of the replying peer; empty if it runs an earlier version.
        is_old: whether the peer has seen a newer state, so this store is an old copy.
    """

    store_id: str
    is_old: bool


def collect_evidence(
    replica: Replica, peer: str, *, report_own: bool, wants_others: bool
) -> Generator[Effect, Any, Evidence]:
    """Ask a peer what it has seen, keep what it reports about other stores, and judge the rest.

    Args:
        replica: this peer.
        peer: the peer to ask.
        report_own: whether to report how new this store is now. Only a store that is known not to
            be an old copy does so.
        wants_others: whether to ask for everything that the peer has seen.
    """
    local_partitions = replica.local_partitions
    own = local_partitions.lineage.current
    request = SeenRequest(
        replica.me,
        own.stamp if report_own else 0,
        local_partitions.store.store_id,
        own.number,
        own.began,
        wants_others,
    )
    reply = yield from ask(peer, request, SeenReply)
    if not reply.store_id:
        return _evidence_of_earlier_version(replica, peer, reply, reported_own=report_own)
    lives, others = _decoded(reply)
    stores = set(local_partitions.store_ids.values()) - {local_partitions.store.store_id}
    for store_id, life in others:
        if store_id in stores:
            local_partitions.memory.note(store_id, life)
    if reply.high_water and local_partitions.store_ids.get(peer) == reply.store_id:
        life = Life(reply.life, reply.began, reply.high_water)
        local_partitions.memory.note(reply.store_id, life)
    # Every life is checked: each one also raises the highest number seen.
    contradictions = [local_partitions.lineage.contradicts(life) for life in lives]
    return Evidence(reply.store_id, any(contradictions))


def _evidence_of_earlier_version(
    replica: Replica, peer: str, reply: SeenReply, *, reported_own: bool
) -> Evidence:
    """Judge the reply of an earlier version, which has one stamp and no lives.

    It is evidence only as long as this process has not reported its own stamp.
    """
    local_partitions = replica.local_partitions
    if reply.high_water and peer in local_partitions.store_ids:
        local_partitions.memory.note(local_partitions.store_ids[peer], Life(0, 0, reply.high_water))
    is_old = reply.seen > local_partitions.lineage.high_water_at_start
    return Evidence("", is_old and not reported_own)


def _decoded(reply: SeenReply) -> tuple[list[Life], list[tuple[str, Life]]]:
    try:
        return lives_of(reply.seen_lives), list(_decode_others(reply.others))
    except (ValueError, TypeError):
        raise ProtocolError("a peer sent a malformed list of store lives") from None


def _decode_others(raw: list[list[Any]]) -> Iterator[tuple[str, Life]]:
    for store_id, *life in raw:
        yield str(store_id), lives_of([life])[0]
