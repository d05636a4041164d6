"""A write that would take the place of a record from the future, which may hide an acked one."""

from __future__ import annotations

import pytest

from dstash.errors import Busy
from dstash.store.record import version_of
from dstash.version import Version, pack, stamp_at, unpack
from dstash.wire import codec
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Put, Stored
from dstash.wire.shapes import Frame
from tests.client.test_clocks import joined_at_rest, pass_time
from tests.harness.joined import Joined


@pytest.fixture
def joined() -> Joined:
    """Three replicas; ``a`` and ``b`` have acked a write that is not in the presents read so far.

    A later put of which a replica said that it is from the future has replaced it on ``b``.
    """
    joined = joined_at_rest()
    pass_time(joined)
    for peer in "ab":
        assert put(joined, peer, acked(joined)).rejected == []
    assert put(joined, "b", refused(joined)).rejected == []
    return joined


def acked(joined: Joined) -> Version:
    return pack(stamp_at(joined.now + 100), b"ackd")


def refused(joined: Joined) -> Version:
    return pack(stamp_at(joined.now + 200), b"futr")


def lower(joined: Joined) -> Version:
    return pack(stamp_at(joined.now), b"lowr")


def put(joined: Joined, peer: str, version: Version, replaces: bytes = b"") -> Stored:
    core = joined.peers[peer]
    keys, values = Frame(codec.pack_blobs([b"k"])), Frame(codec.pack_blobs([b"\x01"]))
    message = Put("i", version, 0, keys, values, replaces)
    frames = encode(Envelope(1, joined.topology.epoch, joined.now + 5000, message))
    joined._answer_each(peer, core.receive(b"client", frames, joined.now))
    joined._commit(peer)
    _, frames = joined._answers.popleft()
    answer = decode(frames).message
    assert isinstance(answer, Stored)
    return answer


def ask_others(joined: Joined) -> None:
    joined.now += 100
    joined.settle()


def test_lower_write_waits_for_the_answers_of_the_others(joined: Joined) -> None:
    low, futr, ackd = lower(joined), refused(joined), acked(joined)
    [[place, code, _]] = put(joined, "b", low, futr).rejected
    assert (place, code) == (0, Busy.code)
    ask_others(joined)
    [[place, code, bound]] = put(joined, "b", low, futr).rejected
    assert (place, code) == (0, 0)
    assert unpack(bound)[0] == unpack(ackd)[0], "the client stamps it past this"
    assert version_of(joined.record("b", "k") or b"") == futr


def test_write_above_all_that_the_others_hold_replaces_it(joined: Joined) -> None:
    futr = refused(joined)
    above = pack(unpack(acked(joined))[0] + 1, b"high")
    put(joined, "b", above, futr)
    ask_others(joined)
    assert put(joined, "b", above, futr).rejected == []
    assert version_of(joined.record("b", "k") or b"") == above


def test_record_stays_while_a_replica_that_may_have_acked_is_down(joined: Joined) -> None:
    """Its present was read before the ack, and nothing else tells that there was one."""
    low, futr = lower(joined), refused(joined)
    joined.down = {"a"}
    put(joined, "b", low, futr)
    for _ in range(5):
        joined.settle()
        joined.now += 500
    [[place, code, version]] = put(joined, "b", low, futr).rejected
    assert (place, code, version) == (0, 0, futr)
    assert version_of(joined.record("b", "k") or b"") == futr
