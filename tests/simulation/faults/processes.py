"""Faults of processes: kills, stops, pauses and moves."""

from __future__ import annotations

from tests.simulation.events import MS
from tests.simulation.faults.registry import Undo, kind
from tests.simulation.faults.schedule import Faults
from tests.simulation.node import Node


@kind("kill")
def kill(faults: Faults) -> Undo:
    """Kill a process."""
    return _down(faults, faults.any_node(), power=False)


@kind("power")
def power(faults: Faults) -> Undo:
    """Cut the power of a machine."""
    return _down(faults, faults.any_node(), power=True)


def _down(faults: Faults, node: Node, *, power: bool) -> Undo:
    if not node.is_running:
        return None
    node.kill(power=power)
    return lambda: faults.start(node)


@kind("kill_all")
def kill_all(faults: Faults) -> Undo:
    """Kill all processes at once."""
    nodes = faults.world.nodes
    for node in nodes:
        node.kill(power=faults.rng.random() < 0.5)

    def undo() -> None:
        for node in nodes:
            faults.start(node)

    return undo


@kind("stop")
def stop(faults: Faults) -> Undo:
    """Stop a process, and start it once it is down."""
    node = faults.any_node()
    node.stop()
    return lambda: _start_once_down(faults, node)


def _start_once_down(faults: Faults, node: Node) -> None:
    if node.core is not None and node.core.health.stopping:
        faults.world.events.after(100 * MS, _start_once_down, faults, node)
    else:
        faults.start(node)


@kind("pause")
def pause(faults: Faults) -> Undo:
    """Stop a process as SIGSTOP does."""
    node = faults.any_node()
    node.pause()
    return node.resume


@kind("pause_client")
def pause_client(faults: Faults) -> Undo:
    """Stop a client as SIGSTOP does."""
    client = faults.rng.choice(faults.world.clients)
    client.pause()
    return client.resume


@kind("move")
def move(faults: Faults) -> Undo:
    """Give a machine another address."""
    node = faults.any_node()
    if node.is_running:
        node.kill(power=False)
    node.move()
    return lambda: faults.start(node)
