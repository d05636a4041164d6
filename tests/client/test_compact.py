"""Tests of the compaction of a peer that a client starts."""

from __future__ import annotations

import pytest

from dstash.client.calls import Calls
from dstash.client.operations.scans import CompactOperation
from dstash.config.client import ClientSettings
from dstash.errors import Busy, Unavailable, UsageError
from dstash.wire.values import TypeRegistry
from tests.harness.joined import Joined


def order(joined: Joined, peer: str) -> dict[str, dict[str, object]]:
    operation = CompactOperation(joined.session, joined.now + 30_000, peer)
    return dict(joined.run(operation))


def test_compaction_is_ordered_of_one_peer_only() -> None:
    joined, ordered = Joined(), []
    for name, core in joined.peers.items():
        core.health.order_compaction = lambda name=name: ordered.append(name)
        core.health.describe_compaction = lambda: {"running": True}
    assert order(joined, "b")["b"]["compaction"] == {"running": True}
    assert ordered == ["b"]


def test_second_order_raises_busy_without_a_retry() -> None:
    joined, orders = Joined(), []

    def refuse() -> None:
        orders.append("refused")
        raise Busy("a compaction of this peer runs already")

    joined.peers["b"].health.order_compaction = refuse
    with pytest.raises(Busy, match="runs already"):
        order(joined, "b")
    assert orders == ["refused"]


@pytest.mark.parametrize("how", ["down", "silent"])
def test_order_to_a_peer_without_an_answer_raises_unavailable(how: str) -> None:
    joined = Joined()
    setattr(joined, how, {"b"})
    with pytest.raises(Unavailable, match="b"):
        order(joined, "b")


def test_order_to_an_unknown_peer_names_the_members() -> None:
    joined = Joined()
    calls = Calls(ClientSettings(), joined.session, TypeRegistry())
    with pytest.raises(UsageError, match="'x' is not a member of the cluster; members are a, b, c"):
        calls.compact(joined.session.known_view(), "x", joined.now)
