"""Claims of clients about how new this peer's store was.

A client may be wrong, or lie. Therefore a claim does not end a vote and is not stored: it becomes a
problem in the status, and makes the peer ask the other members again. See ``freshness.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from dstash.cluster.replication.lineage import LIVES_PER_EPOCH, MOST_CLAIMS, Lineage
from dstash.cluster.topology.joining import RESTORED_JUMP
from dstash.cluster.topology.life import Life
from dstash.errors import ProtocolError
from dstash.wire.shapes import is_word

#: The problem in ``status`` and ``/readyz``.
SUSPECTED: Final = "a client saw a newer state of this store: restored from an old copy?"

#: The most claims that are kept.
_MAX_CLAIMS: Final = 16
#: A life whose number is further ahead is invented: the number grows by one with each start, and
#: follows the epoch when the store is streamed again. An epoch jumps when a topology is restored.
_MAX_NUMBERS_AHEAD: Final = 32 * RESTORED_JUMP * LIVES_PER_EPOCH


class Claims:
    """Claims about one store that contradict it.

    Args:
        lineage: the lives of the store.
        store_id: the id of the store.
    """

    def __init__(self, lineage: Lineage, store_id: str) -> None:
        self._lineage = lineage
        self._store_id = store_id
        self._kept: dict[tuple[int, int], Life] = {}

    def take(self, seen: Iterable[list[Any]]) -> bool:
        """Take the lives that a client saw; return whether a new life contradicts this store.

        Raises:
            ProtocolError: it is not a list of lives.
        """
        farthest = self._lineage.current.number + _MAX_NUMBERS_AHEAD
        has_news = False
        for store_id, life in _decoded(seen):
            known = self._kept.get(life.start)
            is_news = known is None or known.stamp < life.stamp
            is_plausible = store_id == self._store_id and life.number <= farthest
            if is_plausible and is_news and self._lineage.is_behind(life):
                self._kept[life.start] = life
                has_news = True
        while len(self._kept) > _MAX_CLAIMS:
            del self._kept[next(iter(self._kept))]
        return has_news

    def contradict(self) -> bool:
        """Whether a claim contradicts the store now; streaming since then voids claims."""
        is_behind = self._lineage.is_behind
        self._kept = {start: life for start, life in self._kept.items() if is_behind(life)}
        return bool(self._kept)

    @property
    def highest_number(self) -> int:
        """The highest number of a life that was claimed; 0 for none."""
        return max((life.number for life in self._kept.values()), default=0)


def _decoded(seen: Iterable[list[Any]]) -> list[tuple[str, Life]]:
    found = []
    for claim in list(seen)[:MOST_CLAIMS]:
        match claim:
            case [str() as store_id, number, began, stamp] if all(map(is_word, claim[1:])):
                found.append((store_id, Life(number, began, stamp)))
            case _:
                raise ProtocolError("Hello.seen is not a list of [store id, life, begin, stamp]")
    return found
