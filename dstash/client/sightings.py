"""What a client saw of the stores of peers: how new each was.

A client tells it to peers with its greeting. Where the disks of all peers are replaced by old
copies, clients may be the only ones that know; see ``cluster/lineage.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from dstash.cluster.replication.lineage import MOST_CLAIMS
from dstash.cluster.topology.life import Life
from dstash.version import Stamp
from dstash.wire.shapes import is_word

#: Lives of one store that are kept: an old copy begins other lives, and must not hide the earlier.
_LIVES: Final = 4


class Sighting:
    """One life of one store, with the newest stamp that the peer is known to have had in it."""

    __slots__ = ("life", "stamp", "store_id")

    def __init__(self, store_id: str, life: Life) -> None:
        self.store_id = store_id
        self.life = life
        self.stamp = life.stamp

    def acked(self, stamp: Stamp) -> None:
        """Take note that the peer acked a write with that stamp."""
        self.stamp = max(self.stamp, stamp)


class Sightings:
    """The sightings of one client; safe to share between threads."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int, int], Sighting] = {}

    def learn(self, store: Sequence[Any]) -> Sighting | None:
        """Take what a peer says of its store in ``Welcome``; None if it says nothing of use."""
        match store:
            case [str() as store_id, number, began, stamp] if all(map(is_word, store[1:])):
                return self._see(store_id, Life(number, began, stamp))
        return None

    def claims(self) -> list[list[Any]]:
        """Return what peers are told: life and stamp of each store that acked something."""
        seen = list(self._seen.values())
        return [[one.store_id, *one.life.start, one.stamp] for one in seen if one.stamp]

    def _see(self, store_id: str, life: Life) -> Sighting:
        place = (store_id, *life.start)
        # The last is the one that was seen last; the first has to go when there are too many.
        known = self._seen.pop(place, None) or Sighting(store_id, life)
        sighting = self._seen.setdefault(place, known)
        sighting.acked(life.stamp)
        same = [one for one in list(self._seen) if one[0] == store_id]
        # The life that acked the newest write stays, whatever came since.
        newest = max(same, key=lambda one: self._stamp_of(one))
        surplus = [one for one in same if one not in (newest, place)][: max(0, len(same) - _LIVES)]
        for one in (*surplus, *list(self._seen)[: max(0, len(self._seen) - MOST_CLAIMS)]):
            self._seen.pop(one, None)
        return sighting

    def _stamp_of(self, place: tuple[str, int, int]) -> Stamp:
        sighting = self._seen.get(place)
        return 0 if sighting is None else sighting.stamp
