"""The newest stamp of each peer's store that a client saw.

A client reports it to peers with its greeting. If the disks of all peers are replaced by old
copies, only clients may be able to detect it; see ``cluster/replication/lineage.py``.
"""

from __future__ import annotations

import itertools
from bisect import insort
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final

from dstash.cluster.replication.lineage import MOST_CLAIMS
from dstash.cluster.topology.life import Life
from dstash.version import Stamp
from dstash.wire.shapes import is_word

#: Lives that are kept per store: an old copy starts new lives, which must not displace the earlier.
_MAX_LIVES: Final = 4
#: Stamps that are kept per life: the newest, and some that other threads may just be recording.
_KEPT_STAMPS: Final = 4


class Sighting:
    """One life of one store, with the newest stamp that the store is known to have had in it.

    Thread-safe without a lock, because a signal handler may interrupt a call and make another.
    """

    __slots__ = ("_stamps", "life", "seen", "store_id")

    def __init__(self, store_id: str, life: Life) -> None:
        self.store_id = store_id
        self.life = life
        #: Increases each time that a peer reports this life.
        self.seen = 0
        #: The newest stamps, in order. Neither step of ``acked`` can lose the last one.
        self._stamps = [life.stamp]

    @property
    def stamp(self) -> Stamp:
        """The newest stamp."""
        return self._stamps[-1]

    def acked(self, stamp: Stamp) -> None:
        """Record that the peer acked a write with that stamp."""
        if stamp > self._stamps[-1]:
            insort(self._stamps, stamp)
            del self._stamps[:-_KEPT_STAMPS]


class Sightings:
    """The sightings of one client; thread-safe without a lock, like ``Sighting``."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int, int], Sighting] = {}
        self._order = itertools.count(1)

    def learn(self, store: Sequence[Any]) -> Sighting | None:
        """Record the store of a peer from its ``Welcome``; return None if it is invalid."""
        match store:
            case [str() as store_id, number, began, stamp] if all(map(is_word, store[1:])):
                return self._see(store_id, Life(number, began, stamp))
        return None

    def claims(self) -> list[list[Any]]:
        """Return life and stamp of each store that acked a write, for the greeting."""
        seen = sorted(self._seen.values(), key=_ORDER)
        return [[store.store_id, *store.life.start, store.stamp] for store in seen if store.stamp]

    def _see(self, store_id: str, life: Life) -> Sighting:
        place = (store_id, *life.start)
        sighting = self._seen.get(place) or self._seen.setdefault(place, Sighting(store_id, life))
        sighting.acked(life.stamp)
        sighting.seen = next(self._order)
        self._seen.setdefault(place, sighting)  # another thread may have removed it meanwhile
        # The most recent sighting is last; the first is dropped if there are too many.
        known = sorted(self._seen.values(), key=_ORDER)
        lives = [other for other in known if other.store_id == store_id]
        # The life that acked the newest write is always kept.
        newest = max(lives, key=_STAMP, default=sighting)
        surplus = [other for other in lives if other is not newest and other is not sighting]
        surplus = surplus[: max(0, len(lives) - _MAX_LIVES)]
        for old in (*surplus, *known[: max(0, len(known) - MOST_CLAIMS)]):
            self._seen.pop((old.store_id, *old.life.start), None)
        return sighting


_ORDER: Final = attrgetter("seen")
_STAMP: Final = attrgetter("stamp")
