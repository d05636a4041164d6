"""Look-ups of one key by several threads, made with one request to each peer.

Only plain answers are taken. What is not plain keeps the outcome ``ASK``, so that each thread makes
its look-up in the general way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from dstash.client.operations.short.lookup import PlainAnswer, plain_answer
from dstash.client.operations.short.write import take_late_ack
from dstash.client.routing import Peers
from dstash.client.session import Session
from dstash.client.transport.combining import WaitingCall
from dstash.errors import DStashError
from dstash.types import Level
from dstash.wire.keys import Key
from dstash.wire.sockets import Link
from dstash.wire.values import TypeRegistry

#: How often a thread waits (20 ms each time) for an answer.
_MAX_AWAITS: Final = 4
#: The outcome of a look-up of a key that does not exist.
MISSING: Final = object()


class Wanted(NamedTuple):
    """What is looked up: the arguments of a ``ShortLookup``, and the peers to ask.

    ``name``: of the index.
    """

    deadline: int
    name: str
    key: Key
    encoded: bytes
    level: Level
    targets: Peers
    epoch: int


class CombinedRequest(NamedTuple):
    """One request for the keys of several calls: the same to each of their targets.

    ``asked``: peer by the correlation id of its request.
    """

    calls: list[WaitingCall]
    links: list[Link]
    asked: dict[int, str]
    answers: dict[str, PlainAnswer]

    def is_answered(self, peer: str, answer: PlainAnswer | None) -> bool:
        """Whether an answer of a peer is to this request, and counts all of its keys."""
        return (
            answer is not None
            and self.asked.get(answer.correlation) == peer
            and answer.answered == len(self.calls)
        )

    def deliver(self, targets: Peers, types: TypeRegistry, session: Session) -> bool:
        """Set the outcomes of the calls if the answers agree and the values can be decoded."""
        first = self.answers[targets[0]]
        if any(answer.digest != first.digest for answer in self.answers.values()):
            return False
        try:
            values = types.decode_array(first.values)
        except DStashError:  # the general way names the key in its error
            return False
        places = range(len(values))
        if len(values) != len(self.calls) or not all(map(places.__contains__, first.missing)):
            return False
        missing = frozenset(first.missing)
        session.learn_size(len(first.values) / len(values))
        for place, (call, value) in enumerate(zip(self.calls, values, strict=True)):
            call.outcome = MISSING if place in missing else value
        return True


def take_answers(
    requests: Sequence[CombinedRequest], session: Session, types: TypeRegistry, sent_at: int
) -> None:
    """Wait for the answers to requests, and set the outcomes of their calls.

    The first answer that is late or not plain ends it: the others are late ones for the next call
    on the channel.

    Args:
        requests: that were sent on one channel.
        session: the state that the calls of the client share.
        types: decodes values.
        sent_at: when they were sent, by the session's wall clock.
    """
    for request in requests:
        targets = request.calls[0].wanted.targets
        for peer, link in zip(targets, request.links, strict=True):
            while peer not in request.answers:
                if not _take_answer(requests, session, peer, link, sent_at):
                    return
        if not request.deliver(targets, types, session):
            return


def _take_answer(
    requests: Sequence[CombinedRequest], session: Session, peer: str, link: Link, sent_at: int
) -> bool:
    """Wait for the next message of a peer; return whether it is a plain answer or a late ack."""
    parts = _await(link)
    if parts is None:
        return False
    if take_late_ack(session, peer, parts):
        return True
    answer = plain_answer(parts)
    asked = [request for request in requests if request.is_answered(peer, answer)]
    if answer is None or not asked:
        link.put_back(parts)  # for the next call on the channel
        return False
    session.learn_clock(peer, answer.moment, sent_at, session.wall())
    asked[0].answers[peer] = answer
    return True


def _await(link: Link) -> list[bytes] | None:
    for _ in range(_MAX_AWAITS):
        parts = link.await_message()
        if parts is not None:
            return parts
    return None
