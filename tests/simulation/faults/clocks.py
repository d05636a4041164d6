"""Faults of clocks: steps, forward and back."""

from __future__ import annotations

from typing import Final

from tests.simulation.events import SECOND
from tests.simulation.faults.registry import Undo, kind
from tests.simulation.faults.schedule import Faults
from tests.simulation.losses import Loss


@kind("step_clock")
def step_clock(faults: Faults) -> Undo:
    """Set the clock of a machine forward or back."""
    node = faults.any_node()
    step = faults.rng.choice(faults.world.conditions.clock_steps)
    node.clock.step(step)
    faults.note(f"the clock of {node.name} steps by {step} ms")
    return lambda: node.clock.step(-step)


_HOUR_MS: Final = 3_600_000
_YEAR_MS: Final = 365 * 24 * _HOUR_MS


@kind(
    "far_clock",
    share=0.06,
    durations=(SECOND, 20 * SECOND),
    at_least=12 * SECOND,
)
def far_clock(faults: Faults) -> Undo:
    """Set the clocks of one, two or all machines wrong by hours or years."""
    rng, nodes = faults.rng, faults.world.nodes
    faults.world.losses.add(Loss.CLOCK)
    some = rng.sample(nodes, min(len(nodes), rng.choice((1, 1, 2, len(nodes)))))
    step = rng.choice((3_000, _HOUR_MS, _HOUR_MS, 10 * _YEAR_MS, -_HOUR_MS, -10 * _YEAR_MS))
    for node in some:
        node.clock.step(step)
    faults.note(f"the clocks of {', '.join(node.name for node in some)} step by {step} ms")

    def undo() -> None:
        faults.note(f"the clocks of {', '.join(node.name for node in some)} step back")
        for node in some:
            node.clock.step(-step)

    return undo
