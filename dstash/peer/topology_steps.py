"""Topology steps: what a peer changes next in the topology that it has read.

A peer founds a cluster or joins one, restores a topology that the membership has lost, makes the
steps that it has proposed itself, and removes members that have been down for long.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

import structlog

from dstash.cluster.membership.interface import StoredTopology
from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.indexes.steps import with_settings_kept
from dstash.cluster.topology.joining import (
    MAX_FURTHER,
    above_restored,
    confirmed,
    found,
    join,
    restore,
    shares_epoch,
    supersedes,
    under_own_epoch,
    was_in_cluster,
    was_removed,
)
from dstash.cluster.topology.restorations import Restorations
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.transitions import Proposal, drop_dead_joiners, forget, switch
from dstash.cluster.topology.view import View
from dstash.errors import ChangeConflict, ForeignStore, MembershipUnreachable
from dstash.peer.supervision.complaints import Complaints
from dstash.store.interface import Identity, Store

_log = structlog.get_logger("dstash.peer")


class Known(NamedTuple):
    """What a peer knows of its cluster before it reads the membership.

    ``view``: None before the first. ``last``: the last topology that the membership had, as far as
    this peer knows; None if it has never been in a cluster. ``was_there``: whether the membership
    has had this peer's cluster since this process began. ``heard``: the later topology of another
    member that is used while the membership does not answer.
    """

    view: View | None
    last: Topology | None
    was_there: bool
    heard: Topology | None = None


class TopologySteps:
    """Decides the steps of one peer; the membership agent makes them, by compare-and-set.

    Args:
        announcement: what the peer announces of itself.
        store: its identity is set when the cluster is formed.
        alive: returns the announcements of the live members, from the membership.
        proposals: steps that this peer wants; a step that is not needed any more is dropped.
        cluster: the name of a cluster that is founded.
        replicas: copies of each record in a cluster that is founded.
        min_peers: members that a cluster needs to form.
        waits_to_be_added: join a formed cluster only by an admin request.
        down_out_after: seconds after which a member that is down is removed; 0 for never.
        max_gap: seconds without a step after which it is not known which members stayed down.
        complaints: logs proposals that fail.
        clock: returns monotonic seconds.
        random: returns a number from 0 to 1.
    """

    def __init__(
        self,
        announcement: Announcement,
        store: Store,
        alive: Callable[[], Mapping[str, Announcement]],
        proposals: deque[Proposal],
        *,
        cluster: str,
        replicas: int,
        min_peers: int,
        waits_to_be_added: bool,
        down_out_after: float,
        max_gap: float,
        complaints: Complaints,
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._announcement = announcement
        self._store = store
        self._alive = alive
        self._proposals = proposals
        self._cluster = cluster
        self._replicas = replicas
        self._min_peers = min_peers
        self._waits_to_be_added = waits_to_be_added
        self._down_out_after = down_out_after
        self._max_gap = max_gap
        self._complaints = complaints
        self._clock = clock
        self._random = random
        self._restorations = Restorations(store)
        self._last_read = clock()
        self._down_since: dict[str, float] = {}

    def next_change(self, stored: StoredTopology, known: Known) -> Topology | None:
        """Return the topology after the next step; None when no step is due.

        Raises:
            MembershipUnreachable: what the membership has is corrupt, and this peer is new.
            ForeignStore: the store belongs to another cluster.
            ChangeConflict: the peer was removed before its first view.
        """
        topology = stored.topology
        if topology is not None and is_removed(self._announcement.peer, known.view, topology):
            return None
        if stored.corruption and known.view is None and not was_in_cluster(self._store):
            raise MembershipUnreachable(
                f"{stored.corruption}; a member that runs writes it again. Where no peer has ever "
                "joined, delete the file, and a new cluster begins"
            )
        step = self._restore_or_join(topology, known)
        if step is not None or topology is None or topology.restored is not None:
            return step
        step = with_settings_kept(topology, known.last)
        if step is not None:
            _log.warning(
                "a member of an earlier version has removed the settings of indexes; restoring",
                epoch=topology.epoch,
            )
            return step
        while self._proposals:
            step = self._propose_first(topology)
            if step is not None:
                return step
            self._proposals.popleft()
        return switch(topology) or self._remove_long_down(topology)

    def begin(self, step: Topology, stored: StoredTopology) -> None:
        """Remember the epoch of a restoration, before the membership gets it."""
        if _is_restoration(step, stored):
            self._restorations.begin(step.epoch)

    def finish(self, step: Topology, stored: StoredTopology) -> None:
        """Remember the epoch of a restoration that the membership has accepted."""
        if _is_restoration(step, stored):
            self._restorations.finish(step.epoch)

    def _propose_first(self, topology: Topology) -> Topology | None:
        try:
            step = self._proposals[0](topology)
        except Exception as error:  # a defect: maintenance proposes the step again
            self._complaints.log(error)
            return None
        if step is None or step.restored is None:
            return step
        alive = self._alive()
        if 2 * sum(member.id in alive for member in topology.members) <= len(topology.members):
            return None  # it would wait for others, and prevent every other step meanwhile
        further = int(self._random() * MAX_FURTHER)
        step = above_restored(step, self._restorations.epoch, further)
        _log.warning(
            "clients have a later epoch than the topology, which was lost; restoring above it",
            epoch=topology.epoch,
            restored=step.epoch,
        )
        return step

    def _remove_long_down(self, topology: Topology) -> Topology | None:
        """Remove members that have been down for long, if others can take their data."""
        alive = self._alive()
        now = self._clock()
        # After a time without the membership, this peer does not know which peers were down
        # throughout; and they take their locks again one by one.
        before = self._down_since if now - self._last_read < self._max_gap else {}
        self._last_read = now
        self._down_since = {
            member.id: before.get(member.id, now)
            for member in topology.members
            if member.id not in alive
        }
        if not self._down_out_after:
            return None
        expired = now - self._down_out_after
        down = [peer for peer, since in self._down_since.items() if since < expired]
        step = forget if topology.change is None else drop_dead_joiners
        return step(topology, down, len(self._down_since))

    def _restore_or_join(self, topology: Topology | None, known: Known) -> Topology | None:
        last, me, above = known.last, self._announcement.peer, self._restorations.epoch
        further = int(self._random() * MAX_FURTHER)
        if topology is None:
            if last is None or not last.formed:
                return found(
                    self._announcement,
                    self._cluster,
                    uuid.uuid4().hex,
                    self._replicas,
                    self._min_peers,
                )
            _log.warning("the membership has lost the topology; restoring", epoch=last.epoch)
            return restore(last, None, me, above, further)
        if last is not None and (
            supersedes(last, topology, self._cluster) or self._is_abandoned(topology, known)
        ):
            _log.warning(
                "the membership has an older topology, or that of a cluster that has not formed; "
                "restoring",
                epoch=last.epoch,
                found=topology.epoch,
            )
            return restore(last, topology, me, above, further)
        self.check_cluster(topology)
        if last is not None and last.formed and self._restorations.may_repeat(topology, me):
            _log.warning("the restored topology was lost again; restoring", epoch=last.epoch)
            return restore(last, topology, me, above, further)
        if topology.restored is not None:
            return confirmed(topology, me)
        if any(seen is not None and shares_epoch(seen, topology) for seen in (last, known.heard)):
            _log.warning(
                "the membership has another topology of the last known epoch (an older copy was "
                "put back, and the cluster has changed since); continuing under a later epoch",
                epoch=topology.epoch,
            )
            return under_own_epoch(topology, above, further)
        if known.view is None and was_removed(self._store, me, topology):
            raise ChangeConflict("the cluster has just gone on without this peer; start it again")
        is_new = topology.member(me) is None
        if is_new and topology.formed and self._waits_to_be_added:
            return None
        return join(topology, self._announcement)

    def _is_abandoned(self, topology: Topology, known: Known) -> bool:
        """Whether the topology of another cluster, with no live member, has replaced ours.

        Only a peer that has seen its own cluster in this membership may decide so: a peer that
        starts may be configured with the wrong membership.
        """
        last = known.last
        if not known.was_there or last is None or not last.formed:
            return False
        if topology.cluster_id == last.cluster_id:
            return False
        alive = {announced.store_id for announced in self._alive().values()}
        return not any(member.store_id in alive for member in topology.members)

    def check_newest(self, topology: Topology, last: Topology | None) -> None:
        """Check that peers are not about to replace the topology of the membership.

        Raises:
            ChangeConflict: they are.
        """
        if last is None:
            return
        if supersedes(last, topology, self._cluster) or shares_epoch(last, topology):
            raise ChangeConflict(
                "the membership has an older topology than the peers; try again when they have "
                "restored the newest"
            )

    def check_cluster(self, topology: Topology) -> None:
        """Adopt the cluster once it is formed.

        Raises:
            ForeignStore: the store belongs to another cluster.
        """
        if self._store.identity is None and (not topology.formed or topology.restored is not None):
            return
        try:
            self._store.adopt(
                Identity(topology.cluster_id, self._announcement.peer, self._announcement.store_id)
            )
        except ForeignStore as error:
            members = ", ".join(member.id for member in topology.members)
            raise ForeignStore(
                f"{error}: the membership has a cluster {topology.cluster!r} of {members} that "
                "was founded without this store. Correct the setting that names the membership; "
                "or, if an empty peer has started first after the topology was lost, stop those "
                "peers, delete the topology from the membership, and start this peer first"
            ) from None


def _is_restoration(step: Topology, stored: StoredTopology) -> bool:
    """Whether a step restores a topology, confirms it, or skips epochs."""
    before = stored.topology
    is_unconfirmed = step.restored or (before is not None and before.restored)
    return bool(is_unconfirmed) or step.epoch > (before.epoch if before is not None else 0) + 1


def is_removed(peer: str, view: View | None, topology: Topology) -> bool:
    """Whether a peer that was a member in its view is not in a later topology of its cluster."""
    return (
        view is not None
        and topology.restored is None
        and view.topology.cluster_id == topology.cluster_id
        and view.epoch < topology.epoch
        and peer in view.members
        and topology.member(peer) is None
    )


def unconfirmed_because(topology: Topology) -> str:
    """Return why a restored topology is not used yet; empty if it may be used."""
    if topology.restored is None:
        return ""
    absent = [
        member.id for member in topology.members if member.id not in topology.restored.confirmed
    ]
    needed = len(topology.members) // 2 + 1 - len(topology.restored.confirmed)
    return (
        "the membership had lost the topology (or this peer looks in the wrong place): it was "
        f"restored, and is used once {needed} more of {', '.join(absent)} have confirmed it"
    )
