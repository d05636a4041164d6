"""The meters of a peer."""

from __future__ import annotations

from typing import Any, cast

from dstash.errors import Busy, DiskFull, StaleEpoch
from dstash.peer.admission.requests import Ticket
from dstash.peer.admission.writes import Internal, WaitingWrite
from dstash.peer.commits.commit import Commit
from dstash.peer.commits.rules import Rules
from dstash.peer.core import PeerCore
from dstash.peer.http.metrics import PeerCollector, snake
from dstash.peer.server import PeerServer
from dstash.peer.telemetry.meters import Histogram, Meters, outcome_of
from dstash.wire.messages import Error, Put, Stored
from dstash.wire.shapes import Message


def test_bounds_of_buckets_are_inclusive() -> None:
    histogram = Histogram((1, 2, 4))
    for value in (0.5, 1, 1.5, 4, 5):
        histogram.observe(value)
    assert histogram.cumulative() == [2, 3, 4, 5]
    assert histogram.total == 12


def test_answer_has_one_outcome() -> None:
    answers: list[Message] = [
        Stored([]),
        Stored([[0, 0, b"version"]]),
        Error.of(DiskFull("full")),
        Error(9999, "of a newer version"),
    ]
    assert [outcome_of(answer) for answer in answers] == ["Stored", "Partly", "DiskFull", "Refused"]


def _write(message: Any, correlation: int) -> WaitingWrite:
    return WaitingWrite(Ticket(b"client", correlation), message, None, 100)


def test_commit_counts_every_write_once() -> None:
    put = Put.__new__(Put)  # never decoded
    internal = Internal(cast(Any, None), lambda error: None)
    waiting = [_write(put, 1), _write(put, 2), _write(put, 3), _write(internal, 0)]
    commit = Commit(waiting, cast(Rules, None))
    commit.replies = [
        (Ticket(b"client", 1), Stored([])),
        (Ticket(b"client", 2), Error.of(Busy(""))),
    ]
    commit.done = [(internal, None)]
    meters = Meters()
    commit.sizes = [5]
    meters.committed(commit.stats(0.003, 0.002))
    assert meters.writes == {
        ("Put", "Stored"): 1,
        ("Put", "Busy"): 1,
        ("Put", "Unanswered"): 1,  # the commit failed before
        ("Internal", "Stored"): 1,
    }
    assert meters.commit_requests.total == 4
    assert meters.commit_bytes.total == 400
    assert meters.commit_seconds.total == 0.003
    assert meters.sync_seconds.total == 0.002
    assert (meters.written_keys.count, meters.written_keys.total) == (1, 5)


def test_labels_are_in_snake_case() -> None:
    assert [snake(text) for text in ("ScanKeys", "Put", StaleEpoch.__name__)] == [
        "scan_keys",
        "put",
        "stale_epoch",
    ]


class _Hanging:
    """A server whose event loop does not run."""

    meters = Meters()
    connections = None

    def seconds_since_iteration(self) -> float:
        return 12.5

    def ask(self, question: object, timeout: float) -> None:
        return None


def test_hanging_peer_reports_that_it_hangs() -> None:
    collector = PeerCollector(cast(PeerServer, _Hanging()), cast(PeerCore, None))
    samples = {
        sample.name: sample.value for family in collector.collect() for sample in family.samples
    }
    assert samples["dstash_responsive"] == 0
    assert samples["dstash_loop_quiet_seconds"] == 12.5
    assert "dstash_ready" not in samples
