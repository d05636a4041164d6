"""News of later topologies: which ones a peer notes, and which of them it may use."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from dstash.cluster.topology.topology import Restored, Topology
from dstash.errors import Busy, StaleEpoch
from dstash.peer.admission.topology_news import TopologyNews
from dstash.wire.envelope import Envelope
from dstash.wire.messages import Error, Pong, TopologyReply
from tests.peer.parts import EPOCH, view_of


class News:
    """The news of peer ``a``."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.asked = 0
        self.of_a = TopologyNews("a", "store-a", lambda topology: topology, self.counts, self._ask)
        self.of_a.install(view_of())

    def _ask(self) -> None:
        self.asked += 1

    def refuse(self, encoded: object, peer: str = "b") -> Topology | None:
        error = StaleEpoch("old", topology=encoded)
        self.of_a.hear(peer, Envelope(1, EPOCH + 1, 0, Error.of(error)))
        return self.of_a.heard


def later(**changes: Any) -> Topology:
    return replace(view_of(epoch=EPOCH + 1).topology, **changes)


def test_newer_epoch_asks_for_a_refresh_until_a_view_is_installed() -> None:
    news = News().of_a
    news.hear("b", Envelope(1, EPOCH, 0, Pong()))
    assert not news.wants_refresh
    news.hear("b", Envelope(1, EPOCH + 1, 0, Pong()))
    assert news.wants_refresh
    news.install(view_of(epoch=EPOCH + 1))
    assert not news.wants_refresh


def test_topology_of_a_member_is_kept_until_a_view_is_as_new() -> None:
    news = News()
    assert news.refuse(later().encode()) == later()
    news.of_a.install(view_of())
    assert news.of_a.heard == later()
    news.of_a.install(view_of(epoch=EPOCH + 1))
    assert news.of_a.heard is None


@pytest.mark.parametrize(
    "changes",
    [
        {"formed": False},
        {"restored": Restored(EPOCH)},
        {"cluster_id": "other"},
        {"epoch": EPOCH},
        {"members": view_of("bc").topology.members},
        {"members": tuple(replace(m, store_id="x") for m in view_of().topology.members)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_topology_that_this_peer_may_not_use_is_not_kept(changes: dict[str, Any]) -> None:
    assert News().refuse(later(**changes).encode()) is None


def test_topology_of_a_peer_that_is_no_member_is_not_kept() -> None:
    assert News().refuse(later().encode(), peer="x") is None


def test_other_refusal_brings_no_topology_and_members_are_asked() -> None:
    news = News()
    news.of_a.hear("b", Envelope(1, EPOCH + 1, 0, Error.of(Busy("later"))))
    assert news.of_a.wants_refresh
    assert news.of_a.heard is None
    assert news.asked == 1
    news.of_a.hear("b", Envelope(1, EPOCH + 1, 0, TopologyReply(later().encode(), [])))
    assert news.of_a.heard == later()


def test_malformed_topology_is_counted() -> None:
    news = News()
    assert news.refuse(b"?") is None
    assert news.refuse("text") is None
    assert news.counts["malformed"] == 1
