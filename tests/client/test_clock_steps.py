"""Tests of a client while the clocks of peers are set."""

from __future__ import annotations

from typing import Any

import pytest

from dstash.client.operations.scans import StatusOperation
from dstash.client.operations.writes import DeleteOperation, PutOperation
from dstash.client.session import Session
from dstash.peer.background.maintenance import Pace
from dstash.peer.core import PeerCore
from dstash.store.record import open_record
from dstash.types import Level
from dstash.version import pack, stamp_at
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Hello, Welcome
from tests.harness.joined import START, TYPES, Joined

NEVER_DUE = Pace(10**9, 10**9, 0)
HOUR = 3_600_000


class Clocks(Joined):
    """Peers whose clocks are ahead by the milliseconds in ``ahead``."""

    def __init__(self, **settings: Any) -> None:
        self.ahead = dict.fromkeys("abc", 0)
        super().__init__("abc", pace=NEVER_DUE, **settings)
        for name, core in self.peers.items():
            self._shift(name, core)
        self.now += 2 * HOUR  # since the start; peers accept no earlier stamp

    def _shift(self, name: str, core: PeerCore) -> None:
        receive, take, committed = core.receive, core.next_commit, core.committed
        core.receive = (  # type: ignore[method-assign]
            lambda sender, parts, now, user=None: receive(
                sender, parts, now + self.ahead[name], user
            )
        )
        core.next_commit = lambda now: take(now + self.ahead[name])  # type: ignore[method-assign]
        core.committed = (  # type: ignore[method-assign]
            lambda commit, now: committed(commit, now + self.ahead[name])
        )

    def set_clocks(self, by: int, peers: str = "abc") -> None:
        """Set the clocks of peers."""
        self.ahead |= dict.fromkeys(peers, by)

    def put_for(self, ttl: int) -> Any:
        """Put a key with a time to live in milliseconds."""
        items: list[Any] = [("k", b"k", TYPES.encode(1))]
        deadline = self.now + 5000
        return self.run(PutOperation(self.session, deadline, "i", Level.QUORUM, items, ttl))


@pytest.mark.parametrize("step", [HOUR, -HOUR, 20_000, 3000, -3000, 700, -700])
def test_put_with_ttl_succeeds_after_clock_step(step: int) -> None:
    clocks = Clocks()
    clocks.put({"before": 1})
    clocks.set_clocks(step)
    began = clocks.now
    assert clocks.put_for(60_000).ok
    assert clocks.now - began <= 300, "it does not wait for its timeout"
    for peer in "abc":
        expiry = open_record(clocks.record(peer, "k") or b"").expiry
        assert abs(expiry - (clocks.now + step) - 60_000) <= 500
    assert clocks.lookup("k") == {"k": 1}


@pytest.mark.parametrize("level", ["one", "quorum", "all"])
@pytest.mark.parametrize("peers", ["a", "ab", "abc"])
def test_lookup_and_put_succeed_after_clock_step(peers: str, level: str) -> None:
    clocks = Clocks()
    keys = {f"k{number}": number for number in range(30)}
    clocks.put(keys, "all")
    clocks.set_clocks(HOUR, peers)
    began = clocks.now
    assert clocks.lookup(*keys, level=level) == keys
    assert clocks.now - began <= 300
    if (peers, level) != ("ab", "all"):  # no stamp is acceptable to clocks that far apart
        assert clocks.put({"l": 1}, level).ok
        assert clocks.now - began <= 300


def test_peer_answers_status_after_clock_step() -> None:
    clocks = Clocks()
    clocks.put({"before": 1})
    clocks.set_clocks(HOUR, "b")
    operation = StatusOperation(clocks.session, clocks.now + 5000, [*"abc"])
    assert sorted(clocks.run(operation)) == [*"abc"]


def test_small_clock_step_causes_no_second_write() -> None:
    clocks = Clocks()
    clocks.put({"before": 1})
    clocks.set_clocks(100)
    clocks.asked.clear()
    clocks.put_for(60_000)
    assert len(clocks.asked) == 3


class TestSkew:
    """The allowed skew is a setting of the peers."""

    def welcome(self, core: PeerCore, now: int) -> Envelope:
        hello = encode(Envelope(1, 0, 0, Hello("c")))
        [reply] = core.receive(b"client", hello, now)
        return decode(reply.frames)

    def meet(self, clocks: Clocks, session: Session) -> None:
        for core in clocks.peers.values():
            message = self.welcome(core, clocks.now).message
            assert isinstance(message, Welcome)
            session.learn_limits(message.peer, message.limits)

    def test_write_is_stamped_past_version_within_allowed_skew(self) -> None:
        clocks = Clocks(max_clock_skew_ms=10_000)
        self.meet(clocks, clocks.session)
        ahead = pack(stamp_at(clocks.now + 4000), b"AAAA")
        clocks.session.new_version = lambda: ahead  # type: ignore[method-assign]
        assert clocks.put({"k": "ahead"}).ok
        del clocks.session.new_version
        began = clocks.now
        assert clocks.put({"k": "right"}).ok
        items: list[Any] = [("k", b"k", b"")]
        deadline = clocks.now + 3000
        result = clocks.run(DeleteOperation(clocks.session, deadline, "i", Level.QUORUM, items))
        assert result.deleted == 1
        assert clocks.now == began, "no call waits until the version is the present"

    def test_smallest_skew_of_members_applies(self) -> None:
        session = Clocks().session
        now = session.cluster_time()
        for peer, limits in (("a", {"max_clock_skew_ms": 10_000}), ("b", {})):
            session.learn_limits(peer, limits)
        assert session.is_from_the_future(stamp_at(now + 501)), "b is of an earlier version"
        session.learn_limits("b", {"max_clock_skew_ms": 2000})
        assert not session.is_from_the_future(stamp_at(now + 2000))
        assert session.is_from_the_future(stamp_at(now + 2001))

    def test_welcome_has_the_clock_skew_limit(self) -> None:
        clocks = Clocks(max_clock_skew_ms=1234)
        message = self.welcome(clocks.peers["a"], START + 5000).message
        assert isinstance(message, Welcome)
        assert message.limits["max_clock_skew_ms"] == 1234
