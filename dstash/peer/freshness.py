"""Decides whether this peer's store may vote: whether it is as new as other peers remember it.

At its start a peer neither votes nor answers until, for every partition it holds, so many replicas
(itself counted) have told what they remember of its store that a write it acked cannot have been
missed by all of them. Evidence that comes later ends the vote as well. See ``cluster/lineage.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

import structlog

from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.rollback_detection import Evidence, collect_evidence
from dstash.cluster.replication.tasks import Merge, Pause, Scheduler, Task
from dstash.cluster.topology import transitions
from dstash.cluster.topology.joining import is_newcomer
from dstash.cluster.topology.life import Life
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.view import View
from dstash.errors import DStashError
from dstash.peer.claims import SUSPECTED, Claims
from dstash.version import Stamp

_log = structlog.get_logger("dstash.peer")

#: How often (milliseconds) other peers are told how new this store is, when that has changed.
_GOSSIP_MS: Final = 2000
#: How often they are told, and asked, all the same.
_FULL_MS: Final = 30_000
#: How soon a member is asked again that did not answer; one that is not alive, later.
_RETRY_MS: Final = 250
_RETRY_DOWN_MS: Final = 1000
#: How often this object looks whether something is due.
_LOOK_MS: Final = 100
#: How long a stop waits at most for the others to hear how new this store was.
_FAREWELL_MS: Final = 500


class Freshness:
    """Asks, tells, and judges.

    Args:
        replica: this peer.
        scheduler: runs the questions.
        propose: takes a step that should be made in the topology.
    """

    def __init__(
        self,
        replica: Replica,
        scheduler: Scheduler,
        propose: Callable[[Callable[[Topology], Topology | None]], None],
    ) -> None:
        self._replica = replica
        self._local_partitions = replica.local_partitions
        self._scheduler = scheduler
        self._propose = propose
        self._view: View | None = None
        self._is_old = False
        self._confirmed = False
        #: Members that have told what they remember, since this process began.
        self._heard: set[str] = set()
        self._asking: set[str] = set()
        self._due: dict[str, int] = {}
        self._told: dict[str, tuple[Stamp, int]] = {}
        self._next_look = 0
        self._next_mark = 0
        self._farewell_until: int | None = None
        self._claims = Claims(self._local_partitions.lineage, self._local_partitions.store.store_id)
        #: Members to ask again, for a client has seen a newer state of this store.
        self._to_confirm: set[str] = set()

    # -- what the healer calls

    def install(self, view: View) -> None:
        """Take a new view."""
        before, self._view = self._view, view
        local_partitions = self._local_partitions
        local_partitions.store_ids = {one.id: one.store_id for one in view.topology.members}
        local_partitions.memory.keep_only(local_partitions.store_ids.values())
        arrived = view.alive - (before.alive if before else frozenset())
        for peer in arrived | (self._due.keys() - view.members.keys()):
            self._due.pop(peer, None)
            self._told.pop(peer, None)
        if before is None or before.epoch != view.epoch:
            self._forget_other_stores(before, view)
            member = view.members.get(self._replica.me)
            if member is not None and len(member.seen) == len(Life._fields):
                self._judge(
                    local_partitions.lineage.contradicts(Life(*member.seen)), "the topology"
                )
        self._evaluate()
        self._next_look = 0

    def tick(self, now: int) -> None:
        """Ask and tell what is due."""
        if self._view is None or now < self._next_look:
            return
        self._next_look = now + _LOOK_MS
        for peer in sorted(self._view.members.keys() - self._asking - {self._replica.me}):
            if now >= self._due.get(peer, 0) and self._has_news(peer, self._view.alive, now):
                self._ask(peer)
        if self._local_partitions.memory.is_dirty and now >= self._next_mark:
            self._next_mark = now + _GOSSIP_MS
            self._scheduler.spawn("seen:keep", self._keep())

    def why_not(self) -> str:
        """Return what this peer waits for before its store may vote; empty when it may."""
        if self._local_partitions.freshness_confirmed or self._view is None:
            return ""
        if self._is_old:
            return "the peer's store is an old copy; it will be filled from other replicas"
        members = self._view.members
        owners = {peer for row in self._lacking(self._view) for peer in row}
        missing = sorted(owners - self._heard - {self._replica.me})
        able = [peer for peer in missing if members[peer].synced]
        text = "the peer is asking the others whether its store is as new as it was"
        text += f"; it waits for {' or '.join(able)}" if able else ""
        if lost := [peer for peer in missing if not members[peer].synced]:
            text += f"; the stores of {', '.join(lost)} cannot tell: they lost their data"
        return text

    def streamed(self) -> Task:
        """Take note that the store was filled from other replicas; durably, if it had to be.

        What others remember of it from before is void then.
        """
        view = self._view
        member = view.members.get(self._replica.me) if view is not None else None
        self._confirmed = True
        if member is None or member.synced:
            return
        lineage = self._local_partitions.lineage
        mark = lineage.rebase(self._replica.wall(), self._claims.highest_number)
        while True:
            try:
                yield Merge(marks=[mark])
                return
            except DStashError:
                yield Pause(_RETRY_DOWN_MS)

    def newest_lives(self) -> dict[str, Life]:
        """Return the newest life that was seen of each store. Any thread may call this."""
        memory = self._local_partitions.memory
        lives = {
            store_id: life
            for store_id in list(self._local_partitions.store_ids.values())
            if (life := memory.newest(store_id)) is not None
        }
        if self._tells():
            lives[self._local_partitions.store.store_id] = self._local_partitions.lineage.current
        return lives

    # -- what clients say

    def hear_client(self, seen: list[list[Any]]) -> None:
        """Take what a client saw of stores. If this one was newer, the members are asked again.

        Raises:
            ProtocolError: it is not a list of lives.
        """
        if self._claims.take(seen):
            self._to_confirm = set(self._view.members if self._view else ()) - {self._replica.me}
            self._next_look = 0

    def suspicion(self) -> str:
        """Return what clients make of a store that votes; empty when all is well."""
        view = self._view
        if view is None or self._is_old or not self._votes(view):
            return ""
        return SUSPECTED if self._claims.contradict() else ""

    def store_facts(self) -> list[Any]:
        """Return the store, its life and the newest stamp in it, for clients."""
        life = self._local_partitions.lineage.current._replace(stamp=self._stamp_to_tell())
        return [self._local_partitions.store.store_id, *life]

    # -- the end

    def say_farewell(self, now: int) -> None:
        """Tell the others, once, how new this store is at the end of a process that stops."""
        if self._farewell_until is None and self._view is not None and self._tells():
            self._farewell_until = now + _FAREWELL_MS
            own = self._local_partitions.store.high_water
            for peer in sorted(self._view.alive & self._view.members.keys()):
                if peer != self._replica.me and self._told.get(peer, (0, 0))[0] != own:
                    self._ask(peer)
            if self._local_partitions.memory.is_dirty:
                self._scheduler.spawn("seen:keep", self._keep())
        elif self._farewell_until is None:
            self._farewell_until = now

    def has_farewell(self, now: int) -> bool:
        """Whether a process that stops has not told the others yet, or not long enough ago."""
        if self._farewell_until is None:
            return True
        return bool(self._asking) and now < self._farewell_until

    # -- inside

    def _has_news(self, peer: str, alive: Collection[str], now: int) -> bool:
        """Whether there is something to ask a member, or to tell it."""
        if peer not in self._heard:
            return peer in alive or not self._confirmed
        told, at = self._told.get(peer, (-1, 0))
        if peer in self._to_confirm:
            return peer in alive
        return peer in alive and (told != self._stamp_to_tell() or now >= at + _FULL_MS)

    def _ask(self, peer: str) -> None:
        self._asking.add(peer)
        tells, stamp = self._tells(), self._stamp_to_tell()
        is_first = peer not in self._heard

        def ended(result: Any, failure: DStashError | None) -> None:
            now = self._replica.now()
            self._asking.discard(peer)
            if failure is not None:
                is_alive = self._view is not None and peer in self._view.alive
                self._due[peer] = now + (_RETRY_MS if is_alive else _RETRY_DOWN_MS)
                return
            self._due[peer] = now + _GOSSIP_MS
            self._told[peer] = (stamp, now)
            self._to_confirm.discard(peer)
            self._take(peer, result)

        task = collect_evidence(self._replica, peer, report_own=tells, wants_others=is_first)
        self._scheduler.spawn(f"seen:{peer}", task, ended)

    def _take(self, peer: str, evidence: Evidence) -> None:
        member = self._view.members.get(peer) if self._view else None
        if self._judge(evidence.is_old, peer) or member is None:
            return
        # A store that lost its data has lost its memory as well.
        if member.synced and evidence.store_id in ("", member.store_id):
            self._heard.add(peer)
            self._evaluate()

    def _judge(self, is_old: bool, by: str) -> bool:
        """Take note of evidence; returns whether it ends this peer's vote."""
        view, me = self._view, self._replica.me
        if not is_old or view is None or not self._votes(view):
            return False
        if not self._is_old:
            self._is_old = True
            store_id = view.members[me].store_id
            _log.error("this store is an old copy: it has to be filled again", known_by=by)
            self._propose(lambda latest: transitions.lost(latest, me, store_id))
            self._evaluate()
        return True

    def _evaluate(self) -> None:
        """Work out whether this store may vote."""
        view = self._view
        if view is None:
            return
        if not self._votes(view):
            # Nothing counts on it. It is filled before anything does.
            self._is_old = False
            self._confirmed = self._confirmed or not view.topology.formed
            self._local_partitions.freshness_confirmed = True
            return
        if not self._confirmed:
            self._confirmed = not self._lacking(view)
        self._local_partitions.freshness_confirmed = self._confirmed and not self._is_old

    def _lacking(self, view: View) -> list[Collection[str]]:
        """Return the replica sets of which too few members have told."""
        told = self._heard | {self._replica.me}
        return [
            owners
            for owners in {*view.before, *view.writers}
            if self._replica.me in owners
            and len(told.intersection(owners)) < view.votes_needed(owners)
        ]

    def _votes(self, view: View) -> bool:
        """Whether others count on what this peer's store holds."""
        member, change = view.members.get(self._replica.me), view.topology.change
        if member is None or not member.synced or not view.topology.formed:
            return False
        is_complete = change is not None and member.id in change.complete
        return is_complete or not is_newcomer(view.topology, member)

    def _tells(self) -> bool:
        view = self._view
        return self._local_partitions.freshness_confirmed and view is not None and self._votes(view)

    def _stamp_to_tell(self) -> Stamp:
        return self._local_partitions.store.high_water if self._tells() else 0

    def _forget_other_stores(self, before: View | None, view: View) -> None:
        """Ask a member again that has another store, or was filled: it remembers nothing."""
        known = before.members if before else {}
        self._heard = {
            peer
            for peer in self._heard
            if (member := view.members.get(peer)) is not None
            and member.synced
            and peer in known
            and known[peer].store_id == member.store_id
        }

    def _keep(self) -> Task:
        memory = self._local_partitions.memory
        try:
            yield Merge(marks=[memory.mark()])
        except DStashError:
            memory.is_dirty = True
