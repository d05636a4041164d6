"""Faults of clocks: steps, forward and back."""

from __future__ import annotations

from tests.simulation.faults.registry import Undo, kind
from tests.simulation.faults.schedule import Faults


@kind("step_clock")
def step_clock(faults: Faults) -> Undo:
    """Set the clock of a machine forward or back."""
    node = faults.any_node()
    step = faults.rng.choice(faults.world.conditions.clock_steps)
    node.clock.step(step)
    faults.note(f"the clock of {node.name} steps by {step} ms")
    return lambda: node.clock.step(-step)
