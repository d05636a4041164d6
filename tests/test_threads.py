"""Threads that report their end."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

import dstash
from dstash import threads


def reports_of(
    target: Callable[..., object], *args: object, may_end: bool = False
) -> list[tuple[str, str]]:
    """Run a thread to its end and return the reports to a listener."""
    heard: list[tuple[str, str]] = []
    unlisten = threads.listen(lambda name, why: heard.append((name, why)))
    try:
        thread = threads.thread(target, *args, name="t", may_end=lambda: may_end)
        with structlog.testing.capture_logs():
            thread.start()
            thread.join()
    finally:
        unlisten()
    return heard


@pytest.mark.parametrize("may_end", [True, False])
@pytest.mark.parametrize("error", [ValueError("no"), SystemExit("no"), KeyboardInterrupt("no")])
def test_exception_of_thread_is_reported(error: BaseException, may_end: bool) -> None:
    def fail() -> None:
        raise error

    assert reports_of(fail, may_end=may_end) == [("t", f"{type(error).__name__}: no")]


def test_return_of_thread_is_reported_unless_allowed() -> None:
    assert reports_of(lambda: None) == [("t", "it returned")]
    assert reports_of(lambda: None, may_end=True) == []


def test_removed_listener_is_not_called() -> None:
    heard: list[str] = []
    threads.listen(lambda name, why: heard.append(name))()
    reports_of(lambda: None)
    assert heard == []


def test_every_thread_of_a_peer_reports_its_end() -> None:
    folder = Path(dstash.__file__).parent
    files = [
        *folder.glob("peer/**/*.py"),
        *folder.glob("cluster/**/*.py"),
        *folder.glob("wire/**/*.py"),
        *folder.glob("store/**/*.py"),
    ]
    made = [
        f"{file.relative_to(folder)}:{node.lineno}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("threading.Thread", "Thread", "ThreadPoolExecutor")
    ]
    assert made == []
