"""What clients say they saw of this peer's store.

A client may be wrong, or lie, so a claim neither ends a vote nor is kept on disk: it shows, and has
the members asked again. See ``freshness.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from dstash.cluster.replication.lineage import MOST_CLAIMS, Lineage
from dstash.cluster.topology.life import Life
from dstash.errors import ProtocolError
from dstash.wire.shapes import is_word

#: What ``status`` and ``/readyz`` say.
SUSPECTED: Final = "a client saw a newer state of this store: restored from an old copy?"

#: Claims that are kept, at most.
_KEPT: Final = 16
#: A life whose number is so far ahead was made up: the number grows by one with each start.
_FARTHEST: Final = 1_000_000


class Claims:
    """Claims about one store that contradict it.

    Args:
        lineage: the lives of the store.
        store_id: names the store.
    """

    def __init__(self, lineage: Lineage, store_id: str) -> None:
        self._lineage = lineage
        self._store_id = store_id
        self._kept: dict[tuple[int, int], Life] = {}

    def take(self, seen: Iterable[list[Any]]) -> bool:
        """Take what a client saw of stores; whether there is news in it that contradicts this one.

        Raises:
            ProtocolError: it is not a list of lives.
        """
        farthest = self._lineage.current.number + _FARTHEST
        has_news = False
        for store_id, life in _decoded(seen):
            known = self._kept.get(life.start)
            is_news = known is None or known.stamp < life.stamp
            is_plausible = store_id == self._store_id and life.number <= farthest
            if is_plausible and is_news and self._lineage.is_behind(life):
                self._kept[life.start] = life
                has_news = True
        while len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]
        return has_news

    def contradict(self) -> bool:
        """Whether a claim contradicts the store now: what it was filled with since voids them."""
        self._kept = {
            start: life for start, life in self._kept.items() if self._lineage.is_behind(life)
        }
        return bool(self._kept)

    @property
    def highest_number(self) -> int:
        """The highest number of a life that was claimed; 0 for none."""
        return max((life.number for life in self._kept.values()), default=0)


def _decoded(seen: Iterable[list[Any]]) -> list[tuple[str, Life]]:
    found = []
    for one in list(seen)[:MOST_CLAIMS]:
        match one:
            case [str() as store_id, number, began, stamp] if all(map(is_word, one[1:])):
                found.append((store_id, Life(number, began, stamp)))
            case _:
                raise ProtocolError("Hello.seen is not a list of [store id, life, begin, stamp]")
    return found
