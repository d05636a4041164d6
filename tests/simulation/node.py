"""A virtual machine with one peer: the real core and membership agent, driven like the daemon."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, Final

from dstash.cluster.membership.interface import StoredTopology
from dstash.cluster.topology.announcement import FEATURES, Announcement
from dstash.cluster.topology.joining import was_removed
from dstash.cluster.topology.life import Life
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.view import View
from dstash.errors import ChangeConflict, DStashError, MembershipUnreachable, PeerIdInUse
from dstash.peer.admission.requests import Reply
from dstash.peer.assembly import Settings
from dstash.peer.core import AnyCommit, PeerCore
from dstash.peer.membership_agent import MembershipAgent
from dstash.peer.short.writes import ShortPut
from dstash.store.interface import Write
from dstash.version import MAX_STAMP, newest_stamp
from dstash.wire.envelope import Envelope, encode
from dstash.wire.messages import Hello
from tests.simulation.clock import WallClock, true_ms
from tests.simulation.events import MS, SECOND
from tests.simulation.links import VirtualLinks
from tests.simulation.membership import Handle, TurnFailed
from tests.simulation.network import Connection

if TYPE_CHECKING:
    from tests.simulation.world import World

#: How long a membership agent waits for a change, and after an unreachable membership.
_PATIENCE: Final = 2 * SECOND
_RETRY: Final = 500 * MS
#: How long a membership agent waits after an error of its own store.
_AT_ODDS: Final = 1 * SECOND
#: Approximate duration of an iteration of the loop.
_ITERATION: Final = 150
#: How long a stopping peer may answer accepted requests.
_DRAIN: Final = 5 * SECOND

#: The reserve of every peer for deletes and repairs (bytes).
DISK_RESERVE: Final = 4_000

#: One object per set of partitions: peers with the same set share it, which makes comparisons fast.
_OWNED: dict[frozenset[int], frozenset[int]] = {}


class Node:
    """One peer and its machine. The disk and the clock outlive the process."""

    def __init__(
        self, world: World, name: str, zone: str, clock: WallClock, weight: float = 1.0
    ) -> None:
        self.name = name
        self.zone = zone
        self.weight = weight
        self.clock = clock
        self.world = world
        #: Apart from the generator of the world, whose next numbers it must not change.
        self._epochs = Random(f"{world.seed} {name}")
        self.stores = 1
        self.store = world.make_store(f"{name}-store1")
        self.address = f"sim://{name}:1"
        self.core: PeerCore | None = None
        self.is_paused = False
        self.waits_to_be_added = False
        self.has_power = True
        #: The shortest duration of a commit (microseconds).
        self.sync_time = 300
        self._lives = 0
        self._commits_known: dict[str, int] = {}
        self._agent: MembershipAgent | None = None
        self._links: VirtualLinks | None = None
        self._next_iteration = 0
        self._looking = False
        self._look_again = False
        self._committing: AnyCommit | None = None
        self._connections: dict[bytes, Connection] = {}
        self._deferred: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    @property
    def rng(self) -> Random:
        """The random number generator of the world."""
        return self.world.rng

    @property
    def is_running(self) -> bool:
        """Whether there is a process, running or paused."""
        return self.core is not None

    @property
    def answers(self) -> bool:
        """Whether the process runs."""
        return self.core is not None and not self.is_paused

    @property
    def life(self) -> int:
        """The number of this process."""
        return self._lives

    @property
    def refuses(self) -> bool:
        """Whether the machine runs without the process."""
        return self.core is None and self.has_power

    def commits_known_of(self, other: Node) -> int:
        """Return how many commits the store of another peer had when it reported to this process.

        It is counted here, because what the peer remembers may be too little.
        """
        return 0 if self.core is None else self._commits_known.get(other.store.store_id, 0)

    def _count_reports(self, core: PeerCore) -> None:
        """Note each report of another store that is as new as the store is at this moment."""
        note, self._commits_known = core.local_partitions.memory.note, {}

        def counting(store_id: str, seen: Life) -> None:
            note(store_id, seen)
            for node in self.world.nodes:
                if node.store.store_id == store_id and node.store.high_water == seen.stamp:
                    self._commits_known[store_id] = node.store.commits

        core.local_partitions.memory.note = counting  # type: ignore[method-assign]

    # -- process

    def start(self) -> None:
        """Start the process, as the daemon does: lock, topology, and only then requests."""
        self._lives += 1
        self.world.history.starts.append(self.world.events.now)
        self.has_power = True
        membership = self.world.membership
        known = None if membership.is_cut_off(self.name) else membership.topology
        if was_removed(self.store, self.name, known):
            self.wipe()  # the daemon sets the old store aside
        self.store.open_again()
        conditions = self.world.conditions
        settings = Settings(
            self.name,
            self.world.cluster,
            pace=conditions.pace,
            slice_records=conditions.slice_records,
            disk_reserve=DISK_RESERVE,
        )
        self.core = self.world.make_core(settings, self.store, self.clock())
        self._count_reports(self.core)
        self._links = VirtualLinks(self.world.network, self, self._greeting, self._woken)
        self._next_iteration = 0
        self._looking = self._look_again = False
        self._committing = None
        announcement = self.announcement()
        self._agent = MembershipAgent(
            Handle(self.world.membership, self.name),  # type: ignore[arg-type]  # all that is asked
            announcement,
            self.store,
            cluster=self.world.cluster,
            replicas=self.world.conditions.replicas,
            min_peers=self.world.conditions.peers,
            waits_to_be_added=self.waits_to_be_added,
            down_out_after=self.world.conditions.down_out_after,
            publish=self._publish,
            seen=self.core.newest_lives,
            removed=self.stop,
            clock=lambda: self.world.events.now / SECOND,
            random=self._epochs.random,
        )
        self.note("starts")
        self.world.network.listen(self.address, self)
        self._announce(announcement)

    def announcement(self) -> Announcement:
        """Return the status of the process."""
        return Announcement(
            self.name,
            self.address,
            self.store.store_id,
            self.zone,
            self.weight,
            features=FEATURES,
        )

    def _announce(self, announcement: Announcement) -> None:
        try:
            self.world.membership.announce(self, announcement)
        except (MembershipUnreachable, PeerIdInUse, TurnFailed) as error:
            if isinstance(error, MembershipUnreachable):
                self._go_without(error)
            self._later(_RETRY, self._announce, announcement)
            return
        self.look_soon()
        self._watch()

    def _go_without(self, error: MembershipUnreachable) -> None:
        """Use the topology on disk, as the daemon does when the membership does not answer."""
        if self._agent is not None:
            self._agent.go_without(error)
        if self.core is not None and self.core.view is not None:
            self.core.health.not_ready = None
            self.core.disturb()

    def kill(self, *, power: bool) -> None:
        """Kill the process; after a power failure without a signal to other peers."""
        if self.core is None:
            return
        self.note("loses power" if power else "is killed")
        self._end()
        self.has_power = not power
        if not power:
            self.world.network.reset(self)

    def _end(self) -> None:
        if self._committing is not None:
            self.store.leave_in_limbo(self._committing_writes())
        self.world.crashed(self)
        self.core = self._agent = self._committing = None
        self.is_paused = False
        self._lives += 1
        self._links = None
        self._deferred.clear()
        self._connections.clear()
        self.world.network.leave(self.address)
        if self.has_power:
            self.world.network.listen(self.address, self)  # to refuse connections

    def _committing_writes(self) -> list[Any]:
        commit = self._committing
        if commit is None:
            return []
        if isinstance(commit, ShortPut):
            return [Write([commit.entry], 0, newest_stamp(commit.version), version=commit.version)]
        prepared = [commit._prepare(write) for write in commit.waiting]
        return [item.write for item in prepared if not isinstance(item, DStashError)]

    def stop(self) -> None:
        """Stop the process: it answers accepted requests and releases its lock."""
        if self.core is not None and not self.core.health.stopping:
            self.note("is asked to stop")
            self.core.health.stopping = True
            self.core.disturb()
            self._later(0, self._stop_when_drained, self.world.events.now + _DRAIN)

    def _stop_when_drained(self, deadline: int) -> None:
        if self.core is None:
            return
        if self.core.has_work and self.world.events.now < deadline:
            self._later(50 * MS, self._stop_when_drained, deadline)
            return
        self.note("stops")
        self.world.membership.resign(self.name)
        self._end()
        self.world.network.reset(self)

    def pause(self) -> None:
        """Stop the process as SIGSTOP does."""
        if self.core is not None and not self.is_paused:
            self.note("is paused")
            self.is_paused = True

    def resume(self) -> None:
        """Resume the process with all messages that arrived in the meantime."""
        if self.is_paused:
            self.note("continues")
            self.is_paused = False
            deferred, self._deferred = self._deferred, []
            for action, args in deferred:
                self._run(self._lives, action, args)

    def wipe(self) -> None:
        """Replace the disk by an empty disk."""
        self.stores += 1
        self.note(f"has an empty disk (store {self.stores})")
        self.store = self.world.make_store(f"{self.name}-store{self.stores}")

    def move(self) -> None:
        """Give the machine another address; the process must be down."""
        self.world.network.leave(self.address)
        self.world.seeds.remove(self.address)
        self.address = f"sim://{self.name}:{self._lives + 1}"
        self.world.seeds.append(self.address)

    # -- time

    def _later(self, delay: int, action: Callable[..., object], *args: Any) -> None:
        """Call ``action`` in this process when it is not paused."""
        self.world.events.after(delay, self._run, self._lives, action, args)

    def _run(self, life: int, action: Callable[..., object], args: tuple[Any, ...]) -> None:
        if life != self._lives:
            return
        if self.is_paused:
            self._deferred.append((action, args))
            return
        self.world.guard(self.name, action, *args)

    def note(self, text: str) -> None:
        """Write into the trace."""
        self.world.trace.note(self.world.events.now, f"{self.name} {text}")

    # -- requests

    def take(self, connection: Connection, parts: list[bytes]) -> None:
        """Take a message from the network."""
        if self.core is None:
            if self.has_power:
                connection.break_(self.world.network.delay("", ""))
            return
        if connection.is_open and connection.life != self._lives:
            connection.break_(self.world.network.delay("", ""))  # of a process that is gone
            return
        self._run(self._lives, self._receive, (connection, parts))

    def _receive(self, connection: Connection, parts: list[bytes]) -> None:
        if self.core is None:
            return
        self._connections[connection.id] = connection
        self._send(self.core.receive(connection.id, parts, self.clock()))
        self._iterate()

    def _send(self, replies: list[Reply]) -> None:
        for reply in replies:
            connection = self._connections.get(reply.to)
            if connection is not None and not connection.to_owner(reply.frames):
                del self._connections[reply.to]

    def _woken(self) -> None:
        self._run(self._lives, self._iterate, ())

    def _greeting(self) -> list[bytes]:
        return encode(Envelope(0, 0, 0, Hello(self.world.cluster, sender=self.name)))

    def _iterate(self) -> None:
        """Do the work of one loop iteration, except receiving requests."""
        core, links = self.core, self._links
        if core is None or links is None:
            return
        for handle in links.ready():
            for peer, parts in links.events(handle):
                if parts is None:
                    core.disturb()
                    core.outgoing.lost(peer)
                else:
                    core.answered(peer, parts, self.clock())
        self._maintain(core, links)
        self._hand_over()
        self._iterate_again(core.idle_time(self.clock()))

    def _note_clock(self, core: PeerCore) -> None:
        """Record what this peer takes for the present, if it takes stamps for future ones by it."""
        now, clock = self.world.events.now, core.clock
        judges = clock.knows_majority or clock.highest_acked() < MAX_STAMP
        if judges and core.view is not None and self.name in core.view.members:
            self.world.history.note_present(self.name, now, clock.present_ms() - true_ms(now))

    def _maintain(self, core: PeerCore, links: VirtualLinks) -> None:
        if core.is_idle_at(self.clock()):
            return
        replies, outgoing = core.tick(self.clock())
        self._note_clock(core)
        self._send(replies)
        members = core.view.members if core.view else {}
        for request in outgoing:
            member = members.get(request.peer)
            address = member.address if member else None
            if links.moved(request.peer, address):
                core.outgoing.lost(request.peer)
                core.disturb()
            if not links.send(request.peer, address, request.frames):
                core.outgoing.unsent(request)
                core.disturb()
        news = core.topology_news
        if news.wants_refresh:
            news.wants_refresh = False
            self.look_soon()
        if news.heard is not None and self._agent is not None:
            self._agent.hear(news.heard)
        proposals = core.take_proposals()
        if proposals and self._agent is not None:
            self._agent._proposals.extend(proposals)
            self.look_soon()

    def _iterate_again(self, milliseconds: int) -> None:
        """Schedule an iteration when the core has work, unless an earlier one is due."""
        when = self.world.events.now + max(_ITERATION, min(milliseconds, 200) * MS)
        if not self.world.events.now < self._next_iteration <= when:
            self._next_iteration = when
            self._later(when - self.world.events.now, self._iteration_due, when)

    def _iteration_due(self, when: int) -> None:
        if when == self._next_iteration:
            self._next_iteration = 0
            self._iterate()

    # -- commits

    def _hand_over(self) -> None:
        if self._committing is not None or self.core is None:
            return
        commit = self.core.next_commit(self.clock())
        if commit is not None:
            self._committing = commit
            pace = self.sync_time + int(self.rng.expovariate(1 / 400))
            self._later(pace, self._commit, commit)

    def _commit(self, commit: AnyCommit) -> None:
        core = self.core
        if core is None:
            return
        self.world.history.note_restamped(commit)
        self.world.run_commit(self, commit)
        self._committing = None
        self._send(core.committed(commit, self.clock()))
        if core.failure is not None:
            self.note(f"stops: {core.failure}")
            self.world.events.after(10 * MS, self._died, self._lives)
            core.health.stopping = True
            return
        self._iterate()

    def _died(self, life: int) -> None:
        if life == self._lives:
            self._end()
            self.world.network.reset(self)
            self.world.restart_later(self)

    # -- the membership agent

    def look_soon(self) -> None:
        """Read the membership; if a read is in progress, read again after it."""
        if self._agent is None:
            return
        if self._looking:
            self._look_again = True
            return
        self._looking = True
        self._later(self.world.membership.delay(), self._read)

    def _watch(self) -> None:
        self.look_soon()
        self._later(_PATIENCE, self._watch)

    def _read(self) -> None:
        try:
            self._decide(self.world.membership.read(self.name))
        except MembershipUnreachable as error:
            self._go_without(error)
            self._looked(_RETRY)
        except TurnFailed:
            self.world.iteration_failed(self)
        except ChangeConflict as error:  # it was removed while it started
            self.note(f"stops: {error}")
            self._died(self._lives)
        except DStashError as error:
            self._at_odds(error)

    def iterate_again(self) -> None:
        """Read again after a round that failed."""
        self._looked(_AT_ODDS)

    def _at_odds(self, error: DStashError) -> None:
        """Try again after a pause, or end like the daemon if this peer never had a view."""
        self.note(f"cannot take the topology: {error}")
        if self.core is not None and self.core.view is None:
            self._died(self._lives)
        else:
            self._looked(_AT_ODDS)

    def _decide(self, stored: StoredTopology) -> None:
        if self._agent is None:
            return
        proposal = self.world.propose(self._agent, stored)
        if proposal is not None:
            self._later(self.world.membership.delay(), self._set, proposal, stored)
            return
        if stored.topology is not None:
            self._agent._adopt(stored.topology)
        self._agent._keep_again()
        self._agent._unanswered_since = None
        if self.core is not None and self.core.view is not None:
            self.core.health.not_ready = None
            self.core.disturb()
        self._looked(0)

    def _set(self, proposal: Topology, stored: StoredTopology) -> None:
        try:
            is_set = self.world.membership.compare_and_set(self.name, proposal, stored.token)
        except MembershipUnreachable:
            self._looked(_RETRY)
            return
        except TurnFailed:
            self.world.iteration_failed(self)
            return
        if is_set and self._agent is not None:
            self._agent._steps.finish(proposal, stored)
        self._later(self.world.membership.delay(), self._read)

    def _looked(self, pause: int) -> None:
        self._looking = False
        if self._look_again or pause:
            self._look_again = False
            self._later(pause, self.look_soon)

    def _publish(self, view: View) -> None:
        if self.core is None:
            return
        self.world.check_epoch(self, view.topology)
        replies = self.core.install(view, self.clock())
        owned = self.core.keyspaces.owned
        self.core.keyspaces.owned = _OWNED.setdefault(owned, owned)
        self._send(replies)
        self._iterate()
