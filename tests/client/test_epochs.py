"""Tests of epochs: a write counts only the acks of the replica sets that it was routed by.

A request has the epoch that it was routed by, so that a peer with a newer one rejects it. When
the view changes while a write waits for its next try, it must go to the new replicas too: acks of
the old ones alone would not survive the change.
"""

from __future__ import annotations

from typing import Any

import pytest

from dstash.client.operations.base import Call, Operation
from dstash.client.operations.reads import LookupOperation
from dstash.client.operations.short.lookup import ShortLookup
from dstash.client.operations.writes import PutOperation
from dstash.client.session import Send, Session
from dstash.cluster.topology.topology import Change, Member, State, Topology
from dstash.errors import NotReady
from dstash.types import Level, Outcome
from dstash.wire.envelope import Envelope, decode
from dstash.wire.messages import Error, Put, Stored
from dstash.wire.values import TypeRegistry

NOW = 1000


def member(name: str, state: State = State.ACTIVE) -> Member:
    return Member(name, f"tcp://{name}:1", f"store-{name}", name, state=state)


def topology(epoch: int, *members: Member, change: Change | None = None) -> bytes:
    return Topology(
        cluster="c", cluster_id="id", epoch=epoch, members=members, formed=True, change=change
    ).encode()


BEFORE = topology(1, *map(member, "abc"))
MOVING = topology(
    2,
    member("a"),
    member("b", State.LEAVING),
    member("c", State.LEAVING),
    member("d", State.JOINING),
    member("e", State.JOINING),
    change=Change(number=2),
)


@pytest.fixture
def session() -> Session:
    made = Session(lambda: NOW)
    made.install(BEFORE, ["a", "b", "c"])
    for peer in "abc":
        made.learn_clock(peer, NOW, NOW, NOW)
    return made


def put(session: Session) -> PutOperation:
    return PutOperation(session, NOW + 5000, "i", Level.QUORUM, [("k", b"k", b"\x01")], None)


def receivers(sends: list[Send], epoch: int) -> set[str]:
    """Return the peers that were sent a put under that epoch."""
    puts = {send.peer: decode(send.frames) for send in sends}
    assert {put.epoch for put in puts.values() if isinstance(put.message, Put)} == {epoch}
    return {peer for peer, put in puts.items() if isinstance(put.message, Put)}


def answer(operation: Operation, send: Send, message: Stored | Error, now: int) -> list[Send]:
    correlation = decode(send.frames).correlation
    return operation.receive(send.peer, Envelope(correlation, 1, now, message), now)


def test_delayed_retry_goes_to_the_new_replicas(session: Session) -> None:
    operation = put(session)
    first = operation.more(NOW)
    assert receivers(first, epoch=1) == {"a", "b", "c"}
    for send in first:
        answer(operation, send, Error.of(NotReady("starting")), NOW)
    session.install(MOVING, [])
    again = operation.tick(operation.wakeup())
    assert receivers(again, epoch=2) == {"a", "b", "c", "d", "e"}


def test_acks_of_the_old_replicas_are_not_enough(session: Session) -> None:
    operation = put(session)
    for send in operation.more(NOW):
        answer(operation, send, Error.of(NotReady("starting")), NOW)
    session.install(MOVING, [])
    for send in operation.tick(operation.wakeup()):
        if send.peer in "abc":
            answer(operation, send, Stored([]), NOW)
    operation.more(NOW)
    assert not operation.done
    operation.tick(NOW + 5000)
    assert set(operation.result().outcomes.values()) == {Outcome.UNKNOWN}


def test_write_is_rerouted_when_the_view_changes_before_it_is_sent(session: Session) -> None:
    operation = put(session)
    chunks = next(operation._source)
    session.install(MOVING, [])  # as another thread of the client may
    sends = operation.start(chunks, NOW)
    assert receivers(sends, epoch=2) == {"a", "b", "c", "d", "e"}


def test_request_has_the_epoch_that_it_was_routed_by(session: Session) -> None:
    operation = put(session)
    first, *_ = operation.more(NOW)
    session.install(MOVING, [])
    assert decode(first.frames).epoch == 1


def test_write_not_sent_under_the_old_epoch_is_not_indeterminate(session: Session) -> None:
    operation = put(session)
    chunks = next(operation._source)
    session.install(MOVING, [])
    for send in operation.start(chunks, NOW):
        operation.unsent(send, NOW)
    operation.more(NOW)
    operation.tick(NOW + 5000)
    assert set(operation.result().outcomes.values()) == {Outcome.FAILED}


@pytest.mark.parametrize("method", ["read_targets", "calm_table"])
def test_read_routed_before_another_thread_installs_a_view_has_the_earlier_epoch(
    session: Session, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    found = getattr(session, method)

    def find(*given: Any) -> Any:
        table = found(*given)
        session.install(MOVING, ["a", "b", "c", "d", "e"])
        return table

    monkeypatch.setattr(session, method, find)
    decode_values = TypeRegistry().decode_values
    lookup = (session, NOW + 5000, "i")
    read: Call = LookupOperation(*lookup, ["k"], Level.QUORUM, decode_values)
    if method == "calm_table":
        read = ShortLookup(*lookup, "k", b"k", Level.QUORUM, decode_values)
    sends = read.more(NOW)
    assert session.epoch == 2
    assert {send.peer for send in sends} <= set("abc")
    assert [decode(send.frames).epoch for send in sends] == [1, 1]
