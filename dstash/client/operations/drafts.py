"""Draft pages of a scan, and the digests of other replicas about them. Pure: no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from struct import Struct, error
from typing import Any, Final, NamedTuple

from dstash.errors import ProtocolError
from dstash.limits import PARTITIONS
from dstash.types import Level, OnError
from dstash.wire.messages import Page
from dstash.wire.values import Undecodable

#: An entry of ``Page.digests``: place in the list of partitions, number of live records, digest.
_ENTRY: Final = Struct(">HI16s")
_PLACE: Final = Struct(">H")
_MODULUS: Final = (1 << 128) - 1


@dataclass(frozen=True, slots=True)
class Query:
    """The index and prefix of a scan, and how it is read; see ``LookupOperation``."""

    index: str
    prefix: bytes
    level: Level
    decode: Callable[[bytes, Sequence[Any], MutableMapping[Any, Undecodable]], list[Any]]
    on_error: OnError = OnError.RAISE


class Position(NamedTuple):
    """The progress of a scan: the partitions left, and the last key read in the first of them."""

    remaining: tuple[int, ...]
    after: bytes = b""

    @classmethod
    def start(cls) -> Position:
        """Return the position at which a scan starts."""
        return cls(tuple(range(PARTITIONS)))

    @property
    def done(self) -> bool:
        """Whether no partition is left."""
        return not self.remaining

    def after_page(self, asked: Sequence[int], page: Page) -> Position:
        """Return the position after a page of the ``asked`` partitions.

        Raises:
            ProtocolError: the page makes no progress, or covers more than was requested.
        """
        check_progress(page, len(asked), self.after)
        walked = set(asked[: page.done])
        resumed = asked[page.done : page.done + 1] if page.after else []
        rest = [
            partition
            for partition in self.remaining
            if partition not in walked and partition not in resumed
        ]
        return Position((*resumed, *rest), page.after)


def check_progress(page: Page, asked: int, after: bytes) -> None:
    """Raise ``ProtocolError`` for a page that makes no progress or covers too much."""
    is_too_far = page.done > asked or (page.done == asked and page.after)
    if is_too_far or (not page.done and page.after <= after):
        raise ProtocolError("a peer answered a scan with a page that makes no progress")


class Sums:
    """Number and digest of the live records of each partition, summed over several answers."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self._totals: Counter[int] = Counter()
        #: Places that cannot be compared, because of a corrupt record.
        self.corrupt: set[int] = set()

    def add(self, page: Page, places: Sequence[int]) -> None:
        """Add an answer about the partitions at these places."""
        try:
            for place, count, digest in _ENTRY.iter_unpack(page.digests):
                self.counts[places[place]] += count
                self._totals[places[place]] += int.from_bytes(digest, "big")
            self.corrupt.update(places[place] for (place,) in _PLACE.iter_unpack(page.corrupt))
        except (IndexError, error):
            raise ProtocolError("a peer answered a scan with malformed digests") from None

    def total(self, place: int) -> int:
        """Return the digest of a partition."""
        return self._totals[place] & _MODULUS


class Draft:
    """A page of one replica under one epoch, and the votes of other replicas about it.

    A place is the position of a partition in ``asked``.
    """

    def __init__(
        self, peer: str, epoch: int, begin: Position, asked: Sequence[int], page: Page, read_at: int
    ) -> None:
        self.peer = peer
        self.epoch = epoch
        self.begin = begin
        self.asked = asked
        self.page = page
        self.read_at = read_at
        self.end = begin.after_page(asked, page)
        self.places = range(page.done + bool(page.after))
        self.sums = Sums()
        self.sums.add(page, self.places)
        self.differing: set[int] = set(self.sums.corrupt)
        #: The replicas that were asked to confirm a partition and have not failed, by place.
        self.voters: dict[int, set[str]] = {place: set() for place in self.places}

    def differ(self, places: Iterable[int]) -> None:
        """Record that replicas differ, or cannot be compared, in these partitions."""
        self.differing.update(places)

    def compare(self, votes: Sums, places: Iterable[int]) -> None:
        """Compare with the sums of another replica for these partitions."""
        sums = self.sums
        self.differ(
            place
            for place in places
            if place in votes.corrupt
            or sums.counts[place] != votes.counts[place]
            or sums.total(place) != votes.total(place)
        )

    def until(self, places: Sequence[int]) -> bytes:
        """Return the last key of a range; empty if it has all of its last partition."""
        return self.page.after if places and places[-1] == self.page.done else b""

    def after(self, places: Sequence[int]) -> bytes:
        """Return the key of the first of these partitions after which the page starts."""
        return self.begin.after if places and places[0] == 0 else b""


class Unconfirmed(NamedTuple):
    """A range in which replicas differ.

    It starts after the key ``after`` in the first partition, and ends with the key ``until`` in the
    last partition (empty: all of it).
    """

    partitions: Sequence[int]
    after: bytes
    until: bytes


class Confirmed(NamedTuple):
    """A page that enough replicas have voted on, and the next page if it has arrived."""

    draft: Draft
    ahead: Draft | None

    def unconfirmed(self) -> Unconfirmed | None:
        """Return the range in which the replicas differ, None if they agree."""
        places = sorted(self.draft.differing)
        if not places:
            return None
        draft = self.draft
        partitions = [draft.asked[place] for place in places]
        return Unconfirmed(partitions, draft.after(places), draft.until(places))

    def unconfirmed_partitions(self) -> frozenset[int]:
        """Return the partitions in which the replicas differ."""
        return frozenset(self.draft.asked[place] for place in self.draft.differing)

    def live_records(self) -> int:
        """Return the number of live records in the partitions in which the replicas agree."""
        draft = self.draft
        if not draft.differing:
            return draft.page.count
        return sum(
            count for place, count in draft.sums.counts.items() if place not in draft.differing
        )
