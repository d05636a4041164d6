"""The background work of a peer: its tasks, and its messages to other peers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dstash.cluster.repair.hints import Hints
from dstash.cluster.replication.cluster_clock import ClusterClock
from dstash.cluster.replication.partitions import PROMISE_MS, LocalPartitions
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Merge, Outgoing, Scheduler
from dstash.cluster.topology.view import View
from dstash.errors import DStashError
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.write_floor import WriteFloor
from dstash.peer.background.maintenance import Maintenance, Pace
from dstash.peer.telemetry.observer import Observer
from dstash.types import Level
from dstash.version import Steady
from dstash.wire.envelope import Envelope

#: How often (milliseconds) a peer checks which tasks are due. The loop of a busy peer runs
#: thousands of times a second. After an event that may begin a task (a new view, a hint, an
#: answer), the next iteration checks in any case.
_LOOK_MS: Final = 10


class Background:
    """Runs the tasks of one peer, and keeps the time and the epoch that they use.

    Args:
        peer: its id.
        local_partitions: the records.
        clock: the cluster clock, as this peer knows it.
        floor: decides what the peer may promise.
        hints: what other replicas have missed.
        backlog: the writes that wait for the disk.
        commit: queues a write of a task, and calls the callback with its result.
        pace: the intervals of the tasks.
        now: the start, in milliseconds since 1970.
    """

    def __init__(
        self,
        peer: str,
        local_partitions: LocalPartitions,
        clock: ClusterClock,
        floor: WriteFloor,
        *,
        hints: Hints,
        backlog: Backlog,
        commit: Callable[[Merge, Callable[[DStashError | None], None]], None],
        pace: Pace,
        now: int,
    ) -> None:
        #: This peer's own clock at the last message or tick, in milliseconds since 1970.
        self.now = now
        #: The epoch of the view; 0 without a view.
        self.epoch = 0
        self.steady = Steady(now)
        #: Whether the last tick looked which tasks are due, and the steady time of the next look.
        self.has_looked = False
        self._next_look = 0
        self._corruption = local_partitions.corruption
        #: How many corrupt records had been found at the last look.
        self._found = 0
        self._view: View | None = None
        self._peer = peer
        self._clock = clock
        self._floor = floor
        self._backlog = backlog
        local_partitions.latest_promise = lambda: floor.latest_promise(self.now)
        local_partitions.promise_ms = min(PROMISE_MS, pace.gc_interval_ms // 2)
        self.scheduler = Scheduler(commit, backlog.settle, lambda: self.epoch)
        self.replica = Replica(
            peer,
            local_partitions,
            self._current_view,
            self.steady_time,
            lambda: self.now,
            clock,
        )
        self.maintenance = Maintenance(self.replica, self.scheduler, hints, pace, now)
        self.observer = Observer(peer, self.scheduler)

    def set_time(self, now: int) -> None:
        """Take the time of this peer's own clock (milliseconds since 1970)."""
        self.now = now
        self._clock.advance(now)

    def steady_time(self) -> int:
        """Return a time in milliseconds that never goes back."""
        return self.steady.at(self.now)

    def install(self, view: View, now: int) -> None:
        """Take a new view: of the clocks that count, the floor, and the tasks that it asks for."""
        before, self._view, self.epoch = self._view, view, view.epoch
        self.set_time(now)
        topology = view.topology
        voters = {member.id for member in topology.before() if member.synced}
        if topology.replicas == 1:  # a peer alone is the quorum of its own partitions
            voters = {self._peer}
        quorum = Level.QUORUM.needed(topology.replicas)
        self._clock.install(view.members.keys(), voters, view.alive, quorum)
        self._floor.install(before, view)
        self.replica.local_partitions.install_drops(topology.drops)
        self.replica.local_partitions.lowering_epoch = topology.ceiling_epoch
        self.maintenance.install(view, self.steady_time())
        self.look_soon()

    def tick(self, *, stopping: bool) -> list[Outgoing]:
        """Begin the tasks that are due, and run a little of all; returns messages for other peers.

        Args:
            stopping: begin no task but the last report to other peers, once no write waits.
        """
        steady = self.steady_time()
        found = self._corruption.found
        self.has_looked = stopping or steady >= self._next_look or found > self._found
        if self.has_looked:
            self._next_look, self._found = steady + _LOOK_MS, found
            self._begin_due_tasks(steady, stopping=stopping)
        outgoing = self.scheduler.tick(steady)
        for message in outgoing:
            self._clock.sent(message.correlation)
        return outgoing

    def _begin_due_tasks(self, steady: int, *, stopping: bool) -> None:
        if self._clock.knows_majority:
            self._floor.correct()
        if not stopping:
            self.maintenance.tick(steady)
            self.observer.tick(self._view, self.now)
        elif not self._backlog.has_work:
            self.maintenance.freshness.send_last_report(steady)

    @property
    def has_looked_once(self) -> bool:
        """Whether a tick has looked what is due since the last event that may begin a task."""
        return bool(self._next_look)

    def look_soon(self) -> None:
        """Look at the next tick what is due, because of an event that may begin a task."""
        self._next_look = 0

    def wakeup(self, now: int) -> int:
        """Return how many milliseconds may pass before the tasks need another iteration."""
        if self.scheduler.has_ready:
            return 0
        steady = self.steady.at(now)
        due = self.scheduler.wakeup()
        waits = 1000 if due is None else min(1000, due - steady)
        return max(0, waits if self.has_looked else min(waits, self._next_look - steady))

    @property
    def is_calm(self) -> bool:
        """Whether no task is soon due that ``wakeup`` does not know of."""
        maintenance, view = self.maintenance, self._view
        return (
            view is not None
            and view.topology.change is None
            and maintenance.freshness_confirmed
            and self._clock.is_complete
            and not self._backlog.has_work
            and not self._corruption
            and not maintenance.hints.waiting()
        )

    def answered(self, peer: str, envelope: Envelope) -> None:
        """Take an answer of another peer, which also shows its clock."""
        self.look_soon()
        self._clock.answered(peer, envelope.correlation, envelope.moment)
        self.scheduler.answered(peer, envelope)

    def lost(self, peer: str) -> None:
        """Take note that the connection to another peer broke."""
        self.look_soon()
        self.scheduler.lost(peer)
        self.observer.lost(peer)

    def unsent(self, outgoing: Outgoing) -> None:
        """Take note that a message to another peer could not be sent."""
        self.look_soon()
        self._clock.unanswered(outgoing.correlation)
        self.scheduler.unsent(outgoing.peer, outgoing.correlation)

    def awaits_last_report(self) -> bool:
        """Whether a peer that stops has to send the last report, or waits for its answers."""
        return self.maintenance.freshness.awaits_last_report(self.steady_time())

    def _current_view(self) -> View:
        if self._view is None:
            raise AssertionError("a task began before the view was known")
        return self._view
