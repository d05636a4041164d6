"""Detection of processes and threads that a test leaves behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.waiting import PATIENCE, wait_until


def children() -> set[str]:
    """Return the pids of child processes that were not waited for."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {pid for task in tasks for pid in task.read_text().split()}


def working_threads() -> set[threading.Thread]:
    """Return the threads that would block the end of this process."""
    return {thread for thread in threading.enumerate() if not thread.daemon}


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail a test whose processes or threads outlive it."""
    processes, threads = children(), working_threads()
    yield
    wait_until(lambda: children() <= processes, PATIENCE, "the test's processes have ended")
    wait_until(lambda: working_threads() <= threads, PATIENCE, "the test's threads have ended")
