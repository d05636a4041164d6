"""The notes of a peer about traced requests."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from dstash.peer.admission.inbox import Inbox
from dstash.peer.telemetry import spans
from dstash.peer.telemetry.spans import SpanWriter
from dstash.peer.telemetry.tracing import Notes, Tracer
from dstash.wire import codec
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Lookup, Put, Scan, StatusRequest, Stored
from dstash.wire.replication import CopyRequest, Hint
from dstash.wire.shapes import Frame, Message
from tests.peer.test_core import EPOCH, EVERYWHERE, Peer, keys, put, topology
from tests.wire.examples import TRACE


class Traced(Peer):
    """A core with notes about its requests."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(topology(), **settings)
        self.noted: list[Notes] = []
        self.core.tracer = Tracer(self.noted.append)

    def handle(self, message: Message, trace: str = TRACE, **surroundings: int) -> list[Notes]:
        """Handle a request and return the notes about it."""
        self.noted.clear()
        given = {"epoch": EPOCH, "moment": 0} | surroundings
        envelope = Envelope(7, given["epoch"], given["moment"], message, trace=trace)
        self.core.receive(b"client", encode(envelope), self.now)
        self.iterate()
        return list(self.noted)


@pytest.fixture
def peer() -> Traced:
    return Traced()


def test_write_is_noted_from_arrival_to_ack(peer: Traced) -> None:
    [notes] = peer.handle(put(b"k", b"l"))
    assert (notes.kind, notes.index, notes.keys, notes.level) == ("Put", "i", 2, "")
    assert (notes.trace, notes.outcome, notes.code) == (TRACE, "Stored", 0)
    assert 0 < notes.came <= notes.queued <= notes.answered_at


def test_commit_is_noted_in_each_write_of_its_group(peer: Traced) -> None:
    for number in range(3):
        trace = TRACE if number else ""
        envelope = Envelope(number, EPOCH, 0, put(b"%d" % number), trace=trace)
        peer.core.receive(b"client", encode(envelope), peer.now)
    commit = peer.core.next_commit(peer.now)
    assert commit is not None
    commit.run(peer.store)
    commit.note(took=0.5, sync=0.2)
    peer.core.committed(commit, peer.now)
    assert [notes.group for notes in peer.noted] == [3, 3]
    for notes in peer.noted:
        assert notes.synced - notes.merged == 200_000_000
        assert notes.synced - notes.taken == 500_000_000


@pytest.mark.parametrize(
    ("message", "kind", "level", "number"),
    [
        (Lookup("i", 1, keys(b"k")), "Lookup", "one", 1),
        (Lookup("i", 3, keys(b"k", b"l")), "Lookup", "quorum", 2),
        (Scan("i", b"", EVERYWHERE, b"", 10, 10**6), "Scan", "", 0),
        (StatusRequest(), "StatusRequest", "", 0),
        (CopyRequest(EVERYWHERE, b""), "CopyRequest", "", 0),  # answered by a task, later
    ],
    ids=lambda value: type(value).__name__,
)
def test_reads_and_peer_queries_are_noted(
    peer: Traced, message: Message, kind: str, level: str, number: int
) -> None:
    [notes] = peer.handle(message)
    assert (notes.kind, notes.level, notes.keys) == (kind, level, number)
    assert (notes.outcome, notes.queued) == ("Answered", 0)


def test_refused_request_is_noted_with_reason(peer: Traced) -> None:
    [notes] = peer.handle(put(b"k"), epoch=EPOCH - 1)
    assert (notes.outcome, notes.code) == ("StaleEpoch", 21)
    [notes] = peer.handle(put(b"k", at=peer.now + 10**6))  # during its commit
    assert (notes.outcome, notes.code) == ("ClockSkew", 27)
    [notes] = peer.handle(put(b"k", value=b"\x91"))
    assert (notes.outcome, notes.code) == ("Partly", 0)
    [notes] = peer.handle(put(b"k"), moment=peer.now - 1)
    assert (notes.outcome, notes.code) == ("Late", 0)


def test_request_of_future_epoch_is_noted_when_it_expires(peer: Traced) -> None:
    assert peer.handle(put(b"k"), epoch=EPOCH + 1) == []
    peer.now += 5000
    peer.iterate()
    assert [notes.outcome for notes in peer.noted] == ["NotReady"]


def test_request_without_answer_is_not_noted(peer: Traced) -> None:
    assert peer.handle(Hint("i", "b", keys(b"k"))) == []


@pytest.mark.parametrize("trace", ["", "00-" + "0" * 52, TRACE[:-1], "x" * 55])
def test_untraced_request_is_handled_and_not_noted(peer: Traced, trace: str) -> None:
    assert peer.handle(put(b"k"), trace) == []
    assert peer.handle(Lookup("i", 1, keys(b"k")), trace) == []


def test_peer_without_tracing_handles_traced_request() -> None:
    plain = Peer(topology())
    envelope = Envelope(7, EPOCH, 0, Lookup("i", 1, keys(b"k")), trace=TRACE)
    [reply] = plain.core.receive(b"client", encode(envelope), plain.now)
    bare = plain.core.receive(b"client", encode(envelope._replace(trace="")), plain.now)
    assert [reply] == bare
    assert decode(reply.frames).trace == ""


def test_notes_limit_the_size_of_names(peer: Traced) -> None:
    [notes] = peer.handle(Lookup("i" * 100_000, 1, keys(b"k")))
    assert (notes.outcome, notes.index) == ("LimitError", "i" * 64)
    [notes] = peer.handle(Put("i", bytes(3), 0, Frame(b"\xdd\xff\xff\xff\xff"), Frame(b"")))
    assert (notes.outcome, notes.keys) == ("ProtocolError", 2**32 - 1)


@pytest.mark.parametrize("number", [0, 1, 15, 16, 65_535, 65_536])
def test_array_length_is_read_from_the_header(number: int) -> None:
    assert codec.array_length(codec.array_header(number)) == number
    for other in (b"", b"\xc0", b"\xdc", b"text", b"\xdd\x00"):
        assert codec.array_length(other) == 0


def test_span_writer_drops_notes_when_overloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "_MAX_WAITING", 2)
    monkeypatch.setattr(spans, "_CLOSE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(SpanWriter, "_write_all", lambda self: None)  # it is too slow
    writer = SpanWriter("http://127.0.0.1:1", "c", "a")
    notes = Notes(Envelope(7, EPOCH, 0, put(b"k"), trace=TRACE), 1, writer.take)
    with capture_logs() as logs:
        for _ in range(5):
            notes.answered(Stored([]))
        writer.close()
    assert [(line["event"], line["why"]) for line in logs] == [
        ("traces get lost", "more requests are traced than spans can be made of")
    ]


def test_inbox_reports_arrival_time_of_message() -> None:
    inbox: Inbox[str] = Inbox(1000)
    inbox.put(b"a", "first", 10, now=1.0)
    inbox.put(b"a", "second", 10, now=1.02)
    assert (inbox.take(1.05), inbox.came) == ("first", 1.0)
    assert (inbox.take(1.05), inbox.came) == ("second", 1.02)
    for number in range(4):  # the oldest are rejected; the taken message counts
        inbox.put(b"a", f"late{number}", 10, now=2.0 + number / 10)
    inbox.take(2.35)
    inbox.put(b"a", "newest", 10, now=2.7)
    assert (inbox.take(2.75), inbox.came) == ("newest", 2.7)
    assert inbox.surplus()
