"""Admin requests of operators during faults: topology changes of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dstash.cluster.topology.drop_steps import with_drop
from dstash.cluster.topology.indexes.acks import DropAcks, RequestAcks, SettingsAcks
from dstash.cluster.topology.indexes.settings import IndexSettings
from dstash.cluster.topology.indexes.steps import with_settings
from dstash.cluster.topology.topology import State, Topology
from dstash.cluster.topology.transitions import requested
from dstash.cluster.topology.view import View
from dstash.errors import DStashError
from dstash.types import Level, Outcome
from dstash.version import MAX_STAMP, Stamp, highest_version, stamp_at
from tests.simulation.events import MS, SECOND
from tests.simulation.history import SettingsRequest, Write
from tests.simulation.node import Node

if TYPE_CHECKING:
    from tests.simulation.world import World

#: How many checks in a row (one a second) must find floors that block writes.
_LOOKS_BEFORE_LOWERING: Final = 3


class Operator:
    """Changes the cluster at random, one admin request at a time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng
        self._looks_blocked = 0

    def act(self) -> Callable[[], object] | None:
        """Make an admin request that is possible now, or start a machine that may join.

        Return the function that reverts it, if that is necessary.
        """
        topology = self._world.membership.topology
        if topology is None or not topology.formed or topology.restored is not None:
            return None
        under_way = ("cancel", "pause", "resume", "rate", "add", "remove", "forget")
        at_rest = ("add", "add", "remove", "replace", "replace", "forget")
        action = self._rng.choice(at_rest if topology.change is None else under_way)
        match action:
            case "add":
                self._add_spares()
            case "replace":
                self._replace_one(topology)
            case "remove":
                self._remove_some(topology)
            case "forget":
                self._forget_one(topology)
            case "rate":
                self._request("rate", [], self._rng.choice((500, 20_000)))
                return self._go_on
            case "pause":
                self._request("pause", [])
                return self._go_on
            case _:
                self._request(action, [])
        return None

    def _spares(self) -> list[Node]:
        return [node for node in self._world.nodes if not self._world.is_member(node)]

    def _add_spares(self) -> None:
        """Add one or two machines: they join by themselves, or by a request that names both."""
        waiting = [node.name for node in self._spares() if node.is_running]
        if waiting:
            self._request("add", waiting)
            return
        idle = self._spares()
        waits_to_be_added = self._rng.random() < 0.3
        for node in self._rng.sample(idle, min(len(idle), self._rng.choice((1, 1, 2)))):
            node.waits_to_be_added = waits_to_be_added
            node.start()

    def _remove_some(self, topology: Topology) -> None:
        """Remove one or two members, sometimes so many that fewer than ``replicas`` remain."""
        stay = [member.id for member in topology.members if member.state is not State.LEAVING]
        least = max(2, topology.replicas - self._rng.choice((0, 0, 1)))
        leaving = min(len(stay) - least, self._rng.choice((1, 1, 2)))
        if leaving > 0:
            self._request("remove", self._rng.sample(stay, leaving))

    def _forget_one(self, topology: Topology) -> None:
        alive = self._world.membership.alive("")
        dead = [member.id for member in topology.members if member.id not in alive]
        # Without the last but one, the next lost disk would be the end of the data.
        stay = [member.id for member in topology.before() if member.state is not State.LEAVING]
        if dead and len(stay) > max(2, topology.replicas - 1):
            self._request("forget", [self._rng.choice(dead)])

    def _replace_one(self, topology: Topology) -> None:
        waiting = [node for node in self._spares() if node.is_running]
        if waiting:
            old = self._rng.choice([member.id for member in topology.members])
            self._request("replace", [old, self._rng.choice(waiting).name])
            return
        idle = self._spares()
        if idle:
            node = self._rng.choice(idle)
            node.waits_to_be_added = True
            node.start()

    def change_often(self, times: int) -> None:
        """Make several requests in a row for which no machine has to start."""
        for _ in range(times):
            topology = self._world.membership.topology
            if topology is None or topology.restored is not None or self._world.is_healing:
                return
            if topology.change is not None:
                self._request(self._rng.choice(("pause", "resume", "rate", "cancel")), [], 20_000)
            elif len(topology.members) > max(2, topology.replicas - 1):
                self._request("remove", [self._rng.choice(topology.members).id])

    def drop(self) -> None:
        """Drop an index or a part of it, by the clock of any peer, as a client requests it."""
        world, membership = self._world, self._world.membership
        topology = membership.topology
        if topology is None or topology.restored is not None:
            return
        cores = [node.core for node in world.nodes if node.core is not None and not node.is_paused]
        stamps = [core.clock.highest_acked() for core in cores if core.clock.knows_majority]
        known = [stamp for stamp in stamps if stamp != MAX_STAMP]
        if not known:
            return
        index, prefix = self._rng.choice(world.indexes), self._rng.choice(("", "", "key1"))
        stamp = self._rng.choice(known)
        try:
            wanted = with_drop(topology, index, prefix.encode(), stamp)
        except DStashError as error:
            world.note(f"drop {index} {prefix}: {error}")
            return
        if not membership.compare_and_set("", wanted, membership.read("").token):
            return
        drop = wanted.drops[-1]
        world.note(f"request: drop {index} {prefix} up to {drop.stamp}")
        version = highest_version(drop.stamp)
        writes = [
            world.history.add(
                Write("drop", "operator", place, Level.QUORUM, world.events.now, versions=[version])
            )
            for place in world.places
            if place[0] == index and place[1].startswith(prefix)
        ]
        self._await_drop(writes, DropAcks(wanted, drop))

    def _await_drop(self, writes: list[Write], acks: DropAcks) -> None:
        """Count a drop as acked once enough peers have confirmed it, as a client does.

        A drop that the topology has lost is never acked.
        """
        world = self._world
        view = self._asked(acks)
        if view is None or not (acks.is_acked(view) or acks.is_lost(view)):
            world.events.after(20 * MS, self._await_drop, writes, acks)
            return
        for write in writes if acks.is_acked(view) else ():
            write.outcome, write.acked = Outcome.STORED, write.versions[0]
            write.returned = world.events.now

    def set_index(self) -> None:
        """Change the settings of an index, by the clock of any peer, as a client requests it."""
        world, membership = self._world, self._world.membership
        topology = membership.topology
        if topology is None or topology.restored is not None:
            return
        cores = [node.core for node in world.nodes if node.core is not None and not node.is_paused]
        stamps = [core.clock.earliest() for core in cores if core.clock.knows_majority]
        if not stamps:
            return
        index, stamp = self._rng.choice(world.indexes), self._rng.choice(stamps)
        ttls, limits = (0, 400, 3_000, 60_000), (0, 900, 5_000, 30_000)
        settings = {"ttl": self._rng.choice(ttls), "max_ttl": self._rng.choice(limits)}
        try:
            wanted = with_settings(topology, index, settings, stamp)
        except DStashError as error:
            world.note(f"settings of {index}: {error}")
            return
        if wanted == topology:
            return
        if not membership.compare_and_set("", wanted, membership.read("").token):
            return
        world.note(f"request: settings of {index}: {settings}")
        request = SettingsRequest(
            wanted.index_settings(index) or IndexSettings(index), world.events.now
        )
        world.history.requests.setdefault(index, []).append(request)
        self._await_settings(request, SettingsAcks(wanted, index, settings))

    def _await_settings(self, request: SettingsRequest, acks: SettingsAcks) -> None:
        """Count settings as acked once enough peers have confirmed them, as a client does."""
        view = self._asked(acks)
        if view is None or not (acks.is_acked(view) or acks.is_lost(view)):
            self._world.events.after(20 * MS, self._await_settings, request, acks)
        elif acks.is_acked(view):
            request.returned = self._world.events.now

    def _asked(self, acks: RequestAcks) -> View | None:
        """Ask all peers for a request; return the view of the membership."""
        for node in self._world.nodes:
            if node.core is not None and node.core.view is not None:
                view = node.core.view
                acks.take(node.name, view.topology, is_kept=view.is_kept)
        topology = self._world.membership.topology
        return None if topology is None else View(topology)

    def finish(self) -> None:
        """Let every topology change complete; check again every second.

        A request to resume is refused while a restored topology waits for members, and a lost
        topology may come back without it. So it is repeated. It may also come back with members
        that had left or were not running: they are started.
        """
        for node in self._world.nodes:
            if not node.is_running and self._world.is_member(node):
                node.start()
        self._go_on()
        self._lower_floors()
        self._start_joining()
        self._world.events.after(SECOND, self.finish)

    def _start_joining(self) -> None:
        """Start members that are down and joining in a topology that was restored meanwhile."""
        topology = self._world.membership.topology
        for node in self._world.nodes:
            member = topology.member(node.name) if topology is not None else None
            is_joining = member is not None and member.state is State.JOINING
            if is_joining and not node.is_running:
                node.start()

    def lower_floors(self) -> None:
        """Request lower floors by the clock of any peer, as an operator does who checks nothing."""
        cores = [node.core for node in self._world.nodes if node.core is not None]
        known = [core.clock.time() for core in cores if core.clock.knows_majority]
        if known:
            self._request("lower-floors", [], stamp=stamp_at(self._rng.choice(known)))

    def _lower_floors(self) -> None:
        """Request lower floors once a peer has floors that other peers do not accept.

        Such floors stay where most clocks were wrong when they were promised and a majority does
        not hold them. Status and readiness name them; ``docs/operations.md`` says what to do.
        """
        cores = [node.core for node in self._world.nodes if node.core is not None]
        settled = [core for core in cores if core.clock.knows_majority and core.clock.is_complete]
        bounds = [core.clock.latest() for core in settled]
        is_blocked = any(
            max(core.local_partitions.floor, core.local_partitions.newest_horizon) > bound
            for core in settled
            for bound in bounds
        )
        self._looks_blocked = self._looks_blocked + 1 if is_blocked else 0
        if self._looks_blocked >= _LOOKS_BEFORE_LOWERING:
            self._looks_blocked = 0
            self._request("lower-floors", [], stamp=stamp_at(settled[0].clock.time()))

    def _go_on(self) -> None:
        """Let a paused or slow topology change complete."""
        topology = self._world.membership.topology
        if topology is None or topology.change is None:
            return
        if topology.change.rate:
            self._request("rate", [], 0)
        if topology.change.paused:
            self._request("resume", [])

    def _request(self, action: str, peers: list[str], rate: int = 0, stamp: Stamp = 0) -> None:
        """Carry out a request at once, as a peer does."""
        membership = self._world.membership
        topology = membership.topology
        if topology is None or topology.restored is not None:
            return  # the membership agent refuses admin requests then
        try:
            wanted = requested(topology, membership.alive(""), action, peers, rate, stamp)
        except DStashError as error:
            self._world.note(f"{action} {peers}: {error}")
            return
        self._world.note(f"request: {action} {', '.join(peers)}")
        membership.compare_and_set("", wanted, membership.read("").token)
