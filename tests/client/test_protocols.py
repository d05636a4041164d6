"""Tests of the protocol version that a client uses with each peer."""

from __future__ import annotations

import pytest

from dstash.client.operations.reads import LookupOperation
from dstash.client.operations.scans import DiscoverOperation
from dstash.client.session import Session
from dstash.cluster.topology.topology import Member, Topology
from dstash.errors import VersionMismatch
from dstash.types import Level
from dstash.wire import protocol
from dstash.wire.envelope import Envelope, decode
from dstash.wire.messages import Error, Hello, Ping, TopologyRequest, Values, Welcome
from dstash.wire.shapes import Frame
from dstash.wire.values import TypeRegistry

NOW = 1000
TOPOLOGY = Topology(
    "c", "id", 1, replicas=1, formed=True, members=(Member("a", "tcp://a:1", "s", "z"),)
).encode()


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session that supports versions 1 and 2, with one peer."""
    monkeypatch.setattr(protocol, "HIGHEST_PROTOCOL", 2)
    made = Session(lambda: NOW)
    made.install(TOPOLOGY, ["a"])
    return made


def version_to(session: Session) -> int:
    """Return the version of a request to the peer."""
    return decode(session.request("a", 7, NOW, Ping()).frames).protocol


def lookup(session: Session) -> LookupOperation:
    return LookupOperation(session, NOW + 5000, "i", ["k"], Level.ONE, TypeRegistry().decode_values)


def test_lowest_protocol_is_used_until_the_peer_reports_its_versions(session: Session) -> None:
    assert version_to(session) == 1
    assert session.learn_protocol("a", 1, 3)
    assert version_to(session) == 2
    session.forget_protocol("a")  # it may have restarted with another version
    assert version_to(session) == 1


def test_welcome_reports_the_protocol_versions(session: Session) -> None:
    operation = lookup(session)
    operation.more(NOW)
    welcome = Welcome("c", "a", 1, 2, {}, TOPOLOGY, ["a"])
    operation.receive("a", Envelope(99, 1, NOW, welcome), NOW)
    assert version_to(session) == 2


def test_peer_with_later_versions_only_gets_a_retry(session: Session) -> None:
    operation = lookup(session)
    (first,) = operation.more(NOW)
    request = decode(first.frames)
    assert request.protocol == 1
    error = VersionMismatch("protocol version 1; this side speaks 2 to 4", lowest=2, highest=4)
    operation.receive("a", Envelope(request.correlation, 1, NOW, Error.of(error)), NOW)
    assert not operation.done
    (again,) = [
        send
        for send in operation.tick(operation.wakeup())
        if not isinstance(decode(send.frames).message, Ping | TopologyRequest)
    ]
    assert decode(again.frames).protocol == 2
    values = Values(1, b"", [], [], Frame(b"\x91\x01"))
    operation.receive("a", Envelope(decode(again.frames).correlation, 1, NOW, values), NOW)
    assert operation.more(NOW) == []
    assert operation.done
    assert operation.result() == {"k": 1}


def test_call_without_common_protocol_fails_at_once(session: Session) -> None:
    operation = DiscoverOperation(session, NOW + 5000, ["tcp://a:1"], "c")
    (hello,) = operation.more(NOW)
    greeting = decode(hello.frames)
    assert isinstance(greeting.message, Hello)
    error = VersionMismatch("protocol version 1 to 2; this side speaks 3 to 4")
    operation.receive("tcp://a:1", Envelope(greeting.correlation, 0, NOW, Error.of(error)), NOW)
    with pytest.raises(VersionMismatch, match="this side speaks 3 to 4"):
        operation.result()
