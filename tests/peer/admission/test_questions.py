"""Questions of other peers: a task answers each, and too many are refused."""

from __future__ import annotations

import pytest

from dstash.cluster.replication.tasks import Scheduler
from dstash.errors import Busy, ProtocolError
from dstash.limits import PARTITIONS
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.questions import PeerQuestions
from dstash.wire.messages import Error
from dstash.wire.packing import PAGE_BYTES
from dstash.wire.replication import DigestsReply, DigestsRequest
from tests.peer.parts import EPOCH, NOW, Parts, request

ASKED = DigestsRequest((0).to_bytes(2, "big"))


class Questions:
    """The questions of a peer whose backlog holds two of them."""

    def __init__(self) -> None:
        backlog = Backlog(2 * (PAGE_BYTES + 100), 10)
        self.scheduler = Scheduler(lambda merge, done: done(None), backlog.settle, lambda: EPOCH)
        self.all = PeerQuestions(Parts().partitions, self.scheduler, backlog)

    def work(self) -> None:
        for _ in range(20):
            self.scheduler.tick(NOW)


def test_answer_is_ready_after_its_task() -> None:
    questions = Questions()
    questions.all.begin(request(ASKED), NOW)
    assert questions.all.ready == []
    questions.work()
    [(ticket, answer)] = questions.all.take()
    assert (ticket.sender, ticket.correlation) == (b"sender", 7)
    assert isinstance(answer, DigestsReply)
    assert questions.all.take() == []


def test_failure_of_the_task_is_the_answer() -> None:
    questions = Questions()
    nowhere = DigestsRequest(PARTITIONS.to_bytes(2, "big"))
    questions.all.begin(request(nowhere), NOW)
    questions.work()
    [(_, answer)] = questions.all.take()
    assert isinstance(answer, Error)
    assert isinstance(answer.error(), ProtocolError)


def test_question_is_refused_while_too_many_wait() -> None:
    questions = Questions()
    questions.all.begin(request(ASKED), NOW)
    questions.all.begin(request(ASKED), NOW)
    with pytest.raises(Busy):
        questions.all.begin(request(ASKED), NOW)
    questions.work()
    questions.all.begin(request(ASKED), NOW)
