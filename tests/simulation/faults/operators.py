"""Topology changes by operators during faults."""

from __future__ import annotations

from tests.simulation.faults.registry import Undo, kind
from tests.simulation.faults.schedule import Faults


@kind("change")
def change(faults: Faults) -> Undo:
    """Start topology changes at random."""
    return faults.operator.act()


@kind("drop", share=0.2)
def drop(faults: Faults) -> Undo:
    """Drop an index, or the keys of it with a prefix."""
    faults.operator.drop()
    return None


@kind("settings", share=0.1)
def settings(faults: Faults) -> Undo:
    """Change the settings of an index."""
    faults.operator.set_index()
    return None


@kind("lower_floors", share=0.04)
def lower_floors(faults: Faults) -> Undo:
    """Lower floors and horizons to the time of the cluster, whether they are ahead or not."""
    faults.operator.lower_floors()
    return None
