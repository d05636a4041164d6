"""Fixtures for all tests, built on ``tests/harness``."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.harness.consul import ConsulAgent

# No deadline per example and no check of speed: a busy machine is not a bug.
settings.register_profile(
    "dstash",
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("dstash")

# A shell starts background jobs with SIGINT ignored, and nohup its command with SIGHUP ignored.
# All processes of the tests would inherit that; they do not inherit a handler that does nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long tests first, an equal share for each worker: at the end they would run alone."""
    left = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = [item for item in items if item.get_closest_marker("long")]
    short = [item for item in items if not item.get_closest_marker("long")]
    items.clear()
    while left:  # xdist gives each worker a part of the list, about as long as those of the others
        share = (len(long) + len(short)) // left
        first, long = long[: len(long) // left], long[len(long) // left :]
        rest = max(0, share - len(first))
        items += [*first, *short[:rest]]
        short = short[rest:]
        left -= 1


@pytest.fixture(scope="session")
def consul_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulAgent]:
    """A real Consul agent for all tests that do not disturb it: use a separate cluster name.

    Tests fail without Consul; they are not skipped.
    """
    agent = ConsulAgent(Path(tmp_path_factory.mktemp("consul")))
    agent.start()
    try:
        agent.wait_ready()
        yield agent
    finally:
        agent.stop()
