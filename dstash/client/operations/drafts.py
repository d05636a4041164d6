"""Pages of a scan before they are delivered, and what other replicas say of them.

Pure: no messages go out from here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from struct import Struct, error
from typing import Any, Final, NamedTuple

from dstash.errors import ProtocolError
from dstash.limits import PARTITIONS
from dstash.types import Level
from dstash.wire.messages import Page

#: An entry of ``Page.digests``: place in the list of partitions, number of live records, digest.
_ENTRY: Final = Struct(">HI16s")
_PLACE: Final = Struct(">H")
_MODULUS: Final = (1 << 128) - 1


@dataclass(frozen=True, slots=True)
class Query:
    """What a scan is over, and how it is read."""

    index: str
    prefix: bytes
    level: Level
    decode: Callable[[bytes], list[Any]]


class Position(NamedTuple):
    """Where a scan stands: the partitions left, and the last key seen in the first of them."""

    remaining: tuple[int, ...]
    after: bytes = b""

    @classmethod
    def start(cls) -> Position:
        """Return where every scan begins."""
        return cls(tuple(range(PARTITIONS)))

    @property
    def done(self) -> bool:
        """Whether no partition is left."""
        return not self.remaining

    def lagging(self, asked: Sequence[int], page: Page) -> Position:
        """Return the position behind a page of the ``asked`` partitions, the first of mine first.

        Raises:
            ProtocolError: the page does not move on, or claims more than was asked.
        """
        check_progress(page, len(asked), self.after)
        walked = set(asked[: page.done])
        resumed = asked[page.done : page.done + 1] if page.after else []
        rest = [one for one in self.remaining if one not in walked and one not in resumed]
        return Position((*resumed, *rest), page.after)


def check_progress(page: Page, asked: int, after: bytes) -> None:
    """Refuse a page that ends where it began, or behind what was asked."""
    is_too_far = page.done > asked or (page.done == asked and page.after)
    if is_too_far or (not page.done and page.after <= after):
        raise ProtocolError("a peer answered a scan with a page that does not move on")


class Sums:
    """Number and digest of the live records of each partition, added up over several answers."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self._totals: Counter[int] = Counter()
        #: Places that a damaged record keeps from being compared.
        self.corrupt: set[int] = set()

    def add(self, page: Page, places: Sequence[int]) -> None:
        """Add an answer about the partitions that have these places in the page compared."""
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
    """A page that one replica gave under one epoch, and the votes of other replicas about it.

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
        self.end = begin.lagging(asked, page)
        self.places = range(page.done + bool(page.after))
        self.sums = Sums()
        self.sums.add(page, self.places)
        self.differing: set[int] = set(self.sums.corrupt)
        #: By place, the replicas that were asked to confirm it, and did not fail to.
        self.voters: dict[int, set[str]] = {place: set() for place in self.places}

    def differ(self, places: Iterable[int]) -> None:
        """Take note that replicas do not agree, or cannot be compared, in these partitions."""
        self.differing.update(places)

    def compare(self, theirs: Sums, places: Iterable[int]) -> None:
        """Compare with all that another replica holds in these partitions."""
        mine = self.sums
        self.differ(
            place
            for place in places
            if place in theirs.corrupt
            or mine.counts[place] != theirs.counts[place]
            or mine.total(place) != theirs.total(place)
        )

    def until(self, places: Sequence[int]) -> bytes:
        """Return the last key of a range of these partitions, empty for all of the last one."""
        return self.page.after if places and places[-1] == self.page.done else b""

    def after(self, places: Sequence[int]) -> bytes:
        """Return behind which key of the first of these partitions the page began."""
        return self.begin.after if places and places[0] == 0 else b""


class Doubt(NamedTuple):
    """A range on which replicas do not agree: keys behind ``after``, in the first partition, up to
    ``until``, in the last one (empty: all of it).
    """

    partitions: Sequence[int]
    after: bytes
    until: bytes


class Confirmed(NamedTuple):
    """A page of which enough replicas have spoken, and the page behind it if it is there yet."""

    draft: Draft
    ahead: Draft | None

    def doubt(self) -> Doubt | None:
        """Return the range on which they differ; None when they agree."""
        places = sorted(self.draft.differing)
        if not places:
            return None
        draft = self.draft
        partitions = [draft.asked[place] for place in places]
        return Doubt(partitions, draft.after(places), draft.until(places))

    def doubtful_partitions(self) -> frozenset[int]:
        """Return the partitions on which they differ."""
        return frozenset(self.draft.asked[place] for place in self.draft.differing)

    def live_records(self) -> int:
        """Return the number of live records in the partitions on which they agree."""
        draft = self.draft
        if not draft.differing:
            return draft.page.count
        return sum(
            count for place, count in draft.sums.counts.items() if place not in draft.differing
        )
