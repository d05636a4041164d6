"""The membership agent: members that it forgets, heard topologies, and failed rounds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dstash.cluster.membership.local.membership import LocalMembership
from dstash.cluster.topology.announcement import FEATURES, Announcement
from dstash.cluster.topology.indexes.settings import IndexSettings
from dstash.cluster.topology.joining import last_known
from dstash.cluster.topology.topology import State, Topology
from dstash.cluster.topology.view import View
from dstash.errors import ChangeConflict, DiskFull, DStashError, MembershipUnreachable
from dstash.peer.membership_agent import MembershipAgent
from dstash.store.memory import TwinStore
from dstash.wire.messages import AdminReply, AdminRequest, Error, IndexSettingsRequest
from dstash.wire.shapes import Message
from tests.harness.waiting import PATIENCE

AFTER = 600.0


class Cluster:
    """Five joined peers. The first reads the membership on request, by a clock of the test."""

    def __init__(self, folder: Path, names: str = "abcde") -> None:
        self.now = 1000.0
        self.folder = folder
        self.members = {name: LocalMembership(folder, "c") for name in names}
        self.stores = {name: TwinStore(f"store-{name}") for name in names}
        self.agents = {name: self.agent(name) for name in names}
        for agent in self.agents.values():
            agent.join()

    def agent(self, name: str, **more: Any) -> MembershipAgent:
        return MembershipAgent(
            self.members[name],
            Announcement(name, f"tcp://{name}:1", self.stores[name].store_id, name, 1.0),
            self.stores[name],
            cluster="c",
            replicas=3,
            min_peers=len(self.members),
            waits_to_be_added=False,
            down_out_after=AFTER,
            publish=lambda view: None,
            removed=lambda: None,
            clock=lambda: self.now,
            **more,
        )

    def wait(self, seconds: float, *, watching: bool = True) -> None:
        """Let time pass; the first peer reads the membership every two seconds."""
        end = self.now + seconds
        while watching and self.now < end - 2:
            self.now += 2
            self.agents["a"]._look()
        self.now = end
        self.agents["a"]._look()

    def leaving(self) -> list[str]:
        topology = self.members["a"].read().topology
        assert topology is not None
        return [member.id for member in topology.members if member.state is State.LEAVING]

    def edit(self, change: Callable[..., object]) -> None:
        """Change the topology as another peer does."""
        stored = self.members["a"].read()
        assert self.members["a"].compare_and_set(change(stored.topology), stored.token)  # type: ignore[arg-type]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for membership in made.members.values():
        membership.close()


class TestHeardTopology:
    """The topology of another member, used while the membership does not answer."""

    def later(self, cluster: Cluster, **changes: Any) -> Topology:
        topology = cluster.members["a"].read().topology
        assert topology is not None
        return replace(topology, epoch=topology.epoch + 1, **changes)

    def iterate(
        self, agent: MembershipAgent, monkeypatch: pytest.MonkeyPatch, *, away: bool
    ) -> None:
        def watch(patience: float) -> None:
            if away:
                raise MembershipUnreachable("gone")

        monkeypatch.setattr(agent._membership, "watch", watch)
        agent._iterate()

    def hear(self, cluster: Cluster, topology: Topology, after: float = 0.5) -> list[View]:
        """Let the first agent hear a topology, and return the views that it has published."""
        agent = cluster.agents["a"]
        published: list[View] = []
        agent._publish = published.append
        agent.hear(topology)
        cluster.now += after
        agent.hear(topology)
        agent.hear(topology)
        return published

    def test_topology_is_used_once_and_not_stored(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cluster.agents["a"]._look()
        self.iterate(cluster.agents["a"], monkeypatch, away=True)
        heard = self.later(cluster)
        [view] = self.hear(cluster, heard)
        assert (view.topology, view.is_kept) == (heard, False)
        assert last_known(cluster.stores["a"]) == replace(heard, epoch=heard.epoch - 1)
        self.iterate(cluster.agents["a"], monkeypatch, away=True)
        assert self.hear(cluster, heard) == []

    def test_topology_is_used_while_a_request_to_the_membership_hangs(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        agent, later = cluster.agents["a"], self.later(cluster)
        asked, answer = threading.Event(), threading.Event()
        read = agent._membership.read

        def frozen() -> Any:
            asked.set()
            answer.wait()
            return read()

        monkeypatch.setattr(agent._membership, "read", frozen)
        thread = threading.Thread(target=agent._look)
        thread.start()
        try:
            assert asked.wait(PATIENCE)
            assert self.hear(cluster, later, after=0.1) == []
            assert len(self.hear(cluster, later, after=0.3)) == 1
        finally:
            answer.set()
            thread.join()

    def test_reachable_membership_overrides_heard_topology(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        agent = cluster.agents["a"]
        self.iterate(agent, monkeypatch, away=True)
        assert self.hear(cluster, self.later(cluster))
        stored = cluster.members["a"].read().topology
        self.iterate(agent, monkeypatch, away=False)
        assert agent._view is not None
        # Nothing was restored from the topology of another peer.
        assert agent._view.topology == cluster.members["a"].read().topology == stored
        assert last_known(cluster.stores["a"]) == stored

    def test_same_epoch_is_stored_once_the_membership_returns_it(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        agent = cluster.agents["a"]
        self.iterate(agent, monkeypatch, away=True)
        assert self.hear(cluster, self.later(cluster))
        cluster.edit(lambda topology: topology.next())
        published: list[View] = []
        agent._publish = published.append
        self.iterate(agent, monkeypatch, away=False)
        stored = cluster.members["a"].read().topology
        assert last_known(cluster.stores["a"]) == stored
        assert [view.topology for view in published] == [stored]

    def test_heard_topology_does_not_override_membership(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.iterate(cluster.agents["a"], monkeypatch, away=False)
        assert self.hear(cluster, self.later(cluster)) == []

    @pytest.mark.parametrize("changes", [{"epoch": 1}, {"cluster_id": "other"}])
    def test_another_cluster_or_an_earlier_epoch_is_not_used(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
    ) -> None:
        self.iterate(cluster.agents["a"], monkeypatch, away=True)
        assert self.hear(cluster, replace(self.later(cluster), **changes)) == []


def test_member_down_for_long_is_forgotten(cluster: Cluster) -> None:
    cluster.members["e"].resign()
    cluster.wait(AFTER - 5)
    assert cluster.leaving() == []
    cluster.wait(10)
    assert cluster.leaving() == ["e"]


def test_member_that_returned_meanwhile_is_not_forgotten(cluster: Cluster) -> None:
    cluster.members["e"].resign()
    cluster.wait(AFTER - 5)
    cluster.members["e"].announce(cluster.agents["e"]._announcement)
    cluster.wait(4)
    cluster.members["e"].resign()
    cluster.wait(AFTER - 5)
    assert cluster.leaving() == []


def test_no_member_is_forgotten_when_more_than_a_third_are_down(cluster: Cluster) -> None:
    cluster.members["d"].resign()
    cluster.members["e"].resign()
    cluster.wait(3 * AFTER)
    assert cluster.leaving() == []


def test_unobserved_time_does_not_count_as_down_time(cluster: Cluster) -> None:
    cluster.members["e"].resign()
    cluster.wait(20)
    cluster.wait(2 * AFTER, watching=False)  # the membership was unreachable
    assert cluster.leaving() == []
    cluster.wait(AFTER + 5)
    assert cluster.leaving() == ["e"]


def test_peer_removed_during_start_does_not_rejoin_with_its_data(
    cluster: Cluster,
) -> None:
    cluster.members["e"].resign()
    cluster.edit(lambda topology: topology.without(["e"]).next())
    with pytest.raises(ChangeConflict, match="gone on without this peer"):
        cluster.agent("e").join()
    cluster.stores["e"] = TwinStore("another")  # its data was set aside
    view = cluster.agent("e").join()
    assert view is not None
    assert "e" in view.members


def test_peer_that_was_removed_waits_until_it_is_added(cluster: Cluster) -> None:
    cluster.edit(lambda topology: topology.without(["e"]).next())
    cluster.stores["e"] = TwinStore("another")
    reasons: list[str] = []
    added: list[bool] = []
    agent = cluster.agent(
        "e", was_removed=True, added=lambda: added.append(True), report_wait=reasons.append
    )
    for _ in range(3):
        view = agent.join()
        assert view is not None
        assert "e" not in view.members
    (reason,) = reasons
    assert reason == (
        "the peer is not a member of the cluster: it was removed from it, and waits for: "
        "dstash cluster add e"
    )
    cluster.agents["a"]._look()
    cluster.agents["a"]._carry_out(AdminRequest("add", ["e"], 0, False))
    assert not added
    for _ in range(2):
        agent._look()
    assert agent._view is not None
    assert "e" in agent._view.members
    assert (added, reasons[1:]) == ([True], [""])


class TestRefusedAccess:
    """A membership that answers, and denies what a starting peer requests."""

    def refuse(self, cluster: Cluster, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def announce(announcement: Announcement) -> None:
            raise MembershipUnreachable("ACL not found", status=403)

        monkeypatch.setattr(cluster.members[name], "announce", announce)

    def test_member_starts_with_the_topology_on_its_disk(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cluster.agents["a"]._look()
        self.refuse(cluster, "a", monkeypatch)
        agent = cluster.agent("a")
        view = agent.join()
        assert view is not None
        assert view.topology == last_known(cluster.stores["a"])
        assert "ACL not found" in agent.problem
        assert "has started with the topology on its disk" in agent.problem

    def test_new_peer_ends_with_the_reason(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.refuse(cluster, "a", monkeypatch)
        cluster.stores["a"] = TwinStore("new")
        with pytest.raises(MembershipUnreachable, match="ACL not found"):
            cluster.agent("a").join()


class TestFailedRound:
    def agent_with(self, cluster: Cluster, shown: list[tuple[str, str]]) -> MembershipAgent:
        agent = cluster.agents["a"]
        agent._show = lambda source, text: shown.append((source, text))
        return agent

    @pytest.mark.parametrize("error", [ZeroDivisionError("no"), DStashError("no"), OSError("no")])
    def test_failed_round_is_reported_until_one_succeeds(
        self, cluster: Cluster, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown: list[tuple[str, str]] = []
        agent = self.agent_with(cluster, shown)

        def fail() -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(cluster.members["a"], "read", fail)
            assert agent._iterate() > 0
            assert agent._iterate() > 0
        assert agent._iterate() == 0
        (source, text), over = shown
        assert source == "membership"
        assert "no" in text
        assert over == ("membership", "")

    def test_round_failed_by_proposal_drops_the_proposal(self, cluster: Cluster) -> None:
        agent = self.agent_with(cluster, [])
        agent.propose([lambda topology: 1 / 0, lambda topology: None])  # type: ignore[list-item, return-value]
        assert agent._iterate() == 0
        assert not agent._proposals

    def test_round_failed_by_admin_request_answers_it(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        agent = self.agent_with(cluster, [])
        answers: list[Message] = []

        def fail(request: AdminRequest) -> None:
            raise ZeroDivisionError("no")

        monkeypatch.setattr(agent, "_carry_out", fail)
        agent.administer(AdminRequest("add", ["x"], 0, False), answers.append)
        assert agent._iterate() == 0
        (answer,) = answers
        assert isinstance(answer, Error)
        assert "ZeroDivisionError" in answer.text


class TestIndexSettings:
    def change(self, cluster: Cluster, **settings: int) -> Message:
        answers: list[Message] = []
        agent = cluster.agents["a"]
        agent.administer(IndexSettingsRequest("i", settings, 7), answers.append)
        assert agent._iterate() == 0
        [answer] = answers
        return answer

    def upgrade(self, cluster: Cluster) -> None:
        def upgraded(topology: Topology) -> Topology:
            members = tuple(replace(member, features=FEATURES) for member in topology.members)
            return replace(topology, members=members).next()

        cluster.edit(upgraded)
        agent = cluster.agents["a"]
        agent._steps._announcement = agent._announcement._replace(features=FEATURES)

    def test_request_changes_the_topology_once(self, cluster: Cluster) -> None:
        self.upgrade(cluster)
        first = self.change(cluster, max_ttl=60_000)
        assert isinstance(first, AdminReply)
        stored = cluster.members["a"].read().topology
        assert stored is not None
        assert stored.indexes == (IndexSettings("i", 0, 60_000, 7, stored.epoch),)
        again = self.change(cluster, max_ttl=60_000)
        assert isinstance(again, AdminReply)
        assert Topology.decode(again.topology).epoch == stored.epoch

    def test_request_that_is_not_possible_is_refused(self, cluster: Cluster) -> None:
        refused = self.change(cluster, ttl=1)
        assert isinstance(refused, Error)
        assert "a, b, c, d, e runs an earlier version" in refused.text
        self.upgrade(cluster)
        refused = self.change(cluster, tll=1)
        assert isinstance(refused, Error)
        assert refused.text == "no setting 'tll' of an index; there are ttl, max_ttl"


class TestUnstorableTopology:
    def fill_disk(self, store: TwinStore, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(name: bytes, content: bytes) -> None:
            raise DiskFull("no room")

        monkeypatch.setattr(store, "mark", refuse)

    def test_topology_that_cannot_be_stored_is_used_and_stored_later(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        agent, store = cluster.agents["a"], cluster.stores["a"]
        published: list[View] = []
        agent._publish = published.append
        epoch = cluster.members["a"].read().topology.next().epoch  # type: ignore[union-attr]
        with monkeypatch.context() as patched:
            self.fill_disk(store, patched)
            cluster.edit(lambda topology: topology.next())  # type: ignore[attr-defined]
            agent._iterate()
            assert agent._view is not None
            assert agent._view.epoch == epoch
            assert f"the topology of epoch {epoch} cannot be stored" in agent.problem
            assert [(view.epoch, view.is_kept) for view in published] == [(epoch, False)]
        agent._iterate()
        assert agent.problem == ""
        assert [(view.epoch, view.is_kept) for view in published[1:]] == [(epoch, True)]
        kept = last_known(store)
        assert kept is not None
        assert kept.epoch == epoch

    def test_first_topology_of_member_must_be_stored(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cluster.members["f"] = LocalMembership(cluster.folder, "c")
        cluster.stores["f"] = TwinStore("store-f")
        self.fill_disk(cluster.stores["f"], monkeypatch)
        with pytest.raises(DiskFull):
            cluster.agent("f").join()
