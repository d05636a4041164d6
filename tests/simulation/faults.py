"""What goes wrong, when, and for how long. Every fault ends at the latest when chaos does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tests.simulation.events import MS, SECOND
from tests.simulation.node import Node
from tests.simulation.orders import Operator

if TYPE_CHECKING:
    from tests.simulation.world import World

#: Takes a fault back; None when there is nothing to take back.
Undo = Callable[[], object] | None


class Faults:
    """Begins faults at random until it is told to stop, then takes back those under way.

    A run suffers only from some kinds (``world.conditions.faults``): faults that always come
    all together hide each other's bugs (Groce et al., "Swarm Testing", 2012).
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng
        self._under_way: dict[int, Callable[[], object]] = {}
        self._count = 0
        self._is_over = False
        #: The one machine whose disk is wiped or rots: more than one would be beyond what
        #: replicas can make up for.
        self._unlucky = world.rng.choice(world.nodes[: world.conditions.peers])
        self._operator = Operator(world)

    def begin(self) -> None:
        """Let faults happen from now on."""
        self._next()

    def end(self) -> None:
        """Let no more happen, and take back those under way."""
        self._is_over = True
        for number in list(self._under_way):
            self._take_back(number)

    def _next(self) -> None:
        pause = self._world.conditions.calm
        self._world.events.after(int(self._rng.expovariate(1 / pause)), self._strike)

    def _strike(self) -> None:
        if self._is_over:
            return
        kind = self._rng.choice(self._world.conditions.faults)
        undo = KINDS[kind](self)
        if undo is not None:
            self._count += 1
            number = self._count
            self._under_way[number] = undo
            lasting = self._rng.choice((200 * MS, SECOND, SECOND, 4 * SECOND, 12 * SECOND))
            self._world.events.after(
                int(self._rng.expovariate(1 / lasting)), self._take_back, number
            )
        self._next()

    def _take_back(self, number: int) -> None:
        undo = self._under_way.pop(number, None)
        if undo is not None:
            undo()

    def _node(self) -> Node:
        return self._rng.choice(self._world.nodes)

    def _note(self, text: str) -> None:
        self._world.note(f"fault: {text}")

    # -- processes

    def _kill(self) -> Undo:
        return self._down(self._node(), power=False)

    def _power(self) -> Undo:
        return self._down(self._node(), power=True)

    def _down(self, node: Node, *, power: bool) -> Undo:
        if not node.is_running:
            return None
        node.kill(power=power)
        return lambda: self._start(node)

    def _start(self, node: Node) -> None:
        if not node.is_running and self._world.is_member(node):
            node.start()

    def _kill_all(self) -> Undo:
        for node in self._world.nodes:
            node.kill(power=self._rng.random() < 0.5)
        return self._start_all

    def _start_all(self) -> None:
        for node in self._world.nodes:
            self._start(node)

    def _stop(self) -> Undo:
        node = self._node()
        node.stop()
        return lambda: self._start_once_down(node)

    def _start_once_down(self, node: Node) -> None:
        if node.core is not None and node.core.stopping:
            self._world.events.after(100 * MS, self._start_once_down, node)
        else:
            self._start(node)

    def _pause(self) -> Undo:
        node = self._node()
        node.pause()
        return node.resume

    def _pause_client(self) -> Undo:
        client = self._rng.choice(self._world.clients)
        client.pause()
        return client.resume

    def _move(self) -> Undo:
        node = self._node()
        if node.is_running:
            node.kill(power=False)
        node.move()
        return lambda: self._start(node)

    # -- disks

    def _wipe(self) -> Undo:
        node = self._unlucky
        topology = self._world.membership.topology
        # The next disk may be lost only after this one has been filled again.
        if topology is None or not topology.formed or not all(m.synced for m in topology.members):
            return None
        if not self._world.is_member(node):
            return None
        if any(one.store_id != self._store_of(one.id) for one in topology.members):
            return None
        node.kill(power=True)
        node.wipe()
        self._world.wiped = True
        return lambda: self._start(node)

    def _store_of(self, peer: str) -> str:
        return next(node.store.store_id for node in self._world.nodes if node.name == peer)

    def _damage(self) -> Undo:
        store = self._unlucky.store
        if store.records:
            storage_key = self._rng.choice(store.ordered())
            store.damage(storage_key, self._rng.randrange(1 << 16))
            self._note(f"{self._unlucky.name} has a rotten record {storage_key[3:]!r}")
            self._world.damaged = True
        return None

    def _slow_disk(self) -> Undo:
        node = self._node()
        before = node.sync_time
        node.sync_time = self._rng.choice((20 * MS, 200 * MS, 1500 * MS))
        self._note(f"{node.name} syncs in {node.sync_time // MS} ms")

        def undo() -> None:
            node.sync_time = min(before, 300)

        return undo

    def _full_disk(self) -> Undo:
        store = self._node().store
        store.is_full = True
        self._note(f"{store.store_id} is full")

        def undo() -> None:
            store.is_full = False

        return undo

    def _failing_disk(self) -> Undo:
        store = self._node().store
        store.fails_next = True
        self._note(f"the next sync of {store.store_id} fails")

        def undo() -> None:
            store.fails_next = False

        return undo

    # -- network

    def _isolate(self) -> Undo:
        node = self._node()
        others = self._others(node)
        return self._cut([pair for one in others for pair in ((node.name, one), (one, node.name))])

    def _isolate_one_way(self) -> Undo:
        node = self._node()
        others = self._others(node)
        if self._rng.random() < 0.5:
            return self._cut([(node.name, one) for one in others])
        return self._cut([(one, node.name) for one in others])

    def _others(self, node: Node) -> list[str]:
        return [name for name in self._everyone() if name != node.name]

    def _everyone(self) -> list[str]:
        names = [node.name for node in self._world.nodes]
        return names + [client.name for client in self._world.clients]

    def _cut_pair(self) -> Undo:
        node = self._node()
        other = self._rng.choice(self._others(node))
        pairs = [(node.name, other), (other, node.name)]
        return self._cut(self._rng.choice((pairs, pairs[:1], pairs[1:])))

    def _split(self) -> Undo:
        everyone = self._everyone()
        left = {name for name in everyone if self._rng.random() < 0.5}
        return self._cut([(a, b) for a in everyone for b in everyone if (a in left) != (b in left)])

    def _cut(self, pairs: list[tuple[str, str]]) -> Undo:
        network = self._world.network
        for pair in pairs:
            network.cut(*pair)
        shown = ", ".join(f"{source}>{target}" for source, target in pairs)
        self._note(f"cut {shown}")

        def undo() -> None:
            self._note(f"healed {shown}")
            for pair in pairs:
                network.heal(*pair)

        return undo

    def _break(self) -> Undo:
        self._world.network.break_some()
        return None

    def _slow_network(self) -> Undo:
        network, node = self._world.network, self._node()
        if node.name in network.slow:
            return None
        network.slow[node.name] = self._rng.choice((5 * MS, 50 * MS, 400 * MS))
        return lambda: network.slow.pop(node.name)

    def _storm(self) -> Undo:
        network = self._world.network
        if network.loss or network.lateness:
            return None
        network.loss = self._rng.choice((0.0, 0.01, 0.05))
        network.lateness = self._rng.choice((0.02, 0.2))

        def undo() -> None:
            network.loss = network.lateness = 0.0

        return undo

    # -- clocks

    def _step_clock(self) -> Undo:
        node = self._node()
        step = self._rng.choice(self._world.conditions.clock_steps)
        node.clock.step(step)
        self._note(f"the clock of {node.name} steps by {step} ms")
        return lambda: node.clock.step(-step)

    # -- membership

    def _no_membership(self) -> Undo:
        return self._without_membership([self._node().name])

    def _no_membership_at_all(self) -> Undo:
        return self._without_membership([node.name for node in self._world.nodes])

    def _without_membership(self, names: list[str]) -> Undo:
        membership = self._world.membership
        for name in names:
            membership.cut_off(name)
        self._note(f"no membership for {', '.join(names)}")

        def undo() -> None:
            for name in names:
                membership.let_through(name)

        return undo

    def _election(self) -> Undo:
        self._world.membership.lose_locks()
        return None

    # -- no fault, but what operators do in between

    def _change(self) -> Undo:
        return self._operator.act()


KINDS: Final[dict[str, Callable[[Faults], Undo]]] = {
    "kill": Faults._kill,
    "power": Faults._power,
    "kill_all": Faults._kill_all,
    "stop": Faults._stop,
    "pause": Faults._pause,
    "pause_client": Faults._pause_client,
    "move": Faults._move,
    "wipe": Faults._wipe,
    "damage": Faults._damage,
    "slow_disk": Faults._slow_disk,
    "full_disk": Faults._full_disk,
    "failing_disk": Faults._failing_disk,
    "isolate": Faults._isolate,
    "isolate_one_way": Faults._isolate_one_way,
    "cut_pair": Faults._cut_pair,
    "split": Faults._split,
    "break": Faults._break,
    "slow_network": Faults._slow_network,
    "storm": Faults._storm,
    "step_clock": Faults._step_clock,
    "no_membership": Faults._no_membership,
    "no_membership_at_all": Faults._no_membership_at_all,
    "election": Faults._election,
    "change": Faults._change,
}
