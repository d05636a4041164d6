"""Admin requests between their arrival and the answer of the membership agent."""

from __future__ import annotations

import pytest

from dstash.errors import Busy, NotReady
from dstash.peer.admission.admin_requests import AdminRequests
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.requests import Reply, Ticket
from dstash.version import stamp_at
from dstash.wire.messages import AdminReply, AdminRequest
from dstash.wire.shapes import Message
from tests.peer.parts import NOW, Parts, request

REMOVE = AdminRequest("remove", ["b"])


def reply(ticket: Ticket, message: Message, now: int) -> Reply:
    return Reply(ticket.sender, [type(message).__name__.encode(), str(now).encode()])


def requests(parts: Parts, most: int = 10) -> AdminRequests:
    return AdminRequests("a", parts.clock, Backlog(1000, most), reply)


def test_take_returns_each_request_once() -> None:
    admin = requests(Parts())
    admin.accept(request(REMOVE), REMOVE)
    assert [pending.request for pending in admin.take()] == [REMOVE]
    assert admin.take() == []


def test_answer_becomes_a_reply_to_the_sender() -> None:
    admin = requests(Parts())
    admin.accept(request(REMOVE), REMOVE)
    [pending] = admin.take()
    expected = Reply(b"sender", [b"AdminReply", str(NOW).encode()])
    assert pending.answer(AdminReply(b""), NOW) == [expected]


def test_requests_without_an_answer_are_bounded() -> None:
    admin = requests(Parts(), most=2)
    admin.accept(request(REMOVE), REMOVE)
    admin.accept(request(REMOVE), REMOVE)
    with pytest.raises(Busy):
        admin.accept(request(REMOVE), REMOVE)
    admin.take()[0].answer(AdminReply(b""), NOW)
    admin.accept(request(REMOVE), REMOVE)


def test_floors_are_lowered_to_the_time_of_the_cluster() -> None:
    lower = AdminRequest("lower-floors", [])
    admin = requests(Parts())
    admin.accept(request(lower), lower)
    assert [pending.request.stamp for pending in admin.take()] == [stamp_at(NOW)]


def test_floors_are_not_lowered_while_clocks_are_unknown() -> None:
    lower = AdminRequest("lower-floors", [])
    admin = requests(Parts(knows_clocks=False))
    with pytest.raises(NotReady, match="clocks of a majority"):
        admin.accept(request(lower), lower)
    assert admin.take() == []
