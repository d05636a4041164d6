"""What a peer knows of its partitions: promises about the past, and clocks that are set back."""

from __future__ import annotations

from dstash.cluster.holdings import PROMISE_MS, Holdings
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
