"""The cluster's time as one peer knows it, and how far ahead of it stamps may be.

A peer must not trust its own clock: a clock that is an hour ahead would accept stamps that the
other peers refuse, and would promise to refuse every stamp of the next hour. So a peer reads the
clocks of the other members from their replies and goes by the median of all clocks, its own
included. One wrong clock of three, or two of five, change nothing.

Stamps can be ahead of every clock all the same: a majority of clocks was wrong and has been set
right. Then the hybrid logical clock goes on from there: what a majority of members have stored or
promised (their ``present``) is accepted, and a few milliseconds more, so that the next write can
be stamped past it. The margin is small because each accepted stamp may raise the present: it must
rise more slowly than time passes.

What a peer knows of the others can be out of date: it has just started, or clocks have just been
set. So there are two bounds. Up to ``latest`` a stamp is accepted. Above ``highest_possible`` it is
certain that a stamp is from the future. Between them a peer says neither, but asks the others.

The reading of a clock is that of Cristian, "Probabilistic Clock Synchronization" (1989).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from statistics import median_low
from typing import Final

from dstash.version import MAX_STAMP, Stamp, stamp_at, stamp_milliseconds

#: A peer calls ``advance`` more often than this (milliseconds). After a longer step of its clock
#: it was stopped, or its clock was set: what it knows of other clocks says nothing any more.
_LONGEST_STEP_MS: Final = 1500

#: How far (milliseconds) stamps may be ahead of what a majority of members hold.
_MARGIN_MS: Final = 10

#: How long (milliseconds) a peer that knows too few clocks waits for answers before its own counts.
_PATIENCE_MS: Final = 5000

#: Low bits of a stamp, all set: the last stamp of a millisecond.
_LAST_COUNTER: Final = stamp_at(1) - 1


class ClusterClock:
    """The median of the members' clocks, and what a majority of members hold.

    Args:
        me: the id of this peer.
        skew_ms: how far (milliseconds) a stamp may be ahead of the median.
        own_present: returns the newest stamp that this peer holds or has promised.
        now: this peer's clock, in milliseconds since 1970.
    """

    def __init__(self, me: str, skew_ms: int, own_present: Callable[[], Stamp], now: int) -> None:
        self._me = me
        self._skew_ms = skew_ms
        self._own_present = own_present
        self._now = now
        self._members: frozenset[str] = frozenset()
        self._holders: frozenset[str] = frozenset()
        self._alive: frozenset[str] = frozenset()
        #: By member, how far (milliseconds) its clock is ahead of this peer's.
        self._offsets: dict[str, int] = {}
        #: What follows from these, computed when they change: it is read in every turn of the loop.
        self._knows_majority = False
        self._offset_ms = 0
        self._presents: dict[str, Stamp] = {}
        #: Members whose present was read since the last step of a clock.
        self._fresh: set[str] = set()
        self._era = 0
        self._unknown_since = now
        self._sent: dict[int, int] = {}
        #: Whether the other members should be asked now, not at the next turn.
        self.is_due = True

    # -- what is learned

    def install(
        self, members: Collection[str], holders: Collection[str], alive: frozenset[str]
    ) -> None:
        """Take the members whose clocks count, and those that hold data and vote on the present."""
        if alive - self._alive:
            self.is_due = True
        self._fresh &= frozenset(members)
        self._members, self._holders = frozenset(members), frozenset(holders)
        self._alive = alive
        self._offsets = {peer: ms for peer, ms in self._offsets.items() if peer in self._members}
        self._presents = {peer: at for peer, at in self._presents.items() if peer in self._members}
        self._measure()

    def advance(self, now: int) -> None:
        """Take the time of this peer's clock, which may have been set."""
        step = now - self._now
        self._now = now
        if step < 0:
            self._offsets = {peer: offset - step for peer, offset in self._offsets.items()}
            self._measure()
            self._begin_era()
        elif step > _LONGEST_STEP_MS:
            self._offsets.clear()
            self._measure()
            self._begin_era()

    @property
    def era(self) -> int:
        """A number that changes when what was read of other members may be out of date."""
        return self._era

    def _begin_era(self) -> None:
        self._era += 1
        self._sent.clear()
        self._fresh.clear()
        self._unknown_since = self._now
        self.is_due = True

    def sent(self, correlation: int) -> None:
        """Take note that a request was sent now."""
        self._sent[correlation] = self._now

    def unanswered(self, correlation: int) -> None:
        """Forget a request that gets no answer."""
        self._sent.pop(correlation, None)

    def answered(self, peer: str, correlation: int, moment: int) -> None:
        """Take the clock of another member (0: it gave none) from its answer to a request.

        It was read between the request and now, so the offset lies between two bounds. What is
        known is kept as far as it fits: a slow answer says little, a quick one much.
        """
        sent = self._sent.pop(correlation, None)
        if sent is None or not moment or peer not in self._members:
            return
        lowest, highest = moment - self._now, moment - sent
        known, before = self._offsets.get(peer, lowest), self.time()
        self._offsets[peer] = min(max(known, lowest), highest)
        self._measure()
        if abs(self.time() - before) > self._skew_ms:
            self._begin_era()

    def holds(self, peer: str, present: Stamp, era: int) -> None:
        """Take the newest stamp that another member holds or has promised.

        Args:
            peer: that member.
            present: the stamp.
            era: what ``era`` was when it was asked.
        """
        if peer in self._members:
            self._presents[peer] = present
            if era == self._era:
                self._fresh.add(peer)

    def forget_unanswered(self, outstanding: Collection[int]) -> None:
        """Forget all requests but those that may still be answered."""
        self._sent = {one: at for one, at in self._sent.items() if one in outstanding}

    def _measure(self) -> None:
        """Compute the median from the offsets that are known."""
        known = len(self._offsets.keys() - {self._me}) + 1
        self._knows_majority = bool(self._members) and 2 * known > len(self._members | {self._me})
        others = [offset for peer, offset in self._offsets.items() if peer != self._me]
        self._offset_ms = -median_low([0, *others]) if self._knows_majority else 0

    # -- what is known

    @property
    def knows_majority(self) -> bool:
        """Whether the clocks of a majority of the members are known, this peer's included."""
        return self._knows_majority

    @property
    def offset_ms(self) -> int:
        """How far (milliseconds) this peer's clock is ahead of the cluster's; 0 if not known."""
        return self._offset_ms

    @property
    def is_wrong(self) -> bool:
        """Whether this peer's clock is off by more than stamps may be."""
        return abs(self.offset_ms) > self._skew_ms

    @property
    def is_complete(self) -> bool:
        """Whether all that live members can tell has been read since the last step of a clock."""
        others = self._alive & self._members - {self._me}
        return others <= self._offsets.keys() and others & self._holders <= self._fresh

    def time(self) -> int:
        """Return the cluster's time (milliseconds since 1970); this peer's, as long as it is alone.

        It is the median of the clocks that are known, if those are a majority.
        """
        return self._now - self.offset_ms

    def confirmed(self) -> Stamp:
        """Return the highest stamp that a majority of members hold or have promised; 0 if unknown.

        A member that is down and has not been heard since this peer started may hold anything, so
        it counts as one that does: to refuse what a majority does hold would lose acked writes.
        """
        if not self.knows_majority or not self._holders:
            return 0
        absent = {peer for peer in self._holders - self._presents.keys() if peer not in self._alive}
        needed = max(1, len(self._holders) // 2 + 1 - len(absent - {self._me}))
        return self._held_by(needed, self._presents.keys())

    def _held_by(self, needed: int, peers: Collection[str]) -> Stamp:
        """Return the highest stamp that so many of some peers and this one hold; 0: too few."""
        presents = self._presents | {self._me: self._own_present()}
        known = [presents[peer] for peer in self._holders & {*peers, self._me}]
        known.sort(reverse=True)
        return known[needed - 1] if len(known) >= needed else 0

    def present_ms(self) -> int:
        """Return the time that stamps are judged by: at most the allowed skew ahead of it.

        It is the cluster's time, or later, where a majority of members hold later stamps.
        """
        return self._judged_by(self.confirmed(), self.time())

    def _judged_by(self, confirmed: Stamp, time: int) -> int:
        held = stamp_milliseconds(confirmed)
        is_ahead = held > time + self._skew_ms
        return held + _MARGIN_MS - self._skew_ms if is_ahead else time

    def latest(self) -> Stamp:
        """Return the highest stamp that is accepted."""
        return self._up_to(self.present_ms())

    def _up_to(self, present_ms: int) -> Stamp:
        return min(MAX_STAMP, stamp_at(present_ms + self._skew_ms) | _LAST_COUNTER)

    def highest_possible(self) -> Stamp:
        """Return the stamp above which everything is certainly from the future.

        Members whose present is not known, or out of date, may hold anything up to what any member
        is known to hold; if they are a majority, anything at all. And clocks that are not known may
        be ahead of all that are.
        """
        if not self.knows_majority:
            waits = self._now - self._unknown_since < _PATIENCE_MS
            return MAX_STAMP if waits else self.latest()
        unsure = self._holders - self._fresh - {self._me}
        needed = len(self._holders) // 2 + 1 - len(unsure)
        if needed < 1:
            return MAX_STAMP
        held = self._held_by(needed, self._fresh)
        return max(self.latest(), self._up_to(self._judged_by(held, self._latest_time())))

    def _latest_time(self) -> int:
        """Return the latest that the median of all clocks can be, if a majority is known."""
        offsets = [offset for peer, offset in self._offsets.items() if peer != self._me]
        middle = (len(self._members | {self._me}) - 1) // 2
        return self._now + sorted([0, *offsets])[middle]

    def ahead_ms(self, *stamps: Stamp) -> int:
        """Return how far (milliseconds) stamps are ahead of the cluster's time; 0: within skew."""
        ahead = max(map(stamp_milliseconds, stamps), default=0) - self.time()
        return ahead if ahead > self._skew_ms else 0
