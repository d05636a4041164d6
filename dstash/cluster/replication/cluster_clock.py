"""The cluster clock as one peer knows it, and the bounds for stamps that follow from it.

A peer must not trust its own clock: a peer whose clock is an hour ahead would accept stamps that
the other peers refuse, and would promise to refuse every stamp of the next hour. So a peer reads
the clocks of the other members from their replies and uses the median of all clocks, its own
included. One wrong clock of three, or two of five, has no effect.

Stamps can still be ahead of every clock, if a majority of clocks was wrong and has been corrected.
Then the hybrid logical clock continues from those stamps: a peer accepts stamps up to the newest
one that a majority of members have stored or promised (their ``present``), and a few milliseconds
more, so that the next write can be stamped past it. The margin is small because each accepted stamp
may raise the present, which must rise more slowly than time passes.

The state of other members can be out of date, because the peer has just started or a clock has
just been set. So there are two more bounds. A stamp above ``highest_possible`` is certainly from
the future. A stamp above ``highest_acked`` is too, and no write quorum holds it: a quorum can be
fewer members than a majority, so a record below this bound may be that of an acked write, which no
older write may replace even if the median of clocks has stepped back. Below these bounds a peer
decides nothing until it has asked the other members.

A record from the future may itself have replaced an acked record, whose stamp is not stored. So
before a write with a lower stamp takes its place, the peer asks what the others hold, and counts
only answers to that: a member may have acked a write after an earlier answer, and have died since.
See ``contest``.

The reading of a clock is that of Cristian, "Probabilistic Clock Synchronization" (1989).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from statistics import median_low
from typing import Final

from dstash.version import MAX_STAMP, Stamp, Version, stamp_at, stamp_milliseconds

#: A peer calls ``advance`` more often than this. After a longer step of its clock, the process
#: was stopped or the clock was set, and the offsets of other clocks are no longer valid.
_MAX_STEP_MS: Final = 1500

#: After a step back of the clock by this much or more (milliseconds), deadlines do not show that
#: requests from before it are late. Those that arrive within the second time are recognised: their
#: deadlines are ahead by more than half of the step.
_LONG_STEP_MS: Final = 10 * 60_000
_TRANSIT_MS: Final = 2 * 60_000

#: How many contested versions are remembered, several batches of them, and how long (milliseconds):
#: longer than a call retries. A version that was forgotten is contested again.
_MOST_CONTESTED: Final = 16_384
_CONTESTED_MS: Final = 60_000
#: How long (milliseconds) the answers of live members are waited for, and bounds are kept.
_ANSWERS_MS: Final = 2000
_KEEP_BOUNDS_MS: Final = 500

#: How far stamps may be ahead of the newest stamp that a majority of members hold.
_MARGIN_MS: Final = 10

#: How long a peer with too few known clocks waits for replies before it uses its own clock alone.
_MAJORITY_TIMEOUT_MS: Final = 5000

#: The low bits of a stamp, all set: those of the last stamp in a millisecond.
_LAST_COUNTER: Final = stamp_at(1) - 1


class ClusterClock:
    """The median of the members' clocks, and the present of a majority of members.

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
        self._quorum = 1
        #: By member, how far (milliseconds) its clock is ahead of this peer's.
        self._offsets: dict[str, int] = {}
        #: Derived from these when they change, because every iteration of the loop reads it.
        self._knows_majority = False
        self._offset_ms = 0
        self._latest_offset_ms = 0
        #: The lowest and the highest ``offset_ms`` in this era.
        self._lowest_offset_ms = self._highest_offset_ms = 0
        self._presents: dict[str, Stamp] = {}
        #: Members whose present was read in this era.
        self._fresh: set[str] = set()
        #: How many presents were asked for, ever and when this era began; and by member, the number
        #: of the last request that was answered.
        self._asked = self._asked_before_era = 0
        self._answered: dict[str, int] = {}
        #: By version, how many presents had been asked for when it was contested, and the time.
        self._contested: dict[Version, tuple[int, int]] = {}
        #: What ``acked_by_contested`` returns until that time; None if something has changed.
        self._bounds: dict[Version, Stamp] | None = None
        self._bounds_until = 0
        #: Derived from these, because every commit reads it: how many other members hold data, how
        #: many of them are down and have never replied, and the presents of the others, highest
        #: first: all known ones, and those that were read in this era.
        self._other_holders = 0
        self._silent_holders = 0
        self._known_presents: list[Stamp] = []
        self._fresh_presents: list[Stamp] = []
        self._era = 0
        self._unknown_since = now
        self._sent: dict[int, int] = {}
        #: By how much (milliseconds) the clock was last set back by a long step, and its time then.
        self._set_back_by = self._set_back_at = 0
        #: Whether the other members should be asked now, before the next interval.
        self.is_due = True

    # -- input

    def install(
        self,
        members: Collection[str],
        holders: Collection[str],
        alive: frozenset[str],
        quorum: int,
    ) -> None:
        """Set the members whose clocks count, and those that hold data and vote on the present.

        Args:
            members: all members.
            holders: members that hold data.
            alive: members that hold their session lock.
            quorum: how many replicas ack a write at level quorum.
        """
        self._quorum = quorum
        if alive - self._alive:
            self.is_due = True
        self._fresh &= frozenset(members)
        self._members, self._holders = frozenset(members), frozenset(holders)
        self._alive = alive
        self._offsets = {peer: ms for peer, ms in self._offsets.items() if peer in self._members}
        self._presents = {peer: at for peer, at in self._presents.items() if peer in self._members}
        self._answered = {peer: at for peer, at in self._answered.items() if peer in self._members}
        self._measure()
        self._sort_presents()
        self._follow_median()

    def advance(self, now: int) -> None:
        """Update the time of this peer's clock, which may have been set."""
        step = now - self._now
        self._now = now
        if step <= -_LONG_STEP_MS:
            self._set_back_by, self._set_back_at = -step, now
        if step < 0:
            self._offsets = {peer: offset - step for peer, offset in self._offsets.items()}
            self._measure()
            self._begin_era()
        elif step > _MAX_STEP_MS:
            self._offsets.clear()
            self._measure()
            self._begin_era()

    def is_from_before_step(self, deadline: int) -> bool:
        """Whether a request was sent before this peer's clock was set back.

        Args:
            deadline: of the request, in milliseconds since 1970 on this peer's clock.
        """
        return (
            self._set_back_by > 0
            and deadline - self._now > self._set_back_by // 2
            and 0 <= self._now - self._set_back_at < _TRANSIT_MS
        )

    @property
    def era(self) -> int:
        """A number that changes when the state read from other members may be out of date."""
        return self._era

    def _begin_era(self) -> None:
        self._era += 1
        self._asked_before_era = self._asked
        self._sent.clear()
        self._fresh.clear()
        self._fresh_presents.clear()
        self._contested.clear()
        self._bounds = None
        self._unknown_since = self._now
        self._lowest_offset_ms = self._highest_offset_ms = self._offset_ms
        self.is_due = True

    def _follow_median(self) -> None:
        """Begin an era when the median has moved by more than the skew since this one began.

        A step back lowers the highest accepted stamp, but not the stamps that were acked before it.
        Several small steps have the same effect as a large one.
        """
        self._lowest_offset_ms = min(self._lowest_offset_ms, self._offset_ms)
        self._highest_offset_ms = max(self._highest_offset_ms, self._offset_ms)
        if self._highest_offset_ms - self._lowest_offset_ms > self._skew_ms:
            self._begin_era()

    def sent(self, correlation: int) -> None:
        """Record that a request was sent now."""
        self._sent[correlation] = self._now

    def unanswered(self, correlation: int) -> None:
        """Drop a request that gets no reply."""
        self._sent.pop(correlation, None)

    def answered(self, peer: str, correlation: int, moment: int) -> None:
        """Take the clock of another member (0: not sent) from its reply to a request.

        The clock was read between the request and now, so its offset lies between two bounds. The
        known offset is kept, clamped to these bounds, because a slow reply gives wide bounds.
        """
        sent = self._sent.pop(correlation, None)
        if sent is None or not moment or peer not in self._members:
            return
        lowest, highest = moment - self._now, moment - sent
        known = self._offsets.get(peer, lowest)
        self._offsets[peer] = min(max(known, lowest), highest)
        self._measure()
        self._follow_median()

    def asks_present(self) -> int:
        """Return a number for a request for the present of a member, which is sent now."""
        self._asked += 1
        return self._asked

    def note_present(self, peer: str, present: Stamp, request: int) -> None:
        """Record the newest stamp that another member holds or has promised.

        Args:
            peer: the member.
            present: the stamp.
            request: the number of the request: see ``asks_present``.
        """
        if peer in self._members:
            self._presents[peer] = present
            self._answered[peer] = max(request, self._answered.get(peer, 0))
            if request > self._asked_before_era:
                self._fresh.add(peer)
            self._sort_presents()

    def contest(self, version: Version) -> None:
        """Note that a write would take the place of a stored version from the future.

        The members are asked what they hold; see ``acked_by_contested``.
        """
        if version not in self._contested:
            if len(self._contested) == _MOST_CONTESTED:
                del self._contested[next(iter(self._contested))]
            self._contested[version] = self._asked, self._now
            self._bounds = None
        self.is_due = True

    def forget_unanswered(self, outstanding: Collection[int]) -> None:
        """Drop all requests except those that may still get a reply."""
        self._sent = {key: at for key, at in self._sent.items() if key in outstanding}

    def _measure(self) -> None:
        """Compute the median of the known offsets, and the latest that the true median may be."""
        known = len(self._offsets.keys() - {self._me}) + 1
        self._knows_majority = bool(self._members) and 2 * known > len(self._members | {self._me})
        others = [offset for peer, offset in self._offsets.items() if peer != self._me]
        self._offset_ms = -median_low([0, *others]) if self._knows_majority else 0
        middle = (len(self._members | {self._me}) - 1) // 2
        self._latest_offset_ms = sorted([0, *others])[middle] if self._knows_majority else 0

    def _sort_presents(self) -> None:
        self._bounds = None
        others, presents = self._holders - {self._me}, self._presents
        self._other_holders = len(others)
        self._silent_holders = len(others - presents.keys() - self._alive)
        known, fresh = others & presents.keys(), others & self._fresh
        self._known_presents = sorted((presents[peer] for peer in known), reverse=True)
        self._fresh_presents = sorted((presents[peer] for peer in fresh), reverse=True)

    # -- derived state

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
        """Whether this peer's clock is off by more than the allowed skew."""
        return abs(self.offset_ms) > self._skew_ms

    @property
    def is_complete(self) -> bool:
        """Whether the clock and present of every live member were read in this era."""
        others = self._alive & self._members - {self._me}
        return others <= self._offsets.keys() and others & self._holders <= self._fresh

    def time(self) -> int:
        """Return the time of the cluster clock (milliseconds since 1970).

        It is the median of the known clocks if they are a majority, else this peer's own clock.
        """
        return self._now - self.offset_ms

    def earliest(self) -> Stamp:
        """Return the lowest stamp of a write made now: its clock is behind by the tolerance."""
        return stamp_at(max(0, self.time() - self._skew_ms))

    def confirmed(self) -> Stamp:
        """Return the highest stamp that a majority of members hold or have promised; 0 if unknown.

        A member that is down and has not replied since this peer started may hold any stamp, so it
        counts as holding it: refusing a stamp that a majority holds would lose acked writes.
        """
        if not self.knows_majority or not self._holders:
            return 0
        needed = max(1, self._majority() - self._silent_holders)
        return self._held_by(needed, self._known_presents)

    def acked_by_contested(self) -> dict[Version, Stamp]:
        """Return, by contested version, the highest stamp that a write quorum may hold.

        It does not depend on clocks. Members that were not asked since the version was contested,
        or have not answered, may hold any stamp up to this peer's own; if they are a quorum, any
        stamp at all. A version is left out while answers of live members are expected.
        """
        if not self._contested:
            return {}
        if self._bounds is None or not 0 <= self._bounds_until - self._now <= _KEEP_BOUNDS_MS:
            self._bounds = self._find_bounds()
            self._bounds_until = self._now + _KEEP_BOUNDS_MS
        return self._bounds

    def _find_bounds(self) -> dict[Version, Stamp]:
        self._contested = {
            version: noted
            for version, noted in self._contested.items()
            if 0 <= self._now - noted[1] < _CONTESTED_MS
        }
        numbers = {asked for asked, _ in self._contested.values()}
        bounds = {asked: self._acked_since(asked) for asked in numbers}
        awaited = {asked for asked in numbers if self._awaits_answers(asked)}
        return {
            version: bounds[asked]
            for version, (asked, since) in self._contested.items()
            if asked not in awaited or self._now - since >= _ANSWERS_MS
        }

    def _awaits_answers(self, asked: int) -> bool:
        others = (self._holders & self._alive) - {self._me}
        return any(self._answered.get(peer, 0) <= asked for peer in others)

    def _acked_since(self, asked: int) -> Stamp:
        others = self._holders - {self._me}
        answered = [peer for peer in others if self._answered.get(peer, 0) > asked]
        needed = min(self._quorum, self._majority()) - (len(others) - len(answered))
        presents = sorted((self._presents[peer] for peer in answered), reverse=True)
        return MAX_STAMP if needed < 1 else self._held_by(needed, presents)

    def _majority(self) -> int:
        return len(self._holders) // 2 + 1

    def _held_by(self, needed: int, others: list[Stamp]) -> Stamp:
        """Return the highest stamp that ``needed`` of these holders and this one hold; 0: too few.

        Args:
            needed: 1 or more.
            others: the presents of other holders, highest first.
        """
        if self._me not in self._holders:
            return others[needed - 1] if len(others) >= needed else 0
        if len(others) + 1 < needed:
            return 0
        own = self._own_present()
        below = max(own, others[needed - 1]) if len(others) >= needed else own
        return below if needed == 1 else min(others[needed - 2], below)

    def present_ms(self) -> int:
        """Return the time that stamps are compared with; they may be ahead by the allowed skew.

        It is the cluster clock's time, or later if a majority of members hold later stamps.
        """
        return self._reference_ms(self.confirmed(), self.time())

    @property
    def is_present_held(self) -> bool:
        """Whether a majority of members hold stamps ahead of the clock, which are the present."""
        return self.present_ms() > self.time()

    def _reference_ms(self, confirmed: Stamp, time: int) -> int:
        held = stamp_milliseconds(confirmed)
        is_ahead = held > time + self._skew_ms
        return held + _MARGIN_MS - self._skew_ms if is_ahead else time

    def latest(self) -> Stamp:
        """Return the highest stamp that is accepted."""
        return self._up_to(self.present_ms())

    def _up_to(self, present_ms: int) -> Stamp:
        return min(MAX_STAMP, stamp_at(present_ms + self._skew_ms) | _LAST_COUNTER)

    def highest_possible(self) -> Stamp:
        """Return the stamp above which every stamp is certainly from the future.

        Members whose present is unknown or out of date may hold any stamp up to the newest one
        that a member is known to hold; if they are a majority, any stamp at all. Unknown clocks may
        be ahead of all known ones.
        """
        return self._highest_held_by(self._majority())

    def highest_acked(self) -> Stamp:
        """Return the stamp above which a stamp is from the future and no write quorum holds it."""
        return self._highest_held_by(min(self._quorum, self._majority()))

    def _highest_held_by(self, needed: int) -> Stamp:
        if not self.knows_majority:
            waits = self._now - self._unknown_since < _MAJORITY_TIMEOUT_MS
            return MAX_STAMP if waits else self.latest()
        needed -= self._other_holders - len(self._fresh_presents)
        if needed < 1:
            return MAX_STAMP
        held = self._held_by(needed, self._fresh_presents)
        return max(self.latest(), self._up_to(self._reference_ms(held, self._latest_time())))

    def _latest_time(self) -> int:
        """Return the latest possible median of all clocks, if a majority is known."""
        return self._now + self._latest_offset_ms

    def ahead_ms(self, *stamps: Stamp) -> int:
        """Return how far (milliseconds) stamps are ahead of the cluster clock; 0: within skew."""
        ahead = max(map(stamp_milliseconds, stamps), default=0) - self.time()
        return ahead if ahead > self._skew_ms else 0
