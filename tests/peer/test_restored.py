"""A lost topology is restored by peers, and only by a majority of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dstash.cluster.membership.local.membership import LocalMembership
from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.joining import RESTORED_JUMP, last_known, was_removed
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.view import View
from dstash.errors import ChangeConflict, ForeignStore
from dstash.peer.membership_agent import MembershipAgent
from dstash.store.memory import TwinStore
from dstash.wire.messages import AdminRequest, Error


class Process:
    """A peer with its membership agent, between two starts."""

    def __init__(self, name: str, store: TwinStore, folder: Path, min_peers: int) -> None:
        self.name = name
        self.views: list[View] = []
        self.said: list[str] = []
        self.membership = LocalMembership(folder, "c")
        self.agent = MembershipAgent(
            self.membership,
            Announcement(name, f"tcp://{name}:1", store.store_id, name, 1.0),
            store,
            cluster="c",
            replicas=3,
            min_peers=min_peers,
            waits_to_be_added=False,
            down_out_after=0,
            publish=self.views.append,
            removed=lambda: None,
            report_wait=self.said.append,
            random=lambda: 0.0,
        )

    @property
    def epoch(self) -> int:
        return self.views[-1].epoch if self.views else 0


class Machines:
    """Stores that outlive processes, and folders of memberships."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.stores = {name: TwinStore(f"store-{name}") for name in "abcd"}
        self.running: list[Process] = []

    def start(self, name: str, where: str = "right", min_peers: int = 3) -> Process:
        process = Process(name, self.stores[name], self.home / where, min_peers)
        self.running.append(process)
        process.agent.join()
        return process

    def stop_all(self) -> None:
        for process in self.running:
            process.membership.close()
        self.running.clear()

    def look(self) -> None:
        for _ in range(3):
            for process in self.running:
                process.agent._look()

    def move(self, process: Process, where: str) -> None:
        """Let a peer find another directory in the place of its membership."""
        process.membership.close()
        process.agent._membership = process.membership = LocalMembership(self.home / where, "c")

    def topology(self, where: str = "right") -> Topology:
        membership = LocalMembership(self.home / where, "c")
        found = membership.read().topology
        membership.close()
        assert found is not None
        return found

    def edit(self, change: Callable[[Topology], Topology]) -> None:
        """Change the topology as another peer does."""
        membership = self.running[0].membership
        stored = membership.read()
        assert stored.topology is not None
        assert membership.compare_and_set(change(stored.topology).next(), stored.token)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path)
    yield made
    made.stop_all()


def formed(machines: Machines) -> Topology:
    for name in "abc":
        machines.start(name)
    machines.look()
    topology = machines.topology()
    assert topology.formed
    return topology


def test_peer_with_mistyped_directory_serves_no_client(machines: Machines) -> None:
    before = formed(machines)
    machines.stop_all()
    lost = machines.start("a", where="typo")
    machines.look()
    assert lost.views == []
    assert "b, c have confirmed it" in lost.said[-1]
    assert last_known(machines.stores["a"]) == before
    machines.stop_all()
    back = machines.start("a")
    assert back.views[-1].topology == before


def test_restored_topology_needs_majority_and_skips_epochs(machines: Machines) -> None:
    before = formed(machines)
    machines.stop_all()
    first, second = machines.start("a", where="new"), machines.start("b", where="new")
    machines.look()
    assert first.epoch == second.epoch > before.epoch + RESTORED_JUMP
    assert first.views[-1].topology.restored is None
    third = machines.start("c", where="new")
    assert replace(third.views[-1].topology, epoch=before.epoch) == before


def test_running_peers_restore_lost_topology(machines: Machines) -> None:
    before = formed(machines)
    for process in machines.running:
        machines.move(process, "x")
    machines.look()
    epochs = {process.epoch for process in machines.running}
    assert len(epochs) == 1
    assert epochs.pop() > before.epoch + RESTORED_JUMP


@pytest.mark.parametrize("restarts", [False, True])
def test_topology_that_is_lost_twice_is_restored_under_other_epochs(
    machines: Machines, restarts: bool
) -> None:
    """After the first time, ``b`` alone uses the topology, and ``c`` has confirmed it."""
    formed(machines)
    a, b, c = machines.running
    for process in (c, b):
        machines.move(process, "lost once")
        process.agent._look()
    used = b.views[-1].topology
    assert used.epoch > c.epoch
    if restarts:
        machines.running.remove(c)
        c.membership.close()
    machines.move(a, "lost twice")
    a.agent._look()
    if restarts:
        c = machines.start("c", where="lost twice")
    else:
        machines.move(c, "lost twice")
    for process in (c, a, c):
        process.agent._look()
    assert a.epoch == c.epoch > used.epoch + RESTORED_JUMP // 2
    machines.move(b, "lost twice")
    machines.look()
    assert {process.epoch for process in machines.running} == {a.epoch}


def test_newer_copy_replaces_topology_restored_first(machines: Machines) -> None:
    formed(machines)
    machines.running[0].membership.close()
    del machines.running[0]  # a does not learn of the following changes
    machines.edit(lambda topology: replace(topology, min_peers=2))
    machines.look()
    machines.stop_all()
    machines.start("a", where="new")
    assert machines.topology("new").min_peers == 3
    machines.start("b", where="new")
    machines.look()
    topology = machines.topology("new")
    assert (topology.min_peers, topology.restored) == (2, None)


def test_peer_missing_in_an_unconfirmed_copy_was_not_removed(machines: Machines) -> None:
    formed(machines)
    old = {name: machines.stores[name].marks.copy() for name in "abc"}
    joined = machines.start("d")
    machines.look()
    assert joined.views
    machines.stop_all()
    machines.stores["a"].marks = old["a"]
    machines.start("a", where="new")
    assert not was_removed(machines.stores["d"], "d", machines.topology("new"))
    machines.start("d", where="new")
    assert machines.topology("new").member("d") is not None


def test_admin_request_on_unconfirmed_topology_is_refused(machines: Machines) -> None:
    formed(machines)
    machines.stop_all()
    alone = machines.start("a", where="new")
    answers: list[object] = []
    alone.agent.administer(AdminRequest("remove", ["b"]), answers.append)
    alone.agent._carry_out_admin_requests()
    assert isinstance(answers[0], Error)
    assert answers[0].code == ChangeConflict.code


class TestOlderCopyPutBack:
    """An older copy of the topology, while one peer alone knows a later one."""

    @pytest.fixture
    def forked(self, machines: Machines) -> Machines:
        """Peers of which the first knows another topology of the next epoch than the others."""
        before = formed(machines)
        ahead, *others = machines.running
        machines.edit(lambda topology: replace(topology, min_peers=2))
        ahead.agent._look()
        machines.edit(lambda topology: replace(before, epoch=before.epoch - 1))
        machines.edit(lambda topology: replace(topology, min_peers=1))
        for other in others:
            other.agent._look()
        assert {process.epoch for process in machines.running} == {before.epoch + 1}
        return machines

    def test_shared_epoch_ends_far_ahead_with_the_topology_of_the_membership(
        self, forked: Machines
    ) -> None:
        shared = forked.topology()
        forked.look()
        topology = forked.topology()
        assert topology == replace(shared, epoch=shared.epoch + RESTORED_JUMP + 1)
        assert [process.views[-1].topology for process in forked.running] == [topology] * 3
        forked.look()
        assert forked.topology() == topology

    def test_peer_that_starts_finds_it_by_the_topology_on_its_disk(self, forked: Machines) -> None:
        shared = forked.topology()
        forked.stop_all()
        forked.start("a")
        assert forked.topology().epoch == shared.epoch + RESTORED_JUMP + 1

    def test_admin_request_is_refused_until_then(self, forked: Machines) -> None:
        ahead, before = forked.running[0].agent, forked.topology()
        answers: list[Any] = []
        ahead.administer(AdminRequest("remove", ["b"]), answers.append)
        ahead._carry_out_admin_requests()
        assert forked.topology() == before
        assert answers[0].code == ChangeConflict.code
        ahead._look()
        ahead.administer(AdminRequest("remove", ["b"]), answers.append)
        ahead._carry_out_admin_requests()
        assert forked.topology().change is not None


def test_empty_peer_started_first_joins_restored_cluster(machines: Machines) -> None:
    before = formed(machines)
    machines.stop_all()
    machines.stores["d"] = TwinStore("store-d")
    empty = machines.start("d", where="new")
    assert not empty.views[-1].topology.formed
    assert machines.stores["d"].identity is None
    for name in "abc":
        machines.start(name, where="new")
    machines.look()
    topology = machines.topology("new")
    assert topology.cluster_id == before.cluster_id
    assert topology.member("d") is not None
    assert machines.stores["d"].identity is not None
    assert machines.stores["d"].identity.cluster == before.cluster_id
    assert {process.epoch for process in machines.running} == {topology.epoch}


def test_cluster_formed_by_empty_peer_is_refused_in_one_line(
    machines: Machines,
) -> None:
    formed(machines)
    machines.stop_all()
    machines.start("d", where="new", min_peers=1)
    with pytest.raises(ForeignStore, match=r"was founded without this store.*delete the topology"):
        machines.start("a", where="new")
