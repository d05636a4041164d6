"""Rejected requests: which are counted and logged, and which get a reply."""

from __future__ import annotations

from collections import Counter

import pytest
from structlog.testing import capture_logs

from dstash import events
from dstash.errors import Busy, DeadlinePassed, ProtocolError, StaleEpoch
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.requests import Reply, Ticket
from dstash.peer.dispatch.rejections import Rejections
from dstash.peer.dispatch.replies import ReplyEncoder
from dstash.peer.supervision.refusals import Refusals
from dstash.peer.telemetry.tracing import Notes
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Error, Ping
from dstash.wire.replication import Hint
from dstash.wire.shapes import Frame
from tests.peer.parts import NOW, request


class Rejecting:
    """The rejections of a peer, and what it counts."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        backlog = Backlog(1000, 10)
        #: The correlations of the requests that were noted, and whether to answer them.
        self.noted: list[int] = []
        self.answers = True

        def may_refuse(ticket: Ticket, envelope: Envelope, now: int) -> bool:
            assert ticket.correlation == envelope.correlation
            assert now == NOW
            self.noted.append(ticket.correlation)
            return self.answers

        self.all = Rejections(self.counts, Refusals(), backlog, ReplyEncoder(), may_refuse)


@pytest.fixture
def rejecting() -> Rejecting:
    return Rejecting()


def error_of(replies: list[Reply]) -> Exception:
    [reply] = replies
    assert reply.to == b"sender"
    envelope = decode(reply.frames)
    assert envelope.correlation == 7
    assert isinstance(envelope.message, Error)
    return envelope.message.error()


def test_malformed_message_is_answered_if_its_header_is_valid(rejecting: Rejecting) -> None:
    error = ProtocolError("no such kind", correlation=7)
    with capture_logs() as logs:
        replies = rejecting.all.malformed(b"sender", "key", error, NOW)
    assert isinstance(error_of(replies), ProtocolError)
    assert rejecting.counts == {"malformed": 1}
    assert [(line["event"], line["key"]) for line in logs] == [(events.CLIENT_REFUSED, "key")]


def test_malformed_message_without_header_is_only_counted(rejecting: Rejecting) -> None:
    assert rejecting.all.malformed(b"sender", None, ProtocolError("garbage"), NOW) == []
    assert rejecting.counts == {"malformed": 1}


def test_sender_of_a_message_that_is_rejected_as_busy_may_retry(rejecting: Rejecting) -> None:
    frames = encode(Envelope(7, 0, 0, Ping()))
    with capture_logs() as logs:
        error = error_of(rejecting.all.busy(b"sender", frames, NOW, "too much"))
    assert isinstance(error, Busy)
    assert (str(error), error.details["retry_after_ms"] > 0) == ("too much", True)
    assert rejecting.counts == {"rejected_as_busy": 1}
    assert rejecting.noted == [7]
    assert [line["event"] for line in logs] == [events.CLIENT_REFUSED]


def test_malformed_message_to_a_busy_peer_is_dropped(rejecting: Rejecting) -> None:
    assert rejecting.all.busy(b"sender", [b"garbage"], NOW, "too much") == []
    assert rejecting.counts == {}


def test_late_request_is_answered_with_how_late_it_is(rejecting: Rejecting) -> None:
    late = request(Ping())
    late = late._replace(envelope=late.envelope._replace(moment=NOW - 20))
    error = error_of(rejecting.all.late(late, NOW))
    assert isinstance(error, DeadlinePassed)
    assert "20 ms after its deadline" in str(error)
    assert rejecting.counts == {"late": 1}
    assert rejecting.noted == [7]


def test_duplicate_of_a_request_that_is_carried_out_is_not_answered(rejecting: Rejecting) -> None:
    rejecting.answers = False
    assert rejecting.all.busy(b"sender", encode(Envelope(7, 0, 0, Ping())), NOW, "no") == []
    assert rejecting.all.late(request(Ping()), NOW) == []
    assert rejecting.all.refused(request(Ping()), Busy("later"), NOW) is None


def test_late_hint_is_not_answered(rejecting: Rejecting) -> None:
    assert rejecting.all.late(request(Hint("i", "b", Frame(b"\x90"))), NOW) == []
    assert rejecting.counts == {"late": 1}


def test_notes_of_a_late_request_end_once(rejecting: Rejecting) -> None:
    ended: list[Notes] = []
    late = request(Ping())
    rejecting.all.late(late._replace(notes=Notes(late.envelope, 0, ended.append)), NOW)
    assert [notes.outcome for notes in ended] == ["Late"]


def test_refused_request_is_counted_by_its_error(rejecting: Rejecting) -> None:
    with capture_logs() as logs:
        answer = rejecting.all.refused(request(Ping()), StaleEpoch("over"), NOW)
        rejecting.all.refused(request(Ping()), Busy("later"), NOW)
    assert isinstance(answer.error(), StaleEpoch)
    assert rejecting.counts == {"refused:StaleEpoch": 1, "refused:Busy": 1}
    assert rejecting.noted == [7, 7]
    assert [line["cause"] for line in logs] == ["Busy"], "an old epoch is part of the protocol"
