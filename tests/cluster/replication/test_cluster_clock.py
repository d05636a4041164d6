"""Tests of the cluster clock: the median of clocks and the majority's present."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstash.cluster.replication.cluster_clock import ClusterClock
from dstash.version import MAX_STAMP, pack, stamp_at, stamp_milliseconds

NOW = 1_700_000_000_000
SKEW = 500
HOUR = 3_600_000
VERSION = pack(1, b"abcd")


def clock_of(
    members: str = "abc", alive: str | None = None, present: int = 0, quorum: int = 2
) -> ClusterClock:
    clock = ClusterClock("a", SKEW, lambda: present, NOW)
    live = frozenset(members if alive is None else alive)
    clock.install(set(members), set(members), live, quorum)
    return clock


def read(clock: ClusterClock, **offsets: int) -> None:
    """Read the clocks of peers that answer at once."""
    for number, (peer, offset) in enumerate(offsets.items()):
        clock.sent(number)
        clock.answered(peer, number, clock.time() + clock.offset_ms + offset)


@pytest.mark.parametrize(
    ("offsets", "wrong_by"),
    [
        ({}, 0),
        ({"b": -HOUR}, HOUR),
        ({"b": -HOUR, "c": -HOUR}, HOUR),
        ({"b": HOUR, "c": 0}, 0),
        ({"b": HOUR, "c": HOUR}, -HOUR),
        ({"b": -HOUR, "c": HOUR}, 0),
    ],
)
def test_time_is_the_median_of_the_clocks_that_are_known(
    offsets: dict[str, int], wrong_by: int
) -> None:
    clock = clock_of()
    read(clock, **offsets)
    assert clock.offset_ms == wrong_by
    assert clock.time() == NOW - wrong_by
    assert clock.is_wrong is bool(wrong_by)


def test_own_clock_counts_alone_until_a_majority_is_known() -> None:
    clock = clock_of("abcde")
    read(clock, b=-HOUR)
    assert not clock.knows_majority
    assert clock.time() == NOW
    read(clock, c=-HOUR)
    assert clock.knows_majority
    assert clock.time() == NOW - HOUR


def test_slow_answers_narrow_the_offset_and_quick_ones_set_it() -> None:
    clock = clock_of("ab")
    clock.sent(1)
    clock.advance(NOW + 400)
    clock.answered("b", 1, NOW - 1000)  # the reading is between 1,000 and 1,400 ms behind
    assert clock.offset_ms == 1400
    clock.sent(2)
    clock.answered("b", 2, NOW + 400 - 1200)
    assert clock.offset_ms == 1200


def test_unexpected_replies_and_replies_of_strangers_are_ignored() -> None:
    clock = clock_of("ab")
    clock.answered("b", 1, NOW - HOUR)
    clock.sent(2)
    clock.answered("z", 2, NOW - HOUR)
    clock.sent(3)
    clock.unanswered(3)
    clock.answered("b", 3, NOW - HOUR)
    clock.sent(4)
    clock.forget_unanswered([])
    clock.answered("b", 4, NOW - HOUR)
    assert not clock.knows_majority


def test_backward_clock_step_keeps_cluster_time() -> None:
    clock = clock_of()
    read(clock, b=0, c=0)
    clock.is_due = False
    clock.advance(NOW - HOUR)
    assert clock.time() == NOW
    assert clock.is_due


def test_forward_clock_step_is_distrusted_until_clocks_are_read_again() -> None:
    clock = clock_of()
    read(clock, b=0, c=0)
    clock.is_due = False
    clock.sent(7)
    clock.advance(NOW + HOUR)
    assert not clock.knows_majority
    assert clock.is_due
    clock.answered("b", 7, NOW)  # sent before the step, so it is ignored
    assert not clock.knows_majority
    read(clock, b=-HOUR)
    assert clock.time() == NOW


def test_clocks_of_removed_members_are_dropped() -> None:
    clock = clock_of()
    read(clock, b=-HOUR, c=-HOUR)
    clock.note_present("b", stamp_at(NOW + HOUR), clock.asks_present())
    clock.install({"a", "d"}, {"a", "d"}, frozenset("ad"), 2)
    assert not clock.knows_majority
    assert clock.confirmed() == 0


class TestHighestPossible:
    """The upper bound: a higher stamp is certainly from the future."""

    def test_started_peer_has_no_upper_bound_of_time(self) -> None:
        clock = clock_of(present=stamp_at(NOW + HOUR))
        assert clock.highest_possible() == MAX_STAMP
        read(clock, b=0, c=0)
        assert clock.highest_possible() == MAX_STAMP, "the others may hold anything"
        clock.note_present("b", stamp_at(NOW), clock.asks_present())
        assert stamp_milliseconds(clock.highest_possible()) == NOW + HOUR + 10, "c may hold as much"
        clock.note_present("c", stamp_at(NOW), clock.asks_present())
        assert clock.highest_possible() == clock.latest()

    def test_unread_clock_may_be_ahead(self) -> None:
        clock = clock_of(present=stamp_at(NOW))
        read(clock, b=3000)
        for peer in "bc":
            clock.note_present(peer, stamp_at(NOW), clock.asks_present())
        assert stamp_milliseconds(clock.latest()) == NOW + SKEW
        assert stamp_milliseconds(clock.highest_possible()) == NOW + 3000 + SKEW
        read(clock, c=0)
        assert clock.highest_possible() == clock.latest()

    def test_peer_without_a_majority_uses_its_own_clock_after_a_while(self) -> None:
        clock = clock_of()
        assert clock.highest_possible() == MAX_STAMP
        for turn in range(6):
            clock.advance(NOW + 1000 * turn)
        assert clock.highest_possible() == clock.latest()

    @pytest.mark.parametrize("set_right", ["own", "others"])
    def test_only_presents_read_after_a_clock_step_are_certain(self, set_right: str) -> None:
        clock = clock_of(present=stamp_at(NOW))
        ahead = 0 if set_right == "own" else HOUR
        read(clock, b=ahead, c=ahead)
        for peer in "bc":
            clock.note_present(peer, stamp_at(NOW), clock.asks_present())
        before = clock.asks_present()
        assert clock.highest_possible() == clock.latest()
        if set_right == "own":
            clock.advance(NOW - HOUR)
        else:
            read(clock, b=0, c=0)
        assert clock.is_due
        assert clock.highest_possible() == MAX_STAMP
        for peer in "bc":
            clock.note_present(peer, stamp_at(NOW), before)  # an answer from before the step
        assert clock.highest_possible() == MAX_STAMP
        for peer in "bc":
            clock.note_present(peer, stamp_at(NOW), clock.asks_present())
        assert clock.highest_possible() == clock.latest()


class TestConfirmed:
    """The stamp that a majority holds is the present, regardless of clocks."""

    def test_present_is_the_stamp_held_by_a_majority(self) -> None:
        clock = clock_of(present=stamp_at(NOW + 3 * HOUR))
        read(clock, b=0, c=0)
        clock.note_present("b", stamp_at(NOW + HOUR), clock.asks_present())
        clock.note_present("c", stamp_at(NOW - HOUR), clock.asks_present())
        assert clock.confirmed() == stamp_at(NOW + HOUR)
        assert NOW + HOUR < stamp_milliseconds(clock.latest()) <= NOW + HOUR + 20
        assert stamp_milliseconds(clock.latest()) == clock.present_ms() + SKEW

    def test_present_ignores_a_stamp_held_by_a_minority(self) -> None:
        clock = clock_of(present=stamp_at(NOW + HOUR))
        read(clock, b=0, c=0)
        clock.note_present("b", stamp_at(NOW), clock.asks_present())
        clock.note_present("c", stamp_at(NOW), clock.asks_present())
        assert clock.present_ms() == NOW
        assert stamp_milliseconds(clock.latest()) == NOW + SKEW

    def test_present_is_unknown_without_a_majority(self) -> None:
        clock = clock_of(present=stamp_at(NOW + HOUR))
        clock.note_present("b", stamp_at(NOW + HOUR), clock.asks_present())
        assert clock.confirmed() == 0

    def test_silent_member_counts_as_holder_only_while_down(self) -> None:
        clock = clock_of(alive="ab")
        read(clock, b=0)
        clock.note_present("b", stamp_at(NOW + HOUR), clock.asks_present())
        assert clock.confirmed() == stamp_at(NOW + HOUR)
        clock.install(set("abc"), set("abc"), frozenset("abc"), 2)
        assert clock.confirmed() == 0

    def test_present_does_not_run_ahead_of_time(self) -> None:
        """A client that always uses the latest allowed stamp must not move the present ahead."""
        present = stamp_at(NOW)
        clock = ClusterClock("a", SKEW, lambda: present, NOW)
        for turn in range(1, 200):
            clock.advance(NOW + 50 * turn)  # the highest rate of clock readings
            present = max(present, clock.latest())
        assert stamp_milliseconds(present) <= NOW + 50 * 199 + SKEW


def test_ahead_returns_clocks_beyond_the_skew() -> None:
    clock = clock_of()
    assert clock.ahead_ms() == 0
    assert clock.ahead_ms(stamp_at(NOW + SKEW)) == 0
    assert clock.ahead_ms(stamp_at(NOW), stamp_at(NOW + HOUR)) == HOUR


def test_stamp_held_by_write_quorum_is_kept_without_majority() -> None:
    clock = clock_of("abcde", present=stamp_at(NOW + HOUR))
    read(clock, b=0, c=0, d=0, e=0)
    for peer in "bcde":
        clock.note_present(peer, stamp_at(NOW), clock.asks_present())
    assert clock.highest_acked() == clock.latest()
    clock.note_present("e", stamp_at(NOW + HOUR), clock.asks_present())
    assert clock.confirmed() == stamp_at(NOW)
    assert clock.highest_possible() == clock.latest(), "it is from the future"
    assert clock.highest_acked() >= stamp_at(NOW + HOUR), "two replicas of three may have acked it"


def test_contested_version_has_the_stamp_that_a_write_quorum_may_hold() -> None:
    clock = clock_of("abc", present=stamp_at(NOW + HOUR))
    for peer in "bc":
        clock.note_present(peer, stamp_at(NOW - 9), clock.asks_present())
    early = clock.asks_present()
    assert clock.acked_by_contested() == {}
    clock.is_due = False
    clock.contest(VERSION)
    assert clock.is_due
    assert clock.acked_by_contested() == {}, "the answers are expected"
    clock.advance(NOW + 1000)
    clock.advance(NOW + 2000)
    assert clock.acked_by_contested() == {VERSION: MAX_STAMP}, "they may have acked writes since"
    clock.note_present("b", stamp_at(NOW - 8), early)
    assert clock.acked_by_contested() == {VERSION: MAX_STAMP}, "it was asked before"
    clock.note_present("b", stamp_at(NOW), clock.asks_present())
    assert clock.acked_by_contested() == {VERSION: stamp_at(NOW + HOUR)}, "the third may hold it"
    clock.note_present("c", stamp_at(NOW - 5), clock.asks_present())
    assert clock.acked_by_contested() == {VERSION: stamp_at(NOW)}
    clock.contest(VERSION)
    assert clock.acked_by_contested() == {VERSION: stamp_at(NOW)}, "it was contested before"


def test_answers_of_members_that_are_down_are_not_expected() -> None:
    clock = clock_of("abc", alive="ab", present=stamp_at(NOW + HOUR))
    clock.contest(VERSION)
    clock.note_present("b", stamp_at(NOW), clock.asks_present())
    assert clock.acked_by_contested() == {VERSION: stamp_at(NOW + HOUR)}


def test_contested_versions_are_forgotten() -> None:
    clock = clock_of("abc", alive="a")
    clock.contest(VERSION)
    others = [pack(stamp, b"othr") for stamp in range(16_384)]
    for version in others:
        clock.contest(version)
    assert clock.acked_by_contested().keys() == set(others), "the oldest makes room"
    for second in range(1, 61):
        clock.advance(NOW + 1000 * second)
    assert clock.acked_by_contested() == {}


def test_removed_member_that_moves_the_median_begins_an_era() -> None:
    clock = clock_of("abcde")
    read(clock, b=0, c=HOUR, d=HOUR, e=HOUR)
    era = clock.era
    clock.install(set("abcd"), set("abcd"), frozenset("abcd"), 2)
    assert clock.time() == NOW
    assert clock.era > era, "what was read of other members may be out of date"


@given(
    holders=st.sets(st.sampled_from("abcde"), min_size=1),
    alive=st.sets(st.sampled_from("abcde")),
    offsets=st.dictionaries(st.sampled_from("bcde"), st.integers(-HOUR, HOUR)),
    presents=st.dictionaries(st.sampled_from("bcde"), st.integers(1, 9)),
    own=st.integers(0, 9),
)
def test_confirmed_is_the_highest_stamp_that_enough_holders_have(
    holders: set[str],
    alive: set[str],
    offsets: dict[str, int],
    presents: dict[str, int],
    own: int,
) -> None:
    """Compare with the definition, which looks at each member."""
    clock = ClusterClock("a", SKEW, lambda: own, NOW)
    clock.install(set("abcde"), holders, frozenset(alive), 2)
    read(clock, **offsets)
    for peer, present in presents.items():
        clock.note_present(peer, present, clock.asks_present())
    silent = {peer for peer in holders - presents.keys() - {"a"} if peer not in alive}
    needed = max(1, len(holders) // 2 + 1 - len(silent))
    stamps = presents | {"a": own}
    held = [
        stamp
        for stamp in stamps.values()
        if sum(stamps.get(peer, -1) >= stamp for peer in holders) >= needed
    ]
    expected = max(held, default=0) if clock.knows_majority else 0
    assert clock.confirmed() == expected


@pytest.mark.parametrize("moved_by", ["clocks", "members"])
def test_median_that_moves_in_small_steps_begins_an_era(moved_by: str) -> None:
    clock = clock_of("abcde")
    read(clock, b=0, c=400, d=400, e=400)
    for peer in "bcde":
        clock.note_present(peer, stamp_at(NOW), clock.asks_present())
    acked = clock.latest()  # by a client whose clock is ahead, after presents were read
    era = clock.era
    read(clock, c=100, d=100, e=100)
    assert clock.time() == NOW + 100
    if moved_by == "clocks":
        read(clock, b=-200, c=-200, d=-200, e=-200)
    else:
        read(clock, b=-200)
        clock.install(set("abf"), set("abf"), frozenset("abf"), 2)
    assert clock.time() == NOW - 200
    assert acked > clock.latest()
    assert clock.era > era
    assert clock.highest_acked() > acked, "it may be that of an acked write"


def test_small_moves_of_the_median_begin_no_era() -> None:
    clock = clock_of()
    read(clock, b=0, c=0)
    era = clock.era
    for offset in (200, -200, 200, 0, 250, -250):
        read(clock, b=offset, c=offset)
    assert clock.era == era


@pytest.mark.parametrize("step", [600_000, HOUR, 10 * 365 * 24 * HOUR])
def test_requests_from_before_a_long_step_back_are_recognised(step: int) -> None:
    clock = clock_of()
    sent_at = NOW + 5_000
    clock.advance(sent_at)  # the last time before the step
    assert not clock.is_from_before_step(sent_at + 20_000)
    after = sent_at - step
    clock.advance(after)
    assert clock.is_from_before_step(sent_at + 1)
    assert clock.is_from_before_step(sent_at + 20_000)
    assert not clock.is_from_before_step(after + 20_000), "it was sent after the step"
    clock.advance(after + 119_999)
    assert clock.is_from_before_step(sent_at + 1)
    clock.advance(after + 120_000)
    assert not clock.is_from_before_step(sent_at + 1), "none is in transit for so long"


def test_short_steps_and_steps_forward_change_no_deadline() -> None:
    clock = clock_of()
    for step in (-599_999, HOUR, 0, -1):
        now = clock.time() + clock.offset_ms + step
        clock.advance(now)
        assert not clock.is_from_before_step(now + 10 * HOUR)
