"""Log lines that a client or a disk can cause at any rate."""

from __future__ import annotations

from structlog.testing import capture_logs

from dstash import events
from dstash.errors import Busy, StaleEpoch, Unauthorised, VersionMismatch, WrongCluster
from dstash.peer.supervision.rate_limit import RateLimit
from dstash.peer.supervision.refusals import Refusals
from dstash.peer.supervision.slow_disk import SlowDisk


def test_rate_limit_admits_a_burst_of_each_kind_per_period() -> None:
    limit = RateLimit(2, 60)
    assert [limit.admits("a", now) for now in (0, 10, 20, 59, 60, 61, 70)] == [
        *(True, True, False, False, True, False, True)
    ]
    assert limit.admits("b", 20)


def test_rate_limit_remembers_a_bounded_number_of_kinds() -> None:
    limit = RateLimit(1, 60)
    assert all(limit.admits(number, 0) for number in range(5000))
    assert not limit.admits(4999, 1)
    assert len(limit._admitted) <= 1000


def test_refused_client_is_named_with_the_reason() -> None:
    refusals = Refusals()
    refusals.address_of = lambda sender: f"10.0.0.1:{sender.decode()}"
    with capture_logs() as logs:
        refusals.note(b"1", "a key", Unauthorised("not allowed"), 0)
        refusals.note(b"2", None, WrongCluster("this is cluster 'a', not 'b'"), 0)
        refusals.note(b"3", None, VersionMismatch("too old"), 0)
        refusals.note(b"3", None, StaleEpoch("routine", topology=b""), 0)
    assert logs[0] == {
        "event": events.CLIENT_REFUSED,
        "log_level": "warning",
        "why": "not allowed",
        "cause": "Unauthorised",
        "address": "10.0.0.1:1",
        "key": "a key",
        "unlogged": 0,
    }
    assert [line["cause"] for line in logs] == ["Unauthorised", "WrongCluster", "VersionMismatch"]


def test_reason_of_a_refusal_is_cut() -> None:
    with capture_logs() as logs:
        Refusals().note(b"1", None, WrongCluster("x" * 10_000_000), 0)
    assert len(logs[0]["why"]) == 300


def test_refusals_are_limited_and_counted() -> None:
    refusals = Refusals()
    with capture_logs() as logs:
        for now in range(1000):
            refusals.note(b"1", None, Busy("too much"), now)
        assert len(logs) == 1
        for number in range(1000):
            refusals.note(b"%d" % number, None, Busy("too much"), 1000)
        assert len(logs) == 5
        refusals.note(b"1", None, Busy("too much"), 70_000)
    assert [line["unlogged"] for line in logs] == [0, 999, 1, 0, 0, 995]


def test_slow_disk_is_logged_once_a_minute_and_when_it_is_over() -> None:
    now = [1000.0]
    disk = SlowDisk(lambda: now[0])
    with capture_logs() as logs:
        for _ in range(100):
            disk.committed(0.9, 0.9)
            disk.watch(0.9)
            now[0] += 1
        assert logs == []
        disk.watch(1.5)  # while it hangs
        for _ in range(59):
            now[0] += 1
            disk.committed(1.5, 1.4)
            disk.watch(0)
        assert len(logs) == 1
        now[0] += 1
        disk.committed(3.0, 2.9)
        now[0] += 29
        disk.watch(0)
        assert len(logs) == 2
        now[0] += 1
        disk.watch(0)
        disk.watch(0)
    assert [line["event"] for line in logs] == [
        *(events.DISK_SLOW, events.DISK_SLOW, events.DISK_NOT_SLOW)
    ]
    assert (logs[0]["commit_s"], logs[0]["log_level"]) == (1.5, "warning")
    assert (logs[1]["commit_s"], logs[1]["synced_s"], logs[1]["commits"]) == (3.0, 2.9, 60)
    assert (logs[2]["commits"], logs[2]["longest_s"], logs[2]["for_s"]) == (60, 3.0, 60)
