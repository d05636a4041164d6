"""Whether a store is as new as it was: the others remember what they saw of it.

A store that was restored from an old copy, or lost what it had not synced, has forgotten writes
that it acked. Nothing in it says so; but its high-water mark (the newest stamp it ever committed)
is below what others saw of it before. Such a peer must not vote until it has been filled again.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from dstash.cluster.replica import Replica
from dstash.cluster.syncing import ask
from dstash.cluster.tasks import Effect, Pause
from dstash.errors import DStashError
from dstash.version import Stamp
from dstash.wire.replication import AskSeen, SeenIs


def recollect(replica: Replica, own: Stamp) -> Generator[Effect, Any, bool]:
    """Ask every live peer; returns whether this store is older than one of them remembers.

    Args:
        own: how new the store was when its process began. What others bring it meanwhile must
            neither hide what it has lost, nor, told to them, look like something it had before.
    """
    newest: Stamp = 0
    for peer in sorted(replica.view().alive - {replica.me}):
        if peer in replica.view().members:
            newest = max(newest, (yield from _ask(replica, peer, 0)))
    return newest > own


def tell_all(replica: Replica) -> Generator[Effect, Any, None]:
    """Let every live peer see how new this store is, and see how new theirs are."""
    for peer in sorted(replica.view().alive - {replica.me}):
        if peer in replica.view().members:
            yield from _ask(replica, peer, replica.holdings.store.high_water)
    yield Pause()


def _ask(replica: Replica, peer: str, own: Stamp) -> Generator[Effect, Any, Stamp]:
    try:
        answer = yield from ask(peer, AskSeen(replica.me, own), SeenIs)
    except DStashError:
        return 0  # it cannot say; the others may
    seen = replica.holdings.seen
    seen[peer] = max(seen.get(peer, 0), answer.high_water)
    return answer.seen
