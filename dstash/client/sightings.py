"""The newest stamp of each peer's store that a client saw.

A client reports it to peers with its greeting. If the disks of all peers are replaced by old
copies, only clients may be able to detect it; see ``cluster/replication/lineage.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from dstash.cluster.replication.lineage import MOST_CLAIMS
from dstash.cluster.topology.life import Life
from dstash.version import Stamp
from dstash.wire.shapes import is_word

#: Lives that are kept per store: an old copy starts new lives, which must not displace the earlier.
_MAX_LIVES: Final = 4


class Sighting:
    """One life of one store, with the newest stamp that the store is known to have had in it."""

    __slots__ = ("life", "stamp", "store_id")

    def __init__(self, store_id: str, life: Life) -> None:
        self.store_id = store_id
        self.life = life
        self.stamp = life.stamp

    def acked(self, stamp: Stamp) -> None:
        """Record that the peer acked a write with that stamp."""
        self.stamp = max(self.stamp, stamp)


class Sightings:
    """The sightings of one client; thread-safe."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int, int], Sighting] = {}

    def learn(self, store: Sequence[Any]) -> Sighting | None:
        """Record the store of a peer from its ``Welcome``; return None if it is invalid."""
        match store:
            case [str() as store_id, number, began, stamp] if all(map(is_word, store[1:])):
                return self._see(store_id, Life(number, began, stamp))
        return None

    def claims(self) -> list[list[Any]]:
        """Return life and stamp of each store that acked a write, for the greeting."""
        seen = list(self._seen.values())
        return [[store.store_id, *store.life.start, store.stamp] for store in seen if store.stamp]

    def _see(self, store_id: str, life: Life) -> Sighting:
        place = (store_id, *life.start)
        # The most recent sighting is last; the first is dropped if there are too many.
        known = self._seen.pop(place, None) or Sighting(store_id, life)
        sighting = self._seen.setdefault(place, known)
        sighting.acked(life.stamp)
        lives = [life for life in list(self._seen) if life[0] == store_id]
        # The life that acked the newest write is always kept.
        newest = max(lives, key=self._stamp_of)
        surplus = [known for known in lives if known not in (newest, place)]
        surplus = surplus[: max(0, len(lives) - _MAX_LIVES)]
        for old in (*surplus, *list(self._seen)[: max(0, len(self._seen) - MOST_CLAIMS)]):
            self._seen.pop(old, None)
        return sighting

    def _stamp_of(self, place: tuple[str, int, int]) -> Stamp:
        sighting = self._seen.get(place)
        return 0 if sighting is None else sighting.stamp
