"""The check of all connections: when it asks the kernel for their counters."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from dstash.limits import MIB
from dstash.wire.connections.connection import Connection
from dstash.wire.connections.connections import Connections, Limits
from dstash.wire.connections.memory import Memory


class Samples:
    """Connections of which one client is connected, and how often it was sampled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.client = socket.create_connection(listener.getsockname())
        self.served, _ = listener.accept()
        listener.close()
        self.connections = Connections(Limits.of(10, 64 * MIB), curve=False)
        self.connections.introduce(b"\0id", self.served.fileno(), None)
        self.count = 0
        self.memory = 100 * MIB
        sample = Connection.sample

        def counted(link: Connection) -> bool:
            self.count += 1
            return sample(link)

        monkeypatch.setattr(Connection, "sample", counted)
        monkeypatch.setattr(Memory, "private", lambda _: self.memory)
        self.now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def in_check(self) -> int:
        """Return how often one check samples connections."""
        before = self.count
        self.connections.check()
        return self.count - before

    def close(self) -> None:
        self.connections.close()
        self.client.close()
        self.served.close()


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> Iterator[Samples]:
    samples = Samples(monkeypatch)
    yield samples
    samples.close()


def test_check_samples_a_quiet_connection_once(samples: Samples) -> None:
    assert [samples.in_check() for _ in range(3)] == [1, 0, 0]


def test_skipped_check_counts_as_time_in_which_a_client_had_nothing_to_read(
    samples: Samples,
) -> None:
    samples.in_check()
    samples.now += 0.5
    assert samples.in_check() == 0
    [connection] = samples.connections._by_fd.values()
    assert connection.read_at == samples.now


def test_check_samples_again_after_a_message(samples: Samples) -> None:
    samples.in_check()
    samples.connections.took(b"\0id", [b"request"])
    assert samples.in_check() == 1
    samples.connections.gives(b"\0id", [b"answer"])
    assert samples.in_check() == 1
    assert samples.in_check() == 0


def test_check_samples_again_when_memory_grows(samples: Samples) -> None:
    samples.in_check()
    samples.memory += MIB
    assert samples.in_check() == 1


def test_check_samples_again_after_a_second(samples: Samples) -> None:
    samples.in_check()
    samples.now += 1.1
    assert samples.in_check() == 1


def test_check_samples_while_answers_are_unread(samples: Samples) -> None:
    samples.connections.gives(b"\0id", [bytes(MIB)])
    assert [samples.in_check() for _ in range(3)] == [1, 1, 1]


def test_check_samples_until_a_cut_connection_is_closed(samples: Samples) -> None:
    samples.in_check()
    samples.connections.send_away(b"\0id", "the test")
    assert [samples.in_check() for _ in range(2)] == [1, 1]
    samples.served.close()
    samples.in_check()
    assert len(samples.connections) == 0


def test_connections_are_calm_once_little_has_moved_for_some_seconds(samples: Samples) -> None:
    def is_calm_after(seconds: float) -> bool:
        for _ in range(round(seconds / 0.5)):
            samples.connections.took(b"\0id", [bytes(1000)])
            samples.now += 0.5
            samples.connections.check()
        return samples.connections.is_calm

    assert not is_calm_after(5)
    assert is_calm_after(1)
    samples.connections.took(b"\0id", [bytes(MIB)])
    samples.connections.check()
    assert not samples.connections.is_calm
    assert not is_calm_after(5)
    assert is_calm_after(1)
    samples.memory += 2 * MIB
    samples.connections.check()
    assert not samples.connections.is_calm, "a message without end"
