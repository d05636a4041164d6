"""Faults of the network: cuts, breaks, delays and losses."""

from __future__ import annotations

from tests.simulation.events import MS, SECOND
from tests.simulation.faults.registry import Undo, kind
from tests.simulation.faults.schedule import Faults
from tests.simulation.node import Node


@kind("isolate")
def isolate(faults: Faults) -> Undo:
    """Cut a peer off from all others, both ways."""
    node = faults.any_node()
    pairs = [
        pair for other in _others(faults, node) for pair in ((node.name, other), (other, node.name))
    ]
    return cut(faults, pairs)


@kind("isolate_one_way")
def isolate_one_way(faults: Faults) -> Undo:
    """Cut a peer off from all others in one direction."""
    node = faults.any_node()
    others = _others(faults, node)
    if faults.rng.random() < 0.5:
        return cut(faults, [(node.name, other) for other in others])
    return cut(faults, [(other, node.name) for other in others])


@kind("cut_pair")
def cut_pair(faults: Faults) -> Undo:
    """Cut two machines off from each other, one way or both."""
    node = faults.any_node()
    other = faults.rng.choice(_others(faults, node))
    pairs = [(node.name, other), (other, node.name)]
    return cut(faults, faults.rng.choice((pairs, pairs[:1], pairs[1:])))


@kind("split")
def split(faults: Faults) -> Undo:
    """Split all machines into two sides."""
    everyone = _everyone(faults)
    left = {name for name in everyone if faults.rng.random() < 0.5}
    pairs = [(a, b) for a in everyone for b in everyone if (a in left) != (b in left)]
    return cut(faults, pairs)


def cut(faults: Faults, pairs: list[tuple[str, str]]) -> Undo:
    """Block messages between pairs of (source, target)."""
    network = faults.world.network
    for pair in pairs:
        network.cut(*pair)
    shown = ", ".join(f"{source}>{target}" for source, target in pairs)
    faults.note(f"cut {shown}")

    def undo() -> None:
        faults.note(f"restored {shown}")
        for pair in pairs:
            network.restore(*pair)

    return undo


def _others(faults: Faults, node: Node) -> list[str]:
    return [name for name in _everyone(faults) if name != node.name]


def _everyone(faults: Faults) -> list[str]:
    names = [node.name for node in faults.world.nodes]
    return names + [client.name for client in faults.world.clients]


@kind("break")
def break_connection(faults: Faults) -> Undo:
    """Break a connection and lose the messages in flight."""
    faults.world.network.break_some()
    return None


@kind("slow_network")
def slow_network(faults: Faults) -> Undo:
    """Delay every message of a machine."""
    network, node = faults.world.network, faults.any_node()
    if node.name in network.slow:
        return None
    network.slow[node.name] = faults.rng.choice((5 * MS, 50 * MS, 400 * MS))
    return lambda: network.slow.pop(node.name)


@kind("storm")
def storm(faults: Faults) -> Undo:
    """Lose and delay some messages of all machines."""
    network = faults.world.network
    if network.loss or network.lateness:
        return None
    network.loss = faults.rng.choice((0.0, 0.01, 0.05))
    network.lateness = faults.rng.choice((0.02, 0.2))

    def undo() -> None:
        network.loss = network.lateness = 0.0

    return undo


@kind("slow_client", share=0.04, durations=(SECOND, 4 * SECOND))
def slow_client(faults: Faults) -> Undo:
    """Delay every message of a client: its writes arrive after later writes of others."""
    network = faults.world.network
    client = faults.rng.choice(faults.world.clients)
    if client.name in network.slow:
        return None
    network.slow[client.name] = faults.rng.choice((50 * MS, 400 * MS, 1500 * MS))
    faults.note(f"{client.name} is slow")
    return lambda: network.slow.pop(client.name)


@kind("lost_requests", share=0.04, durations=(SECOND,), at_least=300 * MS)
def lost_requests(faults: Faults) -> Undo:
    """Lose all that clients send to one peer, which the other peers still reach."""
    network = faults.world.network
    running = [node.name for node in faults.world.nodes if node.is_running]
    if not running:
        return None
    name = faults.rng.choice(running)
    clients = [client.name for client in faults.world.clients]
    restore = cut(faults, [(client, name) for client in clients])

    def undo() -> None:
        for client in clients:
            network.break_between(client, name)
        if restore is not None:
            restore()

    return undo
