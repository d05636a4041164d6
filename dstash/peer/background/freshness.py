"""Freshness: whether this peer's store may vote, because it was not rolled back.

A peer that starts neither votes nor answers until enough replicas of every partition it holds
(itself included) have reported how new they remember its store: so many that at least one of them
has seen every write that this peer acked. Later evidence ends the vote as well. See
``cluster/replication/lineage.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

import structlog

from dstash import events
from dstash.cluster.replication.lineage import Mark
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.rollback_detection import Evidence, collect_evidence
from dstash.cluster.replication.tasks import Merge, Pause, Scheduler, Task
from dstash.cluster.topology import transitions
from dstash.cluster.topology.joining import is_newcomer
from dstash.cluster.topology.life import Life
from dstash.cluster.topology.transitions import Proposal
from dstash.cluster.topology.view import View
from dstash.errors import DStashError
from dstash.peer.background.claims import SUSPECTED, Claims
from dstash.store.interface import LACKING_MARK

_log = structlog.get_logger("dstash.peer")

#: How often (milliseconds) this peer reports how new its store is, if that has changed.
_GOSSIP_MS: Final = 2000
#: How often (milliseconds) it reports and asks even if it has not changed.
_FULL_MS: Final = 30_000
#: How soon (milliseconds) a member that did not answer is asked again: alive, or down.
_RETRY_MS: Final = 250
_RETRY_DOWN_MS: Final = 1000
#: How often (milliseconds) due reports and questions are looked for.
_CHECK_INTERVAL_MS: Final = 100
#: How long (milliseconds) a stop waits at most until other peers have the last report.
_LAST_REPORT_MS: Final = 500
#: How soon (milliseconds) it is sent again to a member that it did not reach.
_LAST_RETRY_MS: Final = 50
#: The task that stores what other members reported.
_KEEP: Final = "seen:keep"
#: The task that stores that a sole replica is used although it may lack writes.
_LACKING: Final = "seen:lacking"


class Freshness:
    """Asks other peers about this store, reports how new it is, and judges the evidence.

    Args:
        replica: this peer.
        scheduler: runs the questions.
        propose: takes a topology step.
    """

    def __init__(
        self,
        replica: Replica,
        scheduler: Scheduler,
        propose: Callable[[Proposal], None],
    ) -> None:
        self._replica = replica
        self._local_partitions = replica.local_partitions
        self._scheduler = scheduler
        self._propose = propose
        self._view: View | None = None
        self._is_old = False
        self._confirmed = False
        #: Members that have reported what they remember, since this process began.
        self._heard: set[str] = set()
        #: Those of them that count as evidence that the store is not old.
        self._confirmed_by: set[str] = set()
        self._asking: set[str] = set()
        self._due: dict[str, int] = {}
        #: By member: the life that was reported to it last, and when (steady milliseconds).
        self._reported: dict[str, tuple[Life, int]] = {}
        self._next_look = 0
        self._next_mark = 0
        self._last_report_until: int | None = None
        #: Members that the last report has not reached.
        self._reporting: set[str] = set()
        #: Whether the disk had no room for what other members reported.
        self._cannot_keep = False
        self._claims = Claims(self._local_partitions.lineage, self._local_partitions.store.store_id)
        #: Members to ask again because a client has seen a newer state of this store.
        self._to_confirm: set[str] = set()

    # -- for maintenance

    def install(self, view: View) -> None:
        """Take a new view."""
        before, self._view = self._view, view
        local_partitions = self._local_partitions
        local_partitions.store_ids = {
            member.id: member.store_id for member in view.topology.members
        }
        local_partitions.memory.keep_only(local_partitions.store_ids.values())
        arrived = view.alive - (before.alive if before else frozenset())
        for peer in arrived | (self._due.keys() - view.members.keys()):
            self._due.pop(peer, None)
            self._reported.pop(peer, None)
        if before is None or before.epoch != view.epoch:
            if self._is_old and self._votes(view):
                # The topology may have been lost with the step, and restored without it.
                self._propose_loss(view)
            self._forget_other_stores(before, view)
            if local_partitions.store.may_lack_writes:
                self._judge_unsynced(view)
            member = view.members.get(self._replica.me)
            if member is not None and len(member.seen) == len(Life._fields):
                self._judge(
                    local_partitions.lineage.contradicts(Life(*member.seen)), "the topology"
                )
        self._evaluate()
        self._next_look = 0

    def tick(self, now: int) -> None:
        """Send the questions and reports that are due."""
        if self._view is None or now < self._next_look:
            return
        self._next_look = now + _CHECK_INTERVAL_MS
        for peer in sorted(self._view.members.keys() - self._asking - {self._replica.me}):
            if now >= self._due.get(peer, 0) and self._has_news(peer, self._view.alive, now):
                self._ask(peer)
        if self._local_partitions.memory.is_dirty and now >= self._next_mark:
            self._next_mark = now + _GOSSIP_MS
            self._scheduler.spawn(_KEEP, self._keep())

    def why_not(self) -> str:
        """Return why the store may not vote yet; empty when it may."""
        if self._local_partitions.freshness_confirmed or self._view is None:
            return ""
        if self._is_old:
            what = "the peer's store is an old copy"
            if self._local_partitions.store.may_lack_writes:
                what = "the peer's machine stopped before all commits were synced"
            return f"{what}; its data will be streamed from other replicas"
        members = self._view.members
        owners = {peer for row in self._lacking(self._view) for peer in row}
        missing = sorted(owners - self._confirmed_by - {self._replica.me})
        able = [peer for peer in missing if members[peer].synced]
        text = "checking with other replicas that the store was not rolled back"
        text += f"; waiting for {' or '.join(able)}" if able else ""
        if lost := [peer for peer in missing if not members[peer].synced]:
            text += f"; {', '.join(lost)} cannot confirm it: their stores lost their data"
        return text

    def streamed(self) -> Task:
        """Take note, durably, that a store that did not count has all its data.

        From then on, what other peers remember of the old store no longer counts. A newcomer may
        have lost data as well, after it had been complete. A store that counts has only gained some
        partitions, or their registers: that is no evidence about the rest.
        """
        view = self._view
        member = view.members.get(self._replica.me) if view is not None else None
        if view is None or member is None or self._votes(view):
            return
        self._confirmed = True
        yield from self._begin_life(view)

    def newest_lives(self) -> dict[str, Life]:
        """Return the newest life that was seen of each store. Any thread may call this."""
        memory = self._local_partitions.memory
        lives = {
            store_id: life
            for store_id in list(self._local_partitions.store_ids.values())
            if (life := memory.newest(store_id)) is not None
        }
        if self._may_report():
            lives[self._local_partitions.store.store_id] = self._local_partitions.lineage.current
        return lives

    # -- claims of clients

    def hear_client(self, seen: list[list[Any]]) -> None:
        """Take the lives that a client saw. If this store was newer, ask the members again.

        Raises:
            ProtocolError: it is not a list of lives.
        """
        if self._claims.take(seen):
            self._to_confirm = set(self._view.members if self._view else ()) - {self._replica.me}
            self._next_look = 0

    def suspicion(self) -> str:
        """Return the problem that a client has seen a newer store; empty when there is none."""
        view = self._view
        if view is None or self._is_old or not self._votes(view):
            return ""
        return SUSPECTED if self._claims.contradict() else ""

    def describe_store(self) -> list[Any]:
        """Return store id and life for clients, which report them back."""
        return [self._local_partitions.store.store_id, *self._life_to_report()]

    # -- the last report

    def send_last_report(self, now: int) -> None:
        """Report to all members how new this store is, and keep what they report meanwhile.

        The process stops, so that this is its last chance. A member that is not connected, because
        one of both has just started, is tried again for as long as the stop may wait.

        Args:
            now: steady milliseconds. Call it at each tick.
        """
        if self._last_report_until is None:
            self._last_report_until = now + _LAST_REPORT_MS
            self._begin_last_report()
            self._cannot_keep = False
        is_dirty = self._local_partitions.memory.is_dirty and not self._cannot_keep
        if is_dirty and not self._scheduler.running(_KEEP):
            self._scheduler.spawn(_KEEP, self._keep())

    def awaits_last_report(self, now: int) -> bool:
        """Whether a process that stops has to send the last report, to get answers or keep them."""
        if self._last_report_until is None:
            return True
        is_dirty = self._local_partitions.memory.is_dirty and not self._cannot_keep
        is_waiting = bool(self._reporting) or is_dirty or self._scheduler.running(_KEEP)
        return is_waiting and now < self._last_report_until

    def _begin_last_report(self) -> None:
        if self._view is None or not self._may_report():
            return
        own = self._life_to_report()
        for peer in sorted(self._view.alive & self._view.members.keys()):
            if peer != self._replica.me and self._reported.get(peer, (None, 0))[0] != own:
                self._reporting.add(peer)
                self._scheduler.spawn(f"seen:{peer}", self._report_last(peer))

    def _report_last(self, peer: str) -> Task:
        while True:
            try:
                evidence = yield from collect_evidence(
                    self._replica, peer, report_own=True, wants_others=False
                )
            except DStashError:
                yield Pause(_LAST_RETRY_MS)
            else:
                self._reporting.discard(peer)
                self._take(peer, evidence)
                return

    # -- inside

    def _has_news(self, peer: str, alive: Collection[str], now: int) -> bool:
        """Whether a question or a report for a member is due."""
        matters = peer not in self._heard or (self._view is not None and self._votes(self._view))
        if peer not in self._confirmed_by and matters:
            return peer in alive or not self._confirmed
        reported, at = self._reported.get(peer, (None, 0))
        if peer in self._to_confirm:
            return peer in alive
        return peer in alive and (reported != self._life_to_report() or now >= at + _FULL_MS)

    def _ask(self, peer: str) -> None:
        self._asking.add(peer)
        may_report, life = self._may_report(), self._life_to_report()
        is_first = peer not in self._heard

        def ended(result: Any, failure: DStashError | None) -> None:
            now = self._replica.now()
            self._asking.discard(peer)
            if failure is not None:
                is_alive = self._view is not None and peer in self._view.alive
                self._due[peer] = now + (_RETRY_MS if is_alive else _RETRY_DOWN_MS)
                return
            self._due[peer] = now + _GOSSIP_MS
            self._reported[peer] = (life, now)
            self._to_confirm.discard(peer)
            self._take(peer, result)

        task = collect_evidence(self._replica, peer, report_own=may_report, wants_others=is_first)
        self._scheduler.spawn(f"seen:{peer}", task, ended)

    def _take(self, peer: str, evidence: Evidence) -> None:
        member = self._view.members.get(peer) if self._view else None
        self._heard.add(peer)
        self._judge(evidence.is_old, peer)
        if evidence.is_old or member is None:
            return
        # A store that lost its data has also lost what it remembered.
        if member.synced and evidence.store_id in ("", member.store_id):
            self._confirmed_by.add(peer)
            self._evaluate()

    def _judge(self, is_old: bool, by: str) -> None:
        """Take evidence, which may end this peer's vote."""
        view = self._view
        if is_old and not self._is_old and view is not None and self._votes(view):
            self._is_old = True
            # If the topology is lost with the step that follows, this store is asked about again.
            self._confirmed = False
            self._confirmed_by.clear()
            _log.error(events.OLD_COPY, known_by=by)
            self._propose_loss(view)
            self._evaluate()

    def _propose_loss(self, view: View) -> None:
        """Propose that the store does not count until its data is streamed."""
        me = self._replica.me
        store_id = view.members[me].store_id
        self._propose(lambda latest: transitions.lost(latest, me, store_id))

    def _judge_unsynced(self, view: View) -> None:
        """End the vote of a store that may lack its last commits; a sole replica keeps it."""
        if view.is_replicated(self._replica.me):
            self._judge(True, "its machine: it stopped before all commits were synced")
        elif self._votes(view) and not self._scheduler.running(_LACKING):
            _log.warning(
                "the machine stopped before all commits were synced: the last writes may be lost, "
                "and no other replica has them"
            )
            self._scheduler.spawn(_LACKING, self._begin_life(view))

    def _begin_life(self, view: View) -> Task:
        """Void, from now on, what other peers remember of this store; returns a task to store it.

        It has all the data that there is.
        """
        lineage = self._local_partitions.lineage
        mark = lineage.rebase(self._replica.wall(), view.epoch, self._claims.highest_number)
        return self._keep_life(mark)

    def _keep_life(self, mark: Mark) -> Task:
        while True:
            try:
                yield Merge(marks=[mark, (LACKING_MARK, b"")])
            except DStashError:
                yield Pause(_RETRY_DOWN_MS)
            else:
                self._local_partitions.store.may_lack_writes = False
                return

    def _evaluate(self) -> None:
        """Decide whether this store may vote."""
        view = self._view
        if view is None:
            return
        if not self._votes(view):
            # No quorum counts this store before its data is streamed.
            self._is_old = False
            self._confirmed = self._confirmed or not view.topology.formed
            self._local_partitions.freshness_confirmed = True
            return
        if not self._confirmed:
            self._confirmed = not self._lacking(view)
        self._local_partitions.freshness_confirmed = self._confirmed and not self._is_old
        if self._local_partitions.freshness_confirmed:
            self._local_partitions.lineage.show()

    def _lacking(self, view: View) -> list[Collection[str]]:
        """Return the replica sets of which too few members have reported."""
        reported = self._confirmed_by | {self._replica.me}
        return [
            owners
            for owners in {*view.before, *view.writers}
            if self._replica.me in owners
            and len(reported.intersection(owners)) < view.votes_needed(owners)
        ]

    def _votes(self, view: View) -> bool:
        """Whether quorums count this peer's store."""
        member, change = view.members.get(self._replica.me), view.topology.change
        if member is None or not member.synced or not view.topology.formed:
            return False
        is_complete = change is not None and member.id in change.complete
        return is_complete or not is_newcomer(view.topology, member)

    def _may_report(self) -> bool:
        view = self._view
        return self._local_partitions.freshness_confirmed and view is not None and self._votes(view)

    def _life_to_report(self) -> Life:
        life = self._local_partitions.lineage.current
        return life if self._may_report() else life._replace(stamp=0)

    def _forget_other_stores(self, before: View | None, view: View) -> None:
        """Ask members with a new or a streamed store again: they remember nothing."""
        known = before.members if before else {}
        same = {
            peer
            for peer, member in view.members.items()
            if member.synced and peer in known and known[peer].store_id == member.store_id
        }
        self._heard &= same
        self._confirmed_by &= same

    def _keep(self) -> Task:
        memory = self._local_partitions.memory
        try:
            yield Merge(marks=[memory.mark()])
        except DStashError:
            memory.is_dirty = self._cannot_keep = True
