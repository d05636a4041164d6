"""What a peer knows of its partitions: promises about the past, and clocks that are set back."""

from __future__ import annotations

from dstash.cluster.holdings import BUSY_MS, CATCHING_UP_MS, PROMISE_MS, Holdings
from dstash.store.twin import TwinStore

NOW = 1_700_000_000_000


def test_a_promise_ends_and_a_clock_set_back_does_not_bring_it_to_life() -> None:
    holdings = Holdings(TwinStore())
    holdings.promise(7, 100, NOW)
    assert holdings.promises(NOW) == {7: 100}
    assert not holdings.has_promised(7, 99, NOW)
    assert holdings.promises(NOW + PROMISE_MS) == {}
    # From here on repairs came in: what was told before is no longer what is here.
    assert not holdings.has_promised(7, 100, NOW)
    assert holdings.promises(NOW) == {}


def test_a_clock_set_back_does_not_prolong_a_promise() -> None:
    holdings = Holdings(TwinStore())
    holdings.promise(7, 100, NOW + 3_600_000)
    assert holdings.has_promised(7, 100, NOW)
    assert not holdings.has_promised(7, 100, NOW + PROMISE_MS)


def test_while_it_is_brought_what_it_missed_every_partition_is_busy_but_not_for_ever() -> None:
    holdings = Holdings(TwinStore())
    assert not holdings.is_busy(7, NOW)
    holdings.pushed(NOW)
    assert holdings.is_busy(7, NOW + BUSY_MS - 1)
    assert not holdings.is_busy(7, NOW + BUSY_MS)
    assert not holdings.is_busy(7, NOW - 1), "the clock was set back"
    pushes = range(NOW + BUSY_MS, NOW + BUSY_MS + CATCHING_UP_MS + 1, BUSY_MS // 2)
    for moment in pushes:
        holdings.pushed(moment)
        assert holdings.is_busy(7, moment) is (moment < NOW + BUSY_MS + CATCHING_UP_MS)
    quiet = pushes[-1] + BUSY_MS
    holdings.pushed(quiet)
    assert holdings.is_busy(7, quiet), "another one begins"
