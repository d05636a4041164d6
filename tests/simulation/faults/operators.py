"""What operators do while everything else goes wrong. It is no fault, but it meets them."""

from __future__ import annotations

from tests.simulation.faults.registry import Undo, kind
from tests.simulation.faults.schedule import Faults


@kind("change")
def change(faults: Faults) -> Undo:
    """Change the placement."""
    return faults.operator.act()
