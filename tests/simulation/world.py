"""One run: a world from a seed, faults, recovery, and checks."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from random import Random
from statistics import median_low
from typing import Any, Final
from unittest import mock
from uuid import UUID

import structlog

from dstash.client.session import Session
from dstash.cluster.membership.interface import StoredTopology
from dstash.cluster.topology.joining import found
from dstash.cluster.topology.topology import Topology
from dstash.limits import MAX_CLOCK_SKEW_MS, PARTITIONS
from dstash.peer.assembly import Settings
from dstash.peer.core import AnyCommit, PeerCore
from dstash.peer.membership_agent import MembershipAgent
from dstash.store.memory import TwinStore
from tests.simulation.checks import Run, Terms, Violation, When, judge
from tests.simulation.client import VirtualClient, client_settings
from tests.simulation.clock import WallClock
from tests.simulation.conditions import Conditions, draw
from tests.simulation.disk import SimulatedStore
from tests.simulation.events import MS, SECOND, Events
from tests.simulation.faults import Faults
from tests.simulation.history import History, Place, describe_writes
from tests.simulation.limits import limits_of
from tests.simulation.losses import Loss
from tests.simulation.membership import VirtualMembership
from tests.simulation.network import Network
from tests.simulation.node import DISK_RESERVE, Node
from tests.simulation.registry import independent
from tests.simulation.trace import Trace, around
from tests.simulation.workload import Runner, Script, Workload

#: The longest time of faults, and the time for recovery.
CHAOS: Final = 120 * SECOND
REPAIR_TIME: Final = 60 * SECOND

_READER: Final = "reader"


@dataclass
class Report:
    """The result of a run."""

    seed: int
    conditions: Conditions
    violations: list[Violation]
    digest: str
    counts: dict[str, int]
    traces: dict[Place | None, list[str]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every invariant held."""
        return not self.violations

    def __str__(self) -> str:
        if self.ok:
            return f"seed {self.seed}: ok {self.counts}"
        lines = [f"seed {self.seed}: {len(self.violations)} violations", f"    {self.conditions}"]
        for violation in self.violations:
            lines.append(f"  {violation}")
            lines += around(self.traces.pop(violation.place, []))
        return "\n".join(lines)


class World:
    """A cluster, its clients and its faults, all from one seed.

    Tests plant faults by overriding the methods under "overridden by planted faults".
    """

    cluster = "simulated"

    def __init__(
        self,
        seed: int,
        calls: int = 200,
        conditions: Conditions | None = None,
        always: tuple[str, ...] = (),
        profiles: tuple[str, ...] = (),
    ) -> None:
        self.seed = seed
        self.rng = Random(seed)
        drawn = conditions or draw(self.rng, calls, profiles)
        faults = tuple(sorted({*drawn.faults, *always}))
        self.conditions = replace(drawn, faults=faults)
        self.events = Events()
        self.trace = Trace()
        self.history = History()
        self.network = Network(self.events, self.rng, self.trace)
        self.membership = VirtualMembership(self.events, self.rng, self.trace)
        #: Names of pending checks that run nevertheless.
        self.also_checked: tuple[str, ...] = ()
        #: Permanent losses.
        self.losses: set[Loss] = set()
        #: The smallest free space of any disk so far.
        self.lowest_room = DISK_RESERVE + 1
        self.is_healing = False
        #: Whether an older topology was put back where no member could notice that.
        self.may_share_epochs = False
        #: The highest value that was written to a register.
        self.register_values = 0
        self.indexes = ["a", "b"]
        keys = self.conditions.keys
        self.places: list[Place] = [(self.indexes[i % 2], f"key{i // 2}") for i in range(keys)]
        machines = self.conditions.peers + self.conditions.spares
        self.nodes = [self._make_node(number) for number in range(machines)]
        #: Current addresses of peers, as Consul or DNS would report them.
        self.seeds = [node.address for node in self.nodes]
        #: The process whose code runs now, of clients.
        self.running_process = 0
        self._processes = 0
        firsts = [self._make_client(f"c{i + 1}") for i in range(self.conditions.clients)]
        self.clients = firsts + [
            client.thread(f"{client.name}t{number + 1}")
            for client in firsts
            for number in range(self.conditions.threads)
        ]
        self.faults = Faults(self)
        self._running = 0
        self._ids = 0

    def _make_node(self, number: int) -> Node:
        name = f"n{number + 1}"
        clock = WallClock(
            self.events,
            self.conditions.offsets_ms[number % self.conditions.peers],
            self.rng.randint(-100, 100),
        )
        weight = self.conditions.weights[number] if self.conditions.weights else 1.0
        return Node(self, name, f"z{number % self.conditions.zones}", clock, weight)

    def _make_client(self, name: str) -> VirtualClient:
        offset = self.conditions.client_offset_ms
        ahead, drift = self.rng.randint(-offset, offset), self.rng.randint(-100, 100)
        if self.conditions.aligned:
            ahead = drift = 0  # clients meet in one millisecond only if their clocks agree
        clock = WallClock(self.events, ahead, drift)
        zone = self.rng.choice((None, "z0"))
        return VirtualClient(
            self, name, clock, client_settings(self.seeds, self.conditions.timeout, zone)
        )

    # -- overridden by planted faults

    def patches(self) -> Iterable[AbstractContextManager[object]]:
        """Return the patches (``mock.patch``) that apply while the world runs."""
        return ()

    def make_store(self, store_id: str) -> SimulatedStore:
        """Return an empty disk."""
        return SimulatedStore(store_id, self.rng)

    def make_core(self, settings: Settings, store: TwinStore, now: int) -> PeerCore:
        """Return the core of a process that starts."""
        return PeerCore(settings, store, now)

    def run_commit(self, node: Node, commit: AnyCommit) -> None:
        """Write a commit to disk."""
        commit.run(node.store)

    def propose(self, agent: MembershipAgent, stored: StoredTopology) -> Topology | None:
        """Return the topology that a membership agent proposes."""
        return agent._next_step(stored)

    def iteration_failed(self, node: Node) -> None:
        """Continue after a failed round of a peer's membership thread."""
        node.iterate_again()

    def crashed(self, node: Node) -> None:
        """Remove unsynced writes from a disk."""

    def make_session(self, clock: WallClock, zone: str) -> Session:
        """Return the session of a client that starts."""
        return Session(
            clock,
            zone=zone,
            random_bytes=lambda n: self.rng.randbytes(n),
            process=lambda: self.running_process,
        )

    # -- called by other modules

    def new_process(self) -> int:
        """Return the id of another client process."""
        self._processes += 1
        return self._processes

    def add_client(self, client: VirtualClient, calls: int) -> None:
        """Let a client that started during the run make some calls."""
        self.clients.append(client)
        self._start_script(client, Workload(self, client).script(calls))

    def note(self, text: str, key: bytes | None = None) -> None:
        """Write into the trace."""
        self.trace.note(self.events.now, text, key)

    def guard(self, name: str, action: Callable[..., object], *args: Any) -> None:
        """Run a step of a process; an unexpected exception is a violation and ends the process."""
        try:
            action(*args)
        except Exception:
            self.history.broken.append(f"{name} fell over:\n{traceback.format_exc()}")
            for node in self.nodes:
                if node.name == name:
                    node.kill(power=False)
                    self.restart_later(node)

    def restart_later(self, node: Node) -> None:
        """Restart a process some time after it ended by itself, as a supervisor does."""

        def restart() -> None:
            if not node.is_running and self.is_member(node):
                node.start()

        self.events.after(int(self.rng.random() * 2 * SECOND), restart)

    def check_epoch(self, node: Node, topology: Topology) -> None:
        """Record a violation if two topologies in use have the same epoch."""
        known = {
            other.name: other.core.view.topology
            for other in self.nodes
            if other.core is not None and other.core.view is not None
        }
        for name, other in known.items():
            is_same_epoch = (other.cluster_id, other.epoch) == (topology.cluster_id, topology.epoch)
            if not is_same_epoch or other == topology:
                continue
            # Peers that are about to join may follow a topology that is about to be restored.
            are_members = all(
                used.member(peer) for used in (other, topology) for peer in (name, node.name)
            )
            may_share = self.may_share_epochs or topology.epoch in self.membership.used_again
            if name == node.name or (are_members and not may_share):
                text = f"{name} and {node.name} use different topologies of epoch {topology.epoch}"
                self.history.broken.append(text)

    # -- the run

    def run(self) -> Report:
        """Run the world."""
        with ExitStack() as patched:
            ids = mock.patch("uuid.uuid4", self._new_id)
            for patch in (_quiet(), ids, *limits_of(self.conditions), *self.patches()):
                patched.enter_context(patch)
            self._form()
            self._work()
            self._heal()
            violations = self._judge()
        return self._report(violations)

    def _new_id(self) -> UUID:
        """Return the id of a cluster that a peer forms, derived from the seed."""
        self._ids += 1
        return UUID(int=independent(self.seed, f"id {self._ids}").getrandbits(128), version=4)

    def _form(self) -> None:
        # Made here because its id should come from the seed as well.
        self.membership.topology = found(
            self.nodes[0].announcement(),
            self.cluster,
            f"cluster-{self.seed}",
            self.conditions.replicas,
            self.conditions.peers,
        )
        for node in self.nodes[: self.conditions.peers]:
            self.events.after(self.rng.randint(0, 50 * MS), node.start)
        self.network.jitter = self.conditions.jitter

    def _work(self) -> None:
        self.network.duplication = self.conditions.duplication
        for client in self.clients:
            self._start_script(client, Workload(self, client).script(self.conditions.calls))
        self.events.after(700 * MS, self.faults.begin)
        self.events.run_until(CHAOS, lambda: not self._running)

    def _start_script(self, client: VirtualClient, script: Script) -> None:
        self._running += 1
        Runner(client, script, self._script_ended)

    def _script_ended(self) -> None:
        self._running -= 1

    def _heal(self) -> None:
        self.note("recovery begins")
        self.is_healing = True
        self.faults.end()
        self.network.duplication = 0.0
        for node in self.nodes:
            node.sync_time = 300
            node.clock.set_right()
            if not node.is_running and self.is_member(node):
                node.start()
            self._scrub(node)
        self._settle()
        self.note("recovery ends")

    def _scrub(self, node: Node) -> None:
        """Make the slow scrub find at once what it would find within an hour."""
        if Loss.RECORD in self.losses and node.core is not None:
            for partition in range(PARTITIONS):
                task = node.core.local_partitions.digests.scrub(partition)
                node.core.scheduler.spawn(f"scrub:{partition}", task)

    def _settle(self) -> None:
        """Wait until replicas are equal, for the longest allowed time."""
        end = self.events.now + REPAIR_TIME
        while self.events.now < end:
            self.events.run_until(self.events.now + 2 * SECOND)
            if not judge(self._run(), When.RECOVERED):
                return

    def is_whole(self) -> bool:
        """Whether every member runs and is ready, and no topology change waits."""
        topology = self.membership.topology
        return (
            not self._running
            and topology is not None
            and topology.change is None
            and topology.restored is None
            and all(member.synced for member in topology.members)
            and all(
                node.core is not None and node.core.health.why_not_ready() is None
                for node in self.nodes
                if self.is_member(node)
            )
        )

    def is_whole_on_disk(self) -> bool:
        """Whether every member has the store of the topology and has streamed its data."""
        topology = self.membership.topology
        if topology is None or not topology.formed:
            return False
        stores = {node.name: node.store.store_id for node in self.nodes}
        return all(
            member.synced and member.store_id == stores[member.id] for member in topology.members
        )

    def is_member(self, node: Node) -> bool:
        """Whether a peer is in the topology, or in the last topology if it is lost."""
        topology = self.membership.last
        return topology is not None and topology.member(node.name) is not None

    def _judge(self) -> list[Violation]:
        if self._running:
            self.history.broken.append(f"{self._running} clients never came to their end")
            self._running = 0
        found = judge(self._run(), When.RECOVERED)
        reader = self._make_client(_READER)
        self.clients.append(reader)
        self._await([(reader, Workload(self, reader).read_back(self.places))])
        self._await([(reader, Workload(self, reader).read_registers())])
        survivors = [client for client in self.clients if client is not reader]
        self._await(
            [
                (client, Workload(self, client).last_words(("a", f"last-{client.name}")))
                for client in survivors
            ]
        )
        return judge(self._run(), When.END) + found

    def _run(self) -> Run:
        return Run(self.history, self._terms(), self)

    def _await(self, scripts: Iterable[tuple[VirtualClient, Script]]) -> None:
        for client, script in scripts:
            self._start_script(client, script)
        if not self.events.run_until(self.events.now + 100 * SECOND, lambda: not self._running):
            self.history.broken.append("the cluster does not answer after recovery")
            self._running = 0

    def _terms(self) -> Terms:
        clocks = [node.clock for node in self.nodes]
        slack = max(clock.error_ms() for clock in clocks) + 50
        # A moving partition is copied from only as many replicas as a quorum needs.
        loses_ones = bool(self.losses) or self.membership.moved_data
        return Terms(
            self.conditions.replicas,
            slack,
            keeps_ones=not loses_ones,
            delivers_once=not self.conditions.duplication,
            keeps_order=Loss.CLOCK not in self.losses and not self._was_median_wrong(),
            shares_epochs=self.may_share_epochs or bool(self.membership.used_again),
            clocks=[node.clock for node in self.nodes[: self.conditions.peers]],
            presents=list(chain.from_iterable(self.history.presents.values())),
        )

    def _was_median_wrong(self) -> bool:
        """Whether the median of the clocks of a topology may have been wrong at some moment.

        So it is where one clock of three is always odd, and another one is set.
        """
        clocks = {node.name: node.clock for node in self.nodes}
        moments = {moment for clock in clocks.values() for moment in clock.set_at}
        used = filter(None, (self.membership.topology, *self.membership.past))
        medians = {
            median_low(clocks[member.id].offset_at(moment) for member in topology.members)
            for topology in used
            for moment in moments
        }
        return any(abs(median) > MAX_CLOCK_SKEW_MS for median in medians)

    def _report(self, violations: list[Violation]) -> Report:
        traces: dict[Place | None, list[str]] = {}
        for place in {violation.place for violation in violations if violation.place is not None}:
            lines = self.trace.of_key(place[1].encode())
            traces[place] = [*describe_writes(self.history, place), "", *lines]
        return Report(
            self.seed,
            self.conditions,
            violations,
            self.trace.digest(),
            {**self.history.counts(), "messages": self.trace.deliveries},
            traces,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the logs of peers: a test runs hundreds of them."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)
