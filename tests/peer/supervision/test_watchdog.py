"""Reports of the watchdog on threads that end or hang."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from dstash import threads
from dstash.errors import DStashError
from dstash.peer.supervision.complaints import Complaints
from dstash.peer.supervision.watchdog import Watchdog
from tests.harness.waiting import wait_until


@pytest.fixture
def failures() -> list[DStashError]:
    return []


@pytest.fixture
def watchdog(failures: list[DStashError]) -> Iterator[Watchdog]:
    made = Watchdog(failures.append, lambda: None, 60.0)
    yield made
    made.close()


def test_ended_thread_fails_health_and_stops_the_peer(
    watchdog: Watchdog, failures: list[DStashError]
) -> None:
    assert watchdog.problems() == []
    with structlog.testing.capture_logs() as logs:
        thread = threads.thread(lambda: 1 / 0, name="t")
        thread.start()
        thread.join()
    assert watchdog.problems() == ["thread t has ended (ZeroDivisionError: division by zero)"]
    assert "thread t has ended (ZeroDivisionError: division by zero)" in str(failures[0])
    assert [(line["event"], line["thread"]) for line in logs] == [("a thread has ended", "t")]
    assert logs[0]["exc_info"] is True


def test_hanging_thread_fails_health_until_it_continues(
    watchdog: Watchdog, failures: list[DStashError]
) -> None:
    quiet = 3.0
    watchdog.watch("t", lambda: quiet, 10.0)
    assert watchdog.problems() == []
    quiet = 12.3
    assert watchdog.problems() == ["thread t has hung for 12 s"]
    with structlog.testing.capture_logs() as logs:
        watchdog.start()
        wait_until(lambda: logs, 20, "it is logged")
        quiet = 0.0
        wait_until(lambda: len(logs) > 1, 20, "its end is logged")
    assert [line["event"] for line in logs] == ["a thread hangs", "a thread that hung continues"]
    assert watchdog.problems() == []
    assert failures == []


class TestComplaints:
    def fail(self, complaints: Complaints, error: Exception) -> None:
        try:
            raise error
        except Exception as caught:
            complaints.log(caught)

    def test_complaints_are_logged_once_per_minute_and_kind_with_count(self) -> None:
        now = 100.0
        complaints = Complaints("it failed", lambda: now)
        with structlog.testing.capture_logs() as logs:
            for number in range(50):
                self.fail(complaints, ValueError(number))
                self.fail(complaints, DStashError("other"))
            now += 61
            self.fail(complaints, ValueError("again"))
        assert [(line["error"], line["times"]) for line in logs] == [
            ("0", 1),
            ("other", 1),
            ("again", 50),
        ]
        assert [line["exc_info"] is None for line in logs] == [False, True, False]
