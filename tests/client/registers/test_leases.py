"""Leases: how long a holder may rely on a register with a time to live."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest

from dstash.client.registers.leases import Lease, check_lease_ttl, check_seconds
from dstash.errors import LimitError, LockLost


@pytest.fixture
def lease() -> Lease:
    made = Lease("lock 'job'", 30)
    made.begin(100)
    return made


def test_lease_counts_from_before_the_request(lease: Lease) -> None:
    assert lease.left(100) == 30
    assert lease.left(129) == 1
    lease.check(129.9)
    with pytest.raises(LockLost, match="lock 'job' is not held any more: it could not be renewed"):
        lease.check(130)


def test_lease_is_renewed_when_a_third_of_it_has_passed(lease: Lease) -> None:
    assert lease.due == 110
    lease.begin(110)
    assert (lease.due, lease.end) == (120, 140)


def test_failed_renewal_is_tried_again_within_the_lease(lease: Lease) -> None:
    lease.retry(110)
    assert 110 < lease.due < 115
    assert lease.end == 130


def test_lost_lease_stays_lost(lease: Lease) -> None:
    lease.lose("it was deleted")
    lease.lose("another reason")
    lease.begin(101)
    assert lease.left(101) == 0
    with pytest.raises(LockLost, match="it was deleted"):
        lease.check(101)


def test_lease_is_not_that_of_a_forked_child(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    child = os.getpid() + 1
    with monkeypatch.context() as forked:
        forked.setattr(os, "getpid", lambda: child)
        assert lease.left(100) == 0
        with pytest.raises(LockLost, match="lock 'job' is held by the parent process"):
            lease.check(100)
    lease.check(100)


@pytest.mark.parametrize("value", ["5", True, 0, -1, float("nan"), float("inf"), None])
def test_bad_number_of_seconds_is_named(value: object) -> None:
    with pytest.raises(LimitError, match=r"ttl is .*; allowed is a number of seconds from 0\.5"):
        check_seconds("ttl", value)


def test_time_to_live_of_a_lock_may_be_a_timedelta() -> None:
    assert check_lease_ttl(timedelta(minutes=1)) == check_lease_ttl(60) == 60.0
    with pytest.raises(LimitError, match=r"ttl is 0\.1; allowed is a number of seconds from 0\.5"):
        check_lease_ttl(timedelta(milliseconds=100))
