"""Rollback detection: the lives of this store, and the lives seen of the stores of other peers.

A store that was restored from an old copy, or that lost unsynced data, lacks writes that it has
acked. The store itself does not show this, but the other peers remember how new it was: its high
water, which rises with every commit. That alone is not enough, because commits of an old copy
raise it, too, and hide the loss. So each start of a process begins a new *life* of its store, and
peers remember the high water together with its life. A store that lacks that life, or ended it
below that, is old. (Kafka finds where the log of a replica diverged in the same way, by leader
epochs: KIP-101.)
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Final

from dstash.cluster.topology.life import Life, lives_of
from dstash.errors import DiskFull
from dstash.store.interface import Store
from dstash.version import Stamp

LINEAGE_MARK: Final = b"lineage"
SEEN_MARK: Final = b"seen"

#: Own lives that a store keeps, and lives of another store that a peer remembers.
_MAX_OWN_LIVES: Final = 64
_MAX_SEEN_LIVES: Final = 16

#: Lives of stores that a client reports to a peer, at most.
MOST_CLAIMS: Final = 64

#: A streamed store continues above the epoch times this number, because old copies that are put
#: back repeat the numbers of lives, and another member may not have heard of every life between.
#: Each streaming has its own epoch, so its life has a number that no earlier life has.
LIVES_PER_EPOCH: Final = 1 << 20

Mark = tuple[bytes, bytes]


class Lineage:
    """The lives of this peer's own store. Creating this object begins a new life.

    Args:
        store: stores the lives.
        now: the start of the process (milliseconds since 1970).
    """

    def __init__(self, store: Store, now: int) -> None:
        self._store = store
        self._base, self._lives = _decode_lineage(store.marked(LINEAGE_MARK))
        #: The high water of the store when this process started.
        self.high_water_at_start = store.high_water
        self._newest_number = 0
        #: Whether the disk had no room for a new life, so that the previous life continues.
        self._continues = False
        #: Whether other peers and clients may have seen stamps of this process.
        self._is_shown = False
        self._begin(now)

    def _begin(self, now: int) -> None:
        before = self._lives
        # Stamps seen by versions without lives belong to life 0.
        last = (before[-1] if before else Life(0, 0, 0))._replace(stamp=self._store.high_water)
        following = Life(last.number + 1, now, 0)
        self._lives = [*before[:-1], last, following][-_MAX_OWN_LIVES:]
        try:
            self._store.mark(*self._mark())
        except DiskFull:
            self._lives, self._continues = [*before[:-1], last], True

    @property
    def current(self) -> Life:
        """The life of this process, up to the high water of the store now."""
        return self._lives[-1]._replace(stamp=self._store.high_water)

    def show(self) -> None:
        """Take note that from now on others may see the stamps of this process."""
        self._is_shown = True

    def contradicts(self, seen: Life) -> bool:
        """Whether a life that was seen of this store proves that the store was rolled back."""
        self._newest_number = max(self._newest_number, seen.number)
        return self.is_behind(seen)

    def is_behind(self, seen: Life) -> bool:
        """Like ``contradicts``, for a claim that may be false: nothing is remembered."""
        current = self._lives[-1]
        if seen.number < self._base:
            return False
        if seen.start == current.start:
            # Seen of this process, unless the life is older than it, and it has shown no stamp yet.
            own = self._store.high_water if self._is_shown else self.high_water_at_start
            return self._continues and seen.stamp > own
        known = next((life for life in self._lives if life.number == seen.number), None)
        if known is not None:
            return known.began != seen.began or seen.stamp > known.stamp
        return seen.number > current.number or seen.stamp > self._lives[0].stamp

    def rebase(self, now: int, epoch: int, claimed: int = 0) -> Mark:
        """Begin a life that voids every earlier sighting, because the store was streamed again.

        Args:
            now: as for the store's start (milliseconds since 1970).
            epoch: of the topology in which the store was not synced.
            claimed: the highest life number that clients have seen.

        Returns:
            the mark to store.
        """
        following = max(self._newest_number, self._lives[-1].number, claimed) + 1
        number = max(following, epoch * LIVES_PER_EPOCH)
        self._base, self._lives, self._continues = number, [Life(number, now, 0)], False
        return self._mark()

    def _mark(self) -> Mark:
        content = {"base": self._base, "lives": self._lives}
        return LINEAGE_MARK, json.dumps(content).encode()


class StoreMemory:
    """The lives that this peer has seen of other stores, by store id. Durable through ``mark``.

    One thread changes it; other threads may call ``newest``.
    """

    def __init__(self, store: Store) -> None:
        self._seen = _decode_seen(store.marked(SEEN_MARK))
        #: Whether anything changed since the last ``mark``.
        self.is_dirty = False

    def note(self, store_id: str, seen: Life) -> None:
        """Remember a life that was seen of a store."""
        lives = {life.start: life for life in self._seen.get(store_id, ())}
        known = lives.get(seen.start)
        if known is not None and known.stamp >= seen.stamp:
            return
        lives[seen.start] = seen
        # One assignment, because another thread may read it.
        self._seen[store_id] = tuple(sorted(lives.values()))[-_MAX_SEEN_LIVES:]
        self.is_dirty = True

    def of(self, store_id: str) -> tuple[Life, ...]:
        """Return the lives seen of a store, the oldest first."""
        return self._seen.get(store_id, ())

    def newest_stamp(self, store_id: str) -> Stamp:
        """Return the highest high water seen of a store, in any life; 0 for none."""
        return max((life.stamp for life in self.of(store_id)), default=0)

    def newest(self, store_id: str) -> Life | None:
        """Return the last life seen of a store; None for none."""
        return next(reversed(self.of(store_id)), None)

    def all(self) -> Iterator[tuple[str, Life]]:
        """Yield every store id with each of its lives."""
        for store_id, lives in list(self._seen.items()):
            for life in lives:
                yield store_id, life

    def keep_only(self, store_ids: Collection[str]) -> None:
        """Drop the stores that no member of the cluster has any more."""
        for store_id in self._seen.keys() - set(store_ids):
            del self._seen[store_id]
            self.is_dirty = True

    def mark(self) -> Mark:
        """Return the mark to store, and clear ``is_dirty``."""
        self.is_dirty = False
        return SEEN_MARK, json.dumps(self._seen, sort_keys=True).encode()


def _decode_lineage(kept: bytes | None) -> tuple[int, list[Life]]:
    try:
        raw = json.loads(kept or b"{}")
        return int(raw.get("base", 0)), lives_of(raw.get("lives", ()))
    except (ValueError, TypeError, AttributeError):
        return 0, []


def _decode_seen(kept: bytes | None) -> dict[str, tuple[Life, ...]]:
    try:
        return {
            str(store_id): tuple(lives_of(lives))
            for store_id, lives in json.loads(kept or b"{}").items()
        }
    except (ValueError, TypeError, AttributeError):
        return {}
