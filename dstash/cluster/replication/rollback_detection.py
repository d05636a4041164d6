"""Asks other peers what they remember of this peer's store, and tells them how new it is."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

from dstash.cluster.replication.lineage import Life, lives_of
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Effect
from dstash.cluster.replication.transfer import ask
from dstash.errors import ProtocolError
from dstash.wire.replication import AskSeen, SeenIs


class Testimony(NamedTuple):
    """What a peer answered.

    Attributes:
        store_id: its store; empty where an earlier version answers.
        is_old: whether what it remembers shows that this peer's store is an old copy.
    """

    store_id: str
    is_old: bool


def hear(
    replica: Replica, peer: str, *, tells: bool, wants_others: bool
) -> Generator[Effect, Any, Testimony]:
    """Ask a peer, remember what it tells of its own store and of others, and judge the rest.

    Args:
        replica: this peer.
        peer: whom to ask.
        tells: whether this store is known to be as new as it was: then the other may remember
            how new it is now.
        wants_others: whether to ask for all that the other remembers.
    """
    holdings = replica.holdings
    own = holdings.lineage.current
    question = AskSeen(
        replica.me,
        own.stamp if tells else 0,
        holdings.store.store_id,
        own.number,
        own.began,
        wants_others,
    )
    answer = yield from ask(peer, question, SeenIs)
    if not answer.store_id:
        return _hear_earlier(replica, peer, answer, tells=tells)
    lives, others = _decoded(answer)
    stores = set(holdings.store_ids.values()) - {holdings.store.store_id}
    for store_id, life in others:
        if store_id in stores:
            holdings.memory.note(store_id, life)
    if answer.high_water and holdings.store_ids.get(peer) == answer.store_id:
        life = Life(answer.life, answer.began, answer.high_water)
        holdings.memory.note(answer.store_id, life)
    found = [holdings.lineage.contradicts(life) for life in lives]
    return Testimony(answer.store_id, any(found))


def _hear_earlier(replica: Replica, peer: str, answer: SeenIs, *, tells: bool) -> Testimony:
    """Judge the answer of an earlier version, which knows one stamp and no lives.

    It is evidence only as long as this process has told nothing about itself.
    """
    holdings = replica.holdings
    if answer.high_water and peer in holdings.store_ids:
        holdings.memory.note(holdings.store_ids[peer], Life(0, 0, answer.high_water))
    return Testimony("", not tells and answer.seen > holdings.lineage.high_water_at_start)


def _decoded(answer: SeenIs) -> tuple[list[Life], list[tuple[str, Life]]]:
    try:
        return lives_of(answer.seen_lives), list(_decode_others(answer.others))
    except (ValueError, TypeError):
        raise ProtocolError("what a peer has seen of stores is not a list of lives") from None


def _decode_others(raw: list[list[Any]]) -> Iterator[tuple[str, Life]]:
    for store_id, *life in raw:
        yield str(store_id), lives_of([life])[0]
