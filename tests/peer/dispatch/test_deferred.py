"""Deferred requests: what each handler checks, and what it begins."""

from __future__ import annotations

import pytest

from dstash.errors import Busy, NotReady, UsageError
from dstash.peer.admission.questions import QUESTIONS
from dstash.peer.commits.votes import VOTES
from dstash.peer.dispatch.deferred import DEFERRED
from dstash.store.record import keyspace
from dstash.store.sealing import locate
from dstash.wire import codec
from dstash.wire.messages import Put
from dstash.wire.registers import Settle
from dstash.wire.registers.consensus import Prepare
from dstash.wire.replication import DigestsRequest, Hint, Push, SeenRequest
from dstash.wire.shapes import Frame, Message
from tests.peer.dispatch.assembled import Assembled
from tests.peer.parts import NOW, view_of

KEYS = Frame(codec.pack_blobs([b"k"]))
PUSH = Push(KEYS, KEYS)
HINT = Hint("i", "b", KEYS)
PREPARE = Prepare(1, b"abcd", b"", KEYS)
SETTLE = Settle("@i", KEYS)
DIGESTS = DigestsRequest(bytes(2))
SEEN = SeenRequest("b", 0)


class Unread:
    """A client that reads none of its answers."""

    def defers(self, sender: bytes) -> bool:
        return True

    def lacks_room(self, sender: bytes) -> bool:
        return True


def answers(peer: Assembled) -> list[Message]:
    """Return the answers of the tasks that were begun."""
    for _ in range(20):
        peer.services.background.tick(stopping=False)
    return [message for _, message in peer.handlers.questions.take()]


def test_every_vote_and_question_has_a_handler() -> None:
    assert {*VOTES, *QUESTIONS} <= DEFERRED.keys()
    assert Put not in DEFERRED, "the core handles it"


def test_push_waits_for_the_disk() -> None:
    peer = Assembled()
    peer.begin(PUSH)
    [write] = peer.state.backlog.take(0)
    assert (write.message, write.ticket.sender, write.space) == (PUSH, b"sender", None)


@pytest.mark.parametrize("compared", [True, False])
def test_push_makes_partitions_busy_unless_it_belongs_to_a_comparison(compared: bool) -> None:
    peer = Assembled()
    peer.begin(Push(KEYS, KEYS, compared=compared))
    assert bool(peer.state.local_partitions.quiet_among([0], NOW)) is compared


def test_hint_is_kept_for_a_member() -> None:
    peer = Assembled()
    peer.begin(HINT)
    expected = locate(keyspace(b"i", view_of().owned_by("a")), [b"k"])
    assert peer.state.hints.take("b") == expected
    assert not peer.state.backlog.has_work, "it is not answered"


def test_hint_is_looked_at_in_the_next_iteration() -> None:
    peer = Assembled()
    background = peer.services.background
    background.tick(stopping=False)
    before = background.wakeup(NOW)
    peer.begin(HINT)
    background.tick(stopping=False)
    assert (before > 0, background.has_looked) == (True, True)


def test_hint_for_a_peer_that_is_no_member_is_ignored() -> None:
    peer = Assembled()
    peer.begin(Hint("i", "x", KEYS))
    assert len(peer.state.hints) == 0


def test_hint_for_a_register_is_refused() -> None:
    peer = Assembled()
    with pytest.raises(UsageError, match="has registers"):
        peer.begin(Hint("@i", "b", KEYS))
    assert len(peer.state.hints) == 0


@pytest.mark.parametrize("message", [SETTLE, PREPARE, DIGESTS], ids=lambda m: type(m).__name__)
def test_request_is_refused_until_freshness_is_confirmed(message: Message) -> None:
    peer = Assembled(freshness_confirmed=False)
    with pytest.raises(NotReady, match="a: "):
        peer.begin(message)


@pytest.mark.parametrize("message", [SETTLE, PREPARE], ids=lambda m: type(m).__name__)
def test_requests_about_registers_are_checked_by_registers(message: Message) -> None:
    with pytest.raises(UsageError, match="registers need durability"):
        Assembled(is_durable=False).begin(message)


def test_seen_request_is_answered_while_freshness_is_not_confirmed() -> None:
    peer = Assembled(freshness_confirmed=False)
    peer.begin(SEEN)
    assert len(answers(peer)) == 1


def test_question_is_refused_while_its_sender_has_no_room() -> None:
    peer = Assembled()
    peer.services.admission.unread = Unread()
    with pytest.raises(Busy, match="too many answers wait"):
        peer.begin(DIGESTS)
    assert answers(peer) == []
