"""Workers: all end after an interrupt or a failure."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import _base as futures
from typing import Any

import pytest

from dstash.backup.workers import Stopped, Workers


def _interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_interrupt_while_locks_are_held_stops_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interrupt arrives when the locks of all futures are held, before ``with`` is entered."""
    locks: Any = futures._AcquireFutures  # type: ignore[attr-defined]  # nothing public has them
    take = locks.__enter__
    ended: list[int] = []

    def take_and_interrupt(these: Any) -> None:
        take(these)
        if len(ended) == 4:
            _interrupt()

    def work(item: int) -> None:
        workers.check()
        ended.append(item)
        if len(ended) > 3:
            workers.pause(30)

    monkeypatch.setattr(locks, "__enter__", take_and_interrupt)
    workers = Workers(1, lambda: None)
    with pytest.raises(KeyboardInterrupt):
        workers.run(work, range(50))
    assert ended == [0, 1, 2, 3]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupt_after_last_item_is_raised() -> None:
    with pytest.raises(KeyboardInterrupt):
        Workers(1, _interrupt).run(lambda item: item, [1])


def test_second_interrupt_stops_without_waiting() -> None:
    def press_twice() -> None:
        _interrupt()
        _interrupt()
        pytest.fail("it continued")

    workers = Workers(1, press_twice)
    with pytest.raises(KeyboardInterrupt):
        workers.run(lambda _: workers.pause(30), [1])


def test_workers_run_from_any_thread() -> None:
    results: list[list[int]] = []
    thread = threading.Thread(
        target=lambda: results.append(Workers(2, lambda: None).run(lambda item: item, [1, 2]))
    )
    thread.start()
    thread.join()
    assert sorted(results[0]) == [1, 2]


def test_first_failure_stops_other_workers() -> None:
    workers = Workers(2, lambda: None)

    def work(item: int) -> None:
        if item:
            raise ValueError(item)
        while True:
            workers.check()
            workers.pause(0.01)

    with pytest.raises(ValueError, match="1") as caught:
        workers.run(work, [0, 1])
    assert not isinstance(caught.value, Stopped)
