"""By whose clocks a client stamps its writes."""

from __future__ import annotations

from dstash.client.session import Session
from dstash.cluster.topology import Member, Topology

NOW = 1_700_000_000_000


def topology(epoch: int, names: str) -> bytes:
    members = tuple(Member(name, f"tcp://{name}:1", f"store-{name}", name) for name in names)
    return Topology("c", "id", epoch, formed=True, members=members).encode()


def test_the_clock_of_the_cluster_is_that_of_most_members() -> None:
    session = Session(lambda: NOW)
    session.install(topology(1, "abc"), [])
    for name, offset in zip("abc", (20_000, 5, -5), strict=True):
        session.learn_clock(name, NOW + offset, NOW, NOW)
    assert session.cluster_time() == NOW + 5


def test_those_that_have_left_have_no_say() -> None:
    session = Session(lambda: NOW)
    session.learn_clock("tcp://a:1", NOW + 20_000, NOW, NOW)  # a seed: which peer it is
    session.install(topology(1, "abcd"), [])
    for name, offset in zip("abcd", (20_000, 20_000, 5, -5), strict=True):
        session.learn_clock(name, NOW + offset, NOW, NOW)
    session.install(topology(2, "cd"), [])
    assert session.cluster_time() == NOW - 5
    assert session.peer_time("c", NOW) == NOW + 5
