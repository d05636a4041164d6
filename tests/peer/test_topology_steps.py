"""Topology steps: what a peer changes next, by what it has read and what it knows."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest

from dstash.cluster.membership.interface import StoredTopology
from dstash.cluster.topology.announcement import FEATURES, Announcement
from dstash.cluster.topology.indexes.steps import with_settings
from dstash.cluster.topology.joining import (
    KEPT,
    MAX_FURTHER,
    RESTORED_JUMP,
    member_of,
    restore_above,
)
from dstash.cluster.topology.topology import State, Topology
from dstash.cluster.topology.transitions import Proposal
from dstash.errors import ChangeConflict, ForeignStore, MembershipUnreachable
from dstash.peer.supervision.complaints import Complaints
from dstash.peer.topology_steps import Known, TopologySteps
from dstash.store.interface import Identity
from dstash.store.memory import TwinStore
from tests.peer.parts import EPOCH, view_of

TOPOLOGY = view_of("abcde").topology
NEW = Known(None, None, was_there=False)
AFTER = 600.0


class Steps:
    """The steps of one peer; ``alive`` are the peers that hold their lock."""

    def __init__(self, peer: str = "a", *, waits_to_be_added: bool = False) -> None:
        self.now, self.random = 1000.0, 0.0
        self.alive = "abcde"
        self.store = TwinStore(f"store-{peer}")
        self.proposals: deque[Proposal] = deque()
        self.of_peer = TopologySteps(
            announcement(peer),
            self.store,
            lambda: {name: announcement(name) for name in self.alive},
            self.proposals,
            cluster="c",
            replicas=3,
            min_peers=3,
            waits_to_be_added=waits_to_be_added,
            down_out_after=AFTER,
            max_gap=10,
            complaints=Complaints("failed", lambda: self.now),
            clock=lambda: self.now,
            random=lambda: self.random,
        )

    def next(self, topology: Topology | None, known: Known = NEW) -> Topology | None:
        return self.of_peer.next_change(StoredTopology(topology, 1), known)

    def wait(self, seconds: int) -> Topology | None:
        """Look every two seconds; return the last step."""
        step = None
        for _ in range(seconds // 2):
            self.now += 2
            step = self.next(TOPOLOGY, MEMBER)
        return step


def announcement(peer: str) -> Announcement:
    return Announcement(peer, f"tcp://{peer}:1", f"store-{peer}", peer, 1.0)


MEMBER = Known(view_of("abcde"), TOPOLOGY, was_there=True)


def test_settings_that_a_member_of_an_earlier_version_removed_are_restored() -> None:
    members = tuple(replace(member, features=FEATURES) for member in TOPOLOGY.members)
    last = with_settings(replace(TOPOLOGY, members=members), "i", {"ttl": 5}, 1)
    erased = replace(last, indexes=(), indexes_epoch=0).next()
    known = Known(None, last, was_there=True)
    steps = Steps()
    step = steps.next(replace(erased, members=(member_of(announcement("a")), *members[1:])), known)
    assert step is not None
    assert (step.indexes, step.epoch) == (last.indexes, erased.epoch + 1)
    assert steps.next(step, known) is None


def test_peer_without_a_past_founds_a_cluster() -> None:
    founded = Steps().next(None)
    assert founded is not None
    assert (founded.epoch, founded.formed, founded.min_peers) == (1, False, 3)
    assert [member.id for member in founded.members] == ["a"]


def test_member_restores_a_topology_that_is_gone() -> None:
    restored = Steps().next(None, MEMBER)
    assert restored is not None
    assert restored.epoch == EPOCH + RESTORED_JUMP
    assert restored.restored is not None


def test_two_restorations_of_one_topology_have_different_epochs() -> None:
    """The first may have been lost again before this peer heard of it (T5)."""
    epochs = set()
    for chance in (0.0, 0.5, 0.999):
        steps = Steps()
        steps.random = chance
        restored = steps.next(None, MEMBER)
        assert restored is not None
        epochs.add(restored.epoch - EPOCH - RESTORED_JUMP)
    assert epochs == {0, MAX_FURTHER // 2, int(0.999 * MAX_FURTHER)}


class TestLostEpochs:
    """A client has an epoch that no member knows."""

    def test_topology_is_restored_above_it(self) -> None:
        for chance in (0.0, 0.5):  # another member may have done the same, and it was lost again
            steps = Steps()
            steps.random = chance
            restored = self.restored_above(steps, EPOCH + 7)
            assert restored is not None
            jump = RESTORED_JUMP + int(chance * MAX_FURTHER)
            assert restored.epoch == EPOCH + 7 + jump

    def test_epochs_of_an_earlier_restoration_are_not_used_again(self) -> None:
        steps = Steps()
        first = self.restored_above(steps, EPOCH + 7)
        assert first is not None
        steps.of_peer.begin(first, StoredTopology(TOPOLOGY, 1))
        steps.of_peer.finish(first, StoredTopology(TOPOLOGY, 1))
        again = self.restored_above(steps, EPOCH + 7)
        assert again is not None
        assert again.epoch >= first.epoch + RESTORED_JUMP

    def test_restoration_that_no_majority_could_confirm_is_not_begun(self) -> None:
        steps = Steps()
        steps.alive = "ab"
        assert self.restored_above(steps, EPOCH + 7) is None
        assert not steps.proposals, "it does not wait"

    def restored_above(self, steps: Steps, epoch: int) -> Topology | None:
        steps.proposals.append(lambda latest: restore_above(latest, "a", epoch))
        return steps.next(TOPOLOGY, MEMBER)


def test_corrupt_topology_founds_no_cluster() -> None:
    with pytest.raises(MembershipUnreachable, match="a member that runs writes it again"):
        Steps().of_peer.next_change(StoredTopology(None, 1, "it is cut off"), NEW)


def test_new_peer_joins_a_formed_cluster() -> None:
    joined = Steps("f").next(TOPOLOGY)
    assert joined is not None
    member = joined.member("f")
    assert member is not None
    assert member.state is State.JOINING


def test_new_peer_may_wait_to_be_added() -> None:
    assert Steps("f", waits_to_be_added=True).next(TOPOLOGY) is None


def test_member_that_is_current_has_no_step() -> None:
    assert Steps().next(TOPOLOGY, MEMBER) is None


def test_epoch_of_a_heard_topology_is_not_used_for_another_one() -> None:
    """The membership lost a change that one member knew, and its epoch was given again."""
    stored = TOPOLOGY.next()
    heard = replace(stored, replicas=2)
    step = Steps().next(stored, MEMBER._replace(heard=heard))
    assert step is not None
    assert step == replace(stored, epoch=stored.epoch + RESTORED_JUMP + 1)
    assert Steps().next(stored, MEMBER._replace(heard=stored)) is None


def test_removed_member_has_no_step() -> None:
    assert Steps().next(TOPOLOGY.without(["a"]).next(), MEMBER) is None


def test_member_removed_before_its_first_view_does_not_join() -> None:
    steps = Steps()
    steps.store.mark(KEPT, TOPOLOGY.encode())
    with pytest.raises(ChangeConflict, match="gone on without this peer"):
        steps.next(TOPOLOGY.without(["a"]).next())


def test_store_of_another_cluster_is_refused() -> None:
    steps = Steps()
    steps.store.adopt(Identity("another", "a", "store-a"))
    with pytest.raises(ForeignStore, match="founded without this store"):
        steps.next(TOPOLOGY)


def test_proposals_are_made_in_order_and_dropped_when_not_needed() -> None:
    steps = Steps()
    steps.proposals.extend(
        [lambda topology: None, lambda topology: 1 / 0, Topology.next]  # type: ignore[list-item,return-value]
    )
    assert steps.next(TOPOLOGY, MEMBER) == TOPOLOGY.next()
    assert list(steps.proposals) == [Topology.next]


class TestAbandonedCluster:
    """Another cluster has replaced the topology of ours."""

    FOREIGN = replace(view_of("xyz").topology, cluster_id="foreign")

    def test_topology_is_restored_when_no_foreign_member_lives(self) -> None:
        restored = Steps().next(self.FOREIGN, MEMBER)
        assert restored is not None
        assert restored.cluster_id == TOPOLOGY.cluster_id

    @pytest.mark.parametrize("known", [MEMBER, MEMBER._replace(was_there=False)])
    def test_topology_stands_otherwise(self, known: Known) -> None:
        steps = Steps()
        steps.store.adopt(Identity(TOPOLOGY.cluster_id, "a", "store-a"))
        steps.alive = "ax" if known.was_there else "a"
        with pytest.raises(ForeignStore):
            steps.next(self.FOREIGN, known)


class TestLongDown:
    def test_member_that_is_down_for_long_is_removed(self) -> None:
        steps = Steps()
        steps.alive = "abcd"
        assert steps.wait(int(AFTER)) is None
        removed = steps.wait(4)
        assert removed is not None
        assert [m.id for m in removed.members if m.state is State.LEAVING] == ["e"]

    def test_time_without_steps_does_not_count(self) -> None:
        steps = Steps()
        steps.alive = "abcd"
        steps.wait(20)
        steps.now += 2 * AFTER
        assert steps.wait(int(AFTER)) is None
        assert steps.wait(4) is not None

    def test_member_that_was_back_begins_again(self) -> None:
        steps = Steps()
        steps.alive = "abcd"
        steps.wait(int(AFTER) - 4)
        steps.alive = "abcde"
        steps.wait(2)
        steps.alive = "abcd"
        assert steps.wait(int(AFTER)) is None
