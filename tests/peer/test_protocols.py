"""Protocol versions: those that a peer reports, and those that it uses with other peers."""

from __future__ import annotations

import pytest

from dstash.cluster.replication.transfer import ask
from dstash.errors import VersionMismatch
from dstash.wire import codec, protocol
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Error, Hello, Lookup, Welcome
from dstash.wire.replication import SeenReply, SeenRequest
from dstash.wire.shapes import Message
from tests.peer.test_core import EPOCH, Peer, keys, peer, put, topology

__all__ = ["peer"]


def test_client_without_common_version_gets_supported_versions(peer: Peer) -> None:
    refusal = peer.refusal(Hello("c", lowest=3, highest=5))
    assert isinstance(refusal, VersionMismatch)
    assert str(refusal) == "protocol version 3 to 5; this side speaks 1 to 2"
    assert (refusal.details["lowest"], refusal.details["highest"]) == (1, 2)
    assert isinstance(peer.ask(Hello("c", lowest=1, highest=5)), Welcome)


@pytest.mark.parametrize("message", [put(b"k"), Lookup("i", 1, keys(b"k")), SeenRequest("b", 0)])
def test_reply_has_the_version_of_its_request(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, message: Message
) -> None:
    monkeypatch.setattr(protocol, "HIGHEST_PROTOCOL", 2)
    for version in (1, 2):
        request = Envelope(7, EPOCH, 0, message, version)
        replies = peer.core.receive(b"client", encode(request), peer.now)
        while not replies:
            replies, _ = peer.core.tick(peer.now)
            while (commit := peer.core.next_commit(peer.now)) is not None:
                commit.run(peer.store)
                replies += peer.core.committed(commit, peer.now)
        assert [decode(reply.frames).protocol for reply in replies] == [version]


@pytest.mark.parametrize("version", [1, 2])
def test_error_reply_to_a_malformed_request_has_the_version_of_the_request(
    peer: Peer, version: int
) -> None:
    lookup = encode(Envelope(7, EPOCH, 0, Lookup("i", 1, keys(b"k")), version))
    unknown = codec.pack_header((version, 200, 7, EPOCH, 0))
    wrong = codec.pack_header((version, Lookup.KIND, 7, EPOCH, 0, 5))
    for frames in ([unknown], [wrong, *lookup[1:]], lookup[:1]):
        [reply] = peer.core.receive(b"client", frames, peer.now)
        envelope = decode(reply.frames)
        assert isinstance(envelope.message, Error)
        assert (envelope.protocol, envelope.correlation) == (version, 7)
        assert envelope.message.details == {}


def test_error_reply_to_an_unsupported_version_has_the_lowest_version(peer: Peer) -> None:
    [reply] = peer.core.receive(b"client", [codec.pack_header((9, 200, 7, EPOCH, 0))], peer.now)
    envelope = decode(reply.frames)
    assert isinstance(envelope.message, Error)
    assert (envelope.protocol, envelope.message.code) == (1, VersionMismatch.code)


def test_peers_use_highest_common_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "HIGHEST_PROTOCOL", 2)
    peer = Peer(topology("ab"))
    welcome = Welcome("c", "b", 1, 3, {}, b"", [])

    def spoken() -> set[int]:
        peer.core.scheduler.spawn("asks", ask("b", SeenRequest("a", 0), SeenReply))
        _, outgoing = peer.core.tick(peer.now)
        return {decode(request.frames).protocol for request in outgoing}

    assert spoken() == {1}
    peer.core.outgoing.answered("b", encode(Envelope(0, EPOCH, 0, welcome)), peer.now)
    assert spoken() == {2}
    peer.core.outgoing.lost("b")
    assert spoken() == {1}
