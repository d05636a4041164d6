"""The schedule of faults. Every fault ends at the latest with the time of faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulation.disk import Copy
from tests.simulation.faults.admin_requests import Operator
from tests.simulation.faults.registry import KINDS
from tests.simulation.node import Node

if TYPE_CHECKING:
    from tests.simulation.world import World


class Faults:
    """Begins faults at random until it is stopped, then ends the remaining faults.

    A run has only some kinds (``world.conditions.faults``): faults that always occur together mask
    each other's bugs (Groce et al., "Swarm Testing", 2012).
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.rng
        self._undos: dict[int, Callable[[], object]] = {}
        self._count = 0
        self._is_over = False
        #: The only machine whose disk is wiped or corrupted: replicas cannot compensate for more.
        self.unlucky = world.rng.choice(world.nodes[: world.conditions.peers])
        #: Copies of its disk.
        self.copies: list[Copy] = []
        #: Whether one member alone knows the last changes of the topology.
        self.is_forked = False
        self.operator = Operator(world)

    def begin(self) -> None:
        """Start faults."""
        self._next()

    def end(self) -> None:
        """Start no more faults, and end the remaining ones."""
        self._is_over = True
        for number in list(self._undos):
            self._take_back(number)
        self.operator.finish()

    def _next(self) -> None:
        pause = self.world.conditions.calm
        self.world.events.after(int(self.rng.expovariate(1 / pause)), self._strike)

    def _strike(self) -> None:
        if self._is_over:
            return
        kind = KINDS[self.rng.choice(self.world.conditions.faults)]
        undo = kind.begin(self)
        if undo is not None:
            mean = self.rng.choice(kind.durations)
            lasting = int(self.rng.expovariate(1 / mean))
            self.take_back_after(kind.at_least + lasting, undo)
        self._next()

    def take_back_after(self, delay: int, undo: Callable[[], object]) -> None:
        """End a fault after a delay (microseconds), or at the end of the time of faults."""
        self._count += 1
        self._undos[self._count] = undo
        self.world.events.after(delay, self._take_back, self._count)

    def _take_back(self, number: int) -> None:
        undo = self._undos.pop(number, None)
        if undo is not None:
            undo()

    # -- for fault kinds

    def any_node(self) -> Node:
        """Return a machine, drawn at random."""
        return self.rng.choice(self.world.nodes)

    def note(self, text: str) -> None:
        """Write into the trace."""
        self.world.note(f"fault: {text}")

    def start(self, node: Node) -> None:
        """Start the process of a member that is down."""
        if not node.is_running and self.world.is_member(node):
            node.start()
