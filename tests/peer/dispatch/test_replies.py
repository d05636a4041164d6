"""The encoding of replies: where they go, and what they carry."""

from __future__ import annotations

from dstash.peer.admission.requests import Ticket
from dstash.peer.dispatch.replies import ReplyEncoder
from dstash.peer.telemetry.tracing import Notes
from dstash.wire.envelope import Envelope, decode
from dstash.wire.messages import Ping, Pong
from tests.peer.parts import EPOCH, NOW, view_of


def test_reply_carries_the_ticket_the_time_and_the_epoch_of_the_view() -> None:
    replies = ReplyEncoder()
    reply = replies.encode(Ticket(b"sender", 7, 2), Pong(), NOW)
    assert reply.to == b"sender"
    assert decode(reply.frames) == Envelope(7, 0, NOW, Pong(), 2)
    replies.install(view_of())
    assert decode(replies.encode(Ticket(b"sender", 7, 2), Pong(), NOW).frames).epoch == EPOCH


def test_reply_ends_the_notes_of_a_traced_request() -> None:
    ended: list[Notes] = []
    notes = Notes(Envelope(7, EPOCH, 0, Ping()), 0, ended.append)
    ReplyEncoder().encode(Ticket(b"sender", 7, notes=notes), Pong(), NOW)
    assert [ended_notes.outcome for ended_notes in ended] == ["Answered"]
