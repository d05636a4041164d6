"""Asks other peers what they remember of this peer's store, and tells them how new it is."""

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
    """What a peer answered.

    Attributes:
        store_id: its store; empty where an earlier version answers.
        is_old: whether what it remembers shows that this peer's store is an old copy.
    """

    store_id: str
    is_old: bool


def hear(
    replica: Replica, peer: str, *, tells: bool, wants_others: bool
) -> Generator[Effect, Any, Evidence]:
    """Ask a peer, remember what it tells of its own store and of others, and judge the rest.

    Args:
        replica: this peer.
        peer: whom to ask.
        tells: whether this store is known to be as new as it was: then the other may remember
            how new it is now.
        wants_others: whether to ask for all that the other remembers.
    """
    local_partitions = replica.local_partitions
    own = local_partitions.lineage.current
    question = SeenRequest(
        replica.me,
        own.stamp if tells else 0,
        local_partitions.store.store_id,
        own.number,
        own.began,
        wants_others,
    )
    answer = yield from ask(peer, question, SeenReply)
    if not answer.store_id:
        return _hear_earlier(replica, peer, answer, tells=tells)
    lives, others = _decoded(answer)
    stores = set(local_partitions.store_ids.values()) - {local_partitions.store.store_id}
    for store_id, life in others:
        if store_id in stores:
            local_partitions.memory.note(store_id, life)
    if answer.high_water and local_partitions.store_ids.get(peer) == answer.store_id:
        life = Life(answer.life, answer.began, answer.high_water)
        local_partitions.memory.note(answer.store_id, life)
    found = [local_partitions.lineage.contradicts(life) for life in lives]
    return Evidence(answer.store_id, any(found))


def _hear_earlier(replica: Replica, peer: str, answer: SeenReply, *, tells: bool) -> Evidence:
    """Judge the answer of an earlier version, which knows one stamp and no lives.

    It is evidence only as long as this process has told nothing about itself.
    """
    local_partitions = replica.local_partitions
    if answer.high_water and peer in local_partitions.store_ids:
        local_partitions.memory.note(
            local_partitions.store_ids[peer], Life(0, 0, answer.high_water)
        )
    return Evidence("", not tells and answer.seen > local_partitions.lineage.high_water_at_start)


def _decoded(answer: SeenReply) -> tuple[list[Life], list[tuple[str, Life]]]:
    try:
        return lives_of(answer.seen_lives), list(_decode_others(answer.others))
    except (ValueError, TypeError):
        raise ProtocolError("what a peer has seen of stores is not a list of lives") from None


def _decode_others(raw: list[list[Any]]) -> Iterator[tuple[str, Life]]:
    for store_id, *life in raw:
        yield str(store_id), lives_of([life])[0]
