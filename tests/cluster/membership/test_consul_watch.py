"""Tests of the Consul watcher, against scripted replies of a faulty Consul."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress

import pytest

from dstash.cluster.membership.consul.watch import Watcher
from dstash.errors import MembershipUnreachable
from tests.harness.waiting import wait_until

Answer = tuple[int, Hashable] | MembershipUnreachable


class Script:
    """Returns the given answers in turn; after the last answer it blocks, as Consul does."""

    def __init__(self, *answers: Answer) -> None:
        self.asked: list[int] = []
        self.end = threading.Event()
        self._answers = list(answers)

    def query(self, index: int) -> tuple[int, Hashable]:
        self.asked.append(index)
        if not self._answers:
            self.end.wait()
            raise MembershipUnreachable("broken off")
        answer = self._answers.pop(0)
        if isinstance(answer, MembershipUnreachable):
            raise answer
        return answer


@contextmanager
def watching(script: Script) -> Iterator[Watcher]:
    watcher = Watcher(script.query)
    yield watcher
    watcher.close()
    script.end.set()
    watcher.join()


def all_asked(script: Script, count: int) -> list[int]:
    wait_until(lambda: len(script.asked) >= count, 5, f"{count} queries")
    return script.asked


def test_watch_continues_from_last_index() -> None:
    script = Script((5, "a"), (7, "b"))
    with watching(script) as watcher:
        assert watcher.watch(5)
        assert all_asked(script, 3) == [0, 5, 7]


def test_watch_restarts_when_index_decreases() -> None:
    script = Script((50, "a"), (7, "b"), (8, "b"))
    with watching(script) as watcher:
        assert watcher.watch(5)
        assert all_asked(script, 4) == [0, 50, 0, 8]


def test_watch_restarts_after_an_error() -> None:
    script = Script((50, "a"), MembershipUnreachable("away", status=None), (8, "a"))
    with watching(script) as watcher:
        assert all_asked(after_first(watcher, script), 4) == [0, 50, 0, 8]


def after_first(watcher: Watcher, script: Script) -> Script:
    """Start the watcher and wait until it reports the change or the error."""
    with suppress(MembershipUnreachable):
        watcher.watch(5)
    return script


def test_early_reply_without_change_is_ignored() -> None:
    script = Script((5, "a"), (5, "a"), (6, "a"), (6, "a"))
    with watching(script) as watcher:
        assert watcher.watch(5)
        all_asked(script, 5)
        assert not watcher.watch(0)


def test_concurrent_changes_are_reported_once() -> None:
    script = Script((5, "a"), (6, "b"), (7, "c"))
    with watching(script) as watcher:
        watcher.wake()
        watcher.watch(0)
        all_asked(script, 4)
        watcher.watch(0)
        assert not watcher.watch(0)


def test_error_is_raised_once_and_cleared_by_a_reply() -> None:
    script = Script(MembershipUnreachable("away", status=503))
    with watching(script) as watcher:
        with pytest.raises(MembershipUnreachable, match="away") as caught:
            watcher.watch(5)
        assert caught.value.details == {"status": 503}
        assert not watcher.watch(0)


def test_no_query_before_first_watch_or_after_close() -> None:
    script = Script((5, "a"))
    watcher = Watcher(script.query)
    watcher.close()
    assert not watcher.watch(5)
    watcher.join()
    assert script.asked == []


def test_query_aborted_by_close_is_not_an_error() -> None:
    script = Script((5, "a"))
    with watching(script) as watcher:
        assert watcher.watch(5)
        all_asked(script, 2)
        watcher.close()
        script.end.set()
        watcher.join()
        assert watcher.watch(5) is False
