"""Faults of client processes. A fork is not a fault, but afterwards two processes share state."""

from __future__ import annotations

from tests.simulation.faults.registry import Undo, kind
from tests.simulation.faults.schedule import Faults

#: Calls of a forked process.
_CALLS = 25


@kind("fork", share=0.05)
def fork(faults: Faults) -> Undo:
    """Fork a client: both processes continue."""
    world = faults.world
    parent = faults.rng.choice(world.clients)
    if len(world.clients) > 12 or parent.is_paused:
        return None
    child = parent.fork(f"{parent.name}f{len(world.clients)}")
    faults.note(f"{parent.name} forks {child.name}")
    world.add_client(child, _CALLS)
    return None
