"""Maintenance: decides which background tasks a peer runs, from its view and the time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import structlog

from dstash.cluster.repair.antientropy import compare_all
from dstash.cluster.repair.corrupt_records import repair_corrupt_records
from dstash.cluster.repair.dropped_records import (
    collect_progress,
    describe_drops,
    remove_dropped,
)
from dstash.cluster.repair.full_repair import repair
from dstash.cluster.repair.future_records import FutureRecords
from dstash.cluster.repair.hints import Hints, replay
from dstash.cluster.replication.clock_exchange import ask_clock
from dstash.cluster.replication.epoch_barrier import await_barrier, coordinator
from dstash.cluster.replication.future.lowering import lower_floors
from dstash.cluster.replication.replica import Replica
from dstash.cluster.replication.tasks import Pause, Scheduler, Task
from dstash.cluster.replication.tombstone_gc import (
    agree_all,
    clean_up,
    reap_all,
    reconcile_horizons,
)
from dstash.cluster.replication.transfer import ask
from dstash.cluster.topology import transitions
from dstash.cluster.topology.drop_steps import with_swept, without_settled
from dstash.cluster.topology.joining import may_be_lost, restore_above
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.transitions import Proposal
from dstash.cluster.topology.view import View
from dstash.errors import DStashError
from dstash.limits import PARTITIONS
from dstash.peer.background.freshness import Freshness
from dstash.peer.background.gains import Gains
from dstash.wire.messages import TopologyReply, TopologyRequest

_log = structlog.get_logger("dstash.peer")

#: How often (milliseconds) the clocks of the other members are read: normally, and while some of
#: them have not answered since a clock was set.
_CLOCKS_MS: Final = 3000
_CLOCKS_SOON_MS: Final = 500
#: The least time (milliseconds) before they are read again because a write was refused as from the
#: future: each such round may move the present forward by a margin.
_CLOCKS_PAUSE_MS: Final = 50
#: How long (milliseconds) the membership may take to return a later topology, before other members
#: are asked for it.
_TOPOLOGY_PAUSE_MS: Final = 200
#: How long (milliseconds) to wait after a peer refused its hints.
_REPLAY_PAUSE_MS: Final = 1000
#: How long (milliseconds) to wait after the marks of hints could not be stored.
_SAVE_PAUSE_MS: Final = 1000
#: How long (milliseconds) to wait after corrupt records could not be repaired.
_CORRUPT_REPAIR_PAUSE_MS: Final = 1000
#: How long (milliseconds) to wait after dropped records could not be removed, or a part of them.
_REMOVE_PAUSE_MS: Final = 2000
#: How often (milliseconds) members are asked how far they are with drops.
_DROPS_MS: Final = 2000
#: How long (milliseconds) to wait before another epoch of a client is passed.
_PASS_PAUSE_MS: Final = 60_000
#: Each round of comparison verifies every record of this many partitions: all of them in an hour.
_SCRUBBED_PER_ROUND: Final = PARTITIONS // 360 + 1


class Pace(NamedTuple):
    """The intervals of background work (milliseconds)."""

    compare_ms: int = 10_000
    gc_interval_ms: int = 30_000
    gc_grace_ms: int = 30_000
    #: Bytes per second; 0 for as fast as requests are not delayed, see ``replication/throttle.py``.
    repair_rate: int = 0


class Maintenance:
    """Runs the tasks that keep one peer's replicas equal to the other replicas.

    ``proposals`` collects topology steps, which the shell passes to the membership agent.
    """

    def __init__(
        self, replica: Replica, scheduler: Scheduler, hints: Hints, pace: Pace, now: int
    ) -> None:
        self.replica = replica
        self.hints = hints
        self.proposals: list[Proposal] = []
        self._scheduler = scheduler
        self._pace = pace
        replica.repair_rate = pace.repair_rate
        self._view: View | None = None
        #: The change whose end was begun last, and the epoch then. In each later epoch it is begun
        #: again: the topology may have been lost with the end, and restored without it.
        self._ending = 0, 0
        self._future = FutureRecords(replica, scheduler)
        self._last_clocks = self._clocks_after = now
        self._next_compare = now + pace.compare_ms // 5
        self._next_gc = now + pace.gc_interval_ms
        self._scrubbed = 0
        self._replay_after: dict[str, int] = {}
        self._repair_corrupt_after = 0
        self._save_after = 0
        self._pass_after = 0
        self._remove_after = self._drops_after = self._removed_generation = 0
        self.freshness = Freshness(replica, scheduler, self.propose)
        # Once the store is complete, other peers' memories of the old store no longer count.
        self._gains = Gains(replica, scheduler, self.freshness.streamed, self.propose)

    def propose(self, step: Proposal) -> None:
        """Collect a topology step."""
        self.proposals.append(step)

    def pass_epochs(self, epochs: Iterable[int]) -> None:
        """Propose an epoch above those that clients have, and that have not come here in time.

        A client may have invented one, so this is done rarely.
        """
        if self._view is None:
            return
        topology, me, now = self._view.topology, self.replica.me, self.replica.now()
        lost = [epoch for epoch in epochs if may_be_lost(topology, epoch)]
        if lost and now >= self._pass_after:
            self._pass_after = now + _PASS_PAUSE_MS
            self.propose(lambda latest: restore_above(latest, me, max(lost)))

    def install(self, view: View, now: int) -> None:
        """Take a new view: begin or stop streaming, and compare with peers that are back."""
        before, self._view = self._view, view
        if before is None:
            others = sorted(view.members.keys() - {self.replica.me})
            self.hints.load(self.replica.local_partitions.store, others)
        for peer in view.alive - (before or view).alive:
            # Hints deliver the missed writes first: a comparison would fetch them a second time.
            self.replica.local_partitions.forget_comparisons(peer)
        if before is not None and view.alive - before.alive:
            self._next_compare = min(self._next_compare, now + 1000)
        self.freshness.install(view)
        if before is None or before.epoch != view.epoch:
            self._gains.install(view)
            self._clean_up_if_needed(before, view)
            for peer in self.hints.waiting():
                if peer not in view.members:
                    self.hints.forget(peer)

    def tick(self, now: int) -> None:
        """Start the tasks that are due."""
        view = self._view
        if view is None or self.replica.me not in view.members:
            return
        if self.replica.local_partitions.corruption.misplaced:
            self._condemn_store(view)
        if self.hints.marks.has_unsaved and now >= self._save_after:
            self._save_hints()
        self._lower_floors()
        self._read_clocks(view, now)
        self.freshness.tick(now)
        self._end_if_switched(view)
        if not self.freshness_confirmed:
            return  # data of an old copy must not reach other peers
        self._future.tick(now)
        self._remove_dropped(now)
        self._settle_drops(view, now)
        for peer in self.hints.waiting():
            if peer in view.alive and now >= self._replay_after.get(peer, 0):
                self._replay(peer)
        if len(self.replica.local_partitions.corruption) and now >= self._repair_corrupt_after:
            self._repair_corrupt()
        if self.replica.local_partitions.corruption.to_check():
            self._once("check", self._check_again)
        if now >= self._next_compare:
            self._next_compare = now + self._pace.compare_ms
            self.hints.age(now)
            self._once("scrub", self._scrub)
            self._once("compare", self._compare)
        # Just after a step of this peer's clock, the other clocks are read first, if they answer.
        delay = 0 if self.replica.clock.knows_majority else _CLOCKS_MS
        if now >= self._next_gc + delay:
            self._next_gc = now + self._pace.gc_interval_ms
            self._once("gc", self._reap)

    def ask_topology(self) -> None:
        """Ask the other members for their topology, unless the membership returns a later one soon.

        Their replies are used where they arrive: see ``OutgoingRequests.answered``.
        """
        view = self._view
        for peer in sorted(view.members.keys() - {self.replica.me}) if view else ():
            self._once(f"topology:{peer}", _ask_topology, self.replica, peer)

    def repair(self) -> None:
        """Start a full repair of this peer's partitions, unless one is running."""
        self._once("repair", repair, self.replica)

    @property
    def freshness_confirmed(self) -> bool:
        """Whether other peers have confirmed that the store was not rolled back."""
        return self.replica.local_partitions.freshness_confirmed

    def describe(self) -> dict[str, Any]:
        """Return the state of background work, for the status."""
        return {
            **self._gains.describe(),
            "repaired_records": self.replica.repaired,
            "compared": self.replica.compared,
            "differed": self.replica.differed,
            **self.replica.differing.describe(self.replica.now()),
            "replayed": self.replica.replayed,
            "repair": self.replica.repair.describe(self.replica.repaired),
            "hints": self.hints.describe(),
            "dirty_partitions": self.hints.describe_dirty(),
            "drop_left": len(self.replica.local_partitions.drops.unswept),
            "drop_removed": self.replica.local_partitions.drops.removed,
            "corrupt": len(self.replica.local_partitions.corruption),
            "corrupt_found": self.replica.local_partitions.corruption.found,
            "corrupt_repaired": self.replica.local_partitions.corruption.repaired,
        }

    def describe_drops(self) -> dict[str, Any]:
        """Return how far this peer is with removing dropped records."""
        return describe_drops(self.replica)

    # -- inside

    def _read_clocks(self, view: View, now: int) -> None:
        clock = self.replica.clock
        pause = _CLOCKS_MS if clock.is_complete else _CLOCKS_SOON_MS
        if now < (self._clocks_after if clock.is_due else self._last_clocks + pause):
            return
        clock.is_due = False
        self._last_clocks, self._clocks_after = now, now + _CLOCKS_PAUSE_MS
        clock.forget_unanswered(self._scheduler.outstanding)
        for peer in sorted(view.alive & view.members.keys() - {self.replica.me}):
            # One task for each peer: a frozen peer must not delay the answers of the rest.
            self._once(f"clock:{peer}", ask_clock, clock, peer)

    def _lower_floors(self) -> None:
        """Lower floors and horizons as the topology demands, and retry until that is on disk."""
        if self.replica.local_partitions.is_lowering:
            self._once("lower", lower_floors, self.replica)

    def _replay(self, peer: str) -> None:
        """Replay hints; after a refusal, wait a while."""

        def ended(result: Any, failure: DStashError | None) -> None:
            if failure is None:
                self.hints.replayed(peer)
            else:
                self._replay_after[peer] = self.replica.now() + _REPLAY_PAUSE_MS

        name = f"hints:{peer}"
        if not self._scheduler.running(name):
            self._scheduler.spawn(name, replay(self.replica, self.hints, peer), ended)

    def _save_hints(self) -> None:
        """Store which partitions have hints, so that it survives a restart."""

        def ended(result: Any, failure: DStashError | None) -> None:
            if failure is not None:
                self._save_after = self.replica.now() + _SAVE_PAUSE_MS

        if not self._scheduler.running("save hints"):
            self._scheduler.spawn("save hints", self.hints.marks.save(), ended)

    def _repair_corrupt(self) -> None:

        def ended(result: Any, failure: DStashError | None) -> None:
            if failure is not None:
                self._repair_corrupt_after = self.replica.now() + _CORRUPT_REPAIR_PAUSE_MS

        if not self._scheduler.running("repair corrupt"):
            self._scheduler.spawn("repair corrupt", repair_corrupt_records(self.replica), ended)

    def _condemn_store(self, view: View) -> None:
        """End the use of a store with corrupt keys, unless no other replica has its data.

        Records are missing under keys that are not known, so neither its votes nor its horizons
        are true any more: it must not count, as if it had been lost.
        """
        store, corruption = (
            self.replica.local_partitions.store,
            self.replica.local_partitions.corruption,
        )
        if store.check_writable() is None and view.is_replicated(self.replica.me):
            store.condemn(
                f"the key {corruption.misplaced!r} of a record is corrupt, so records are missing "
                "under other keys"
            )

    def _remove_dropped(self, now: int) -> None:
        """Remove dropped records; wait a while when some have to stay."""

        def ended(result: Any, failure: DStashError | None) -> None:
            self._remove_after = self.replica.now() + _REMOVE_PAUSE_MS

        drops = self.replica.local_partitions.drops
        if drops.generation != self._removed_generation:  # a new drop does not wait
            self._removed_generation, self._remove_after = drops.generation, now
        is_due = drops.unswept and now >= self._remove_after
        if is_due and not self._scheduler.running("drop"):
            self._scheduler.spawn("drop", remove_dropped(self.replica), ended)

    def _settle_drops(self, view: View, now: int) -> None:
        """End the drops that all members have passed. Any member could, and two do no harm."""
        topology = view.topology
        if not topology.drops or now < self._drops_after or coordinator(view) != self.replica.me:
            return
        if topology.change is not None or not view.members.keys() <= view.alive:
            return

        def ended(result: Any, failure: DStashError | None) -> None:
            self._drops_after = self.replica.now() + _DROPS_MS
            if failure is not None:
                return
            members, swept, passed = result
            self.proposals.append(lambda latest: with_swept(latest, swept))
            self.proposals.append(lambda latest: without_settled(latest, passed, members))

        if not self._scheduler.running("settle drops"):
            self._scheduler.spawn("settle drops", collect_progress(self.replica), ended)

    def _once(self, name: str, make: Callable[..., Task], *arguments: Any) -> None:
        if not self._scheduler.running(name):
            self._scheduler.spawn(name, make(*arguments))

    def _compare(self) -> Task:
        yield from compare_all(self.replica)

    def _reap(self) -> Task:
        yield from agree_all(self.replica, self._pace.gc_grace_ms)
        yield from reconcile_horizons(self.replica)
        yield from reap_all(self.replica)

    def _scrub(self) -> Task:
        for _ in range(_SCRUBBED_PER_ROUND):
            self._scrubbed = (self._scrubbed + 1) % PARTITIONS
            yield from self.replica.local_partitions.digests.scrub(self._scrubbed)
            yield Pause()

    def _check_again(self) -> Task:
        """Find the corrupt records that exceeded the list when they were first found."""
        corruption = self.replica.local_partitions.corruption
        while partitions := corruption.to_check():
            yield from self.replica.local_partitions.digests.scrub(partitions[0])
            yield Pause()

    def _end_if_switched(self, view: View) -> None:
        change = view.topology.change
        if self._scheduler.running("switch"):
            if change is not None and change.number == self._ending[0]:
                return
            # That change has ended in another way. Its barrier may wait for ever: for a member that
            # does not return.
            self._scheduler.cancel("switch")
        if change is None or not change.switched:
            return
        if coordinator(view) != self.replica.me or self._ending == (change.number, view.epoch):
            return
        number = change.number
        self._ending = number, view.epoch

        def ended(result: Any, failure: DStashError | None) -> None:
            self.proposals.append(lambda latest: transitions.finish(latest, number))

        self._scheduler.spawn("switch", await_barrier(self.replica), ended)

    def _clean_up_if_needed(self, before: View | None, view: View) -> None:
        me = self.replica.me
        if view.topology.change is not None or me not in view.members:
            self._scheduler.cancel("cleanup")
            return
        moved = (
            before is None
            or before.topology.change is not None  # it may have been cancelled
            or before.readers is not view.readers
        )
        if moved and not self._scheduler.running("cleanup"):
            foreign = sorted(set(range(PARTITIONS)) - view.owned_by(me))
            self._scheduler.spawn("cleanup", _clean_up_safely(self.replica, view.epoch, foreign))


def _clean_up_safely(replica: Replica, epoch: int, foreign: list[int]) -> Task:
    """Drop partitions that moved away, once every live peer has left the old epoch."""
    local_partitions = replica.local_partitions
    left = []
    for partition in foreign:
        if local_partitions.horizons[partition] or local_partitions.walk(partition, limit=1):
            left.append(partition)
        if partition % 32 == 0:
            yield Pause()
    if not left:
        return
    for peer in sorted(replica.view().alive - {replica.me}):
        yield from _wait_for_epoch(replica, peer, epoch)
    yield from clean_up(replica, left)


def _ask_topology(replica: Replica, peer: str) -> Task:
    epoch = replica.view().epoch
    yield Pause(_TOPOLOGY_PAUSE_MS)
    if replica.view().epoch == epoch:
        yield from ask(peer, TopologyRequest(), TopologyReply)


def _wait_for_epoch(replica: Replica, peer: str, epoch: int) -> Task:
    while replica.is_alive(peer) and peer in replica.view().members:
        try:
            answer = yield from ask(peer, TopologyRequest(), TopologyReply)
            if Topology.decode(answer.topology).epoch >= epoch:
                return
        except DStashError:
            pass  # it may be down: the condition of the loop decides
        yield Pause(500)
