"""Faults of the membership: out of reach, or without its locks."""

from __future__ import annotations

from tests.simulation.faults.registry import Undo, kind
from tests.simulation.faults.schedule import Faults


@kind("no_membership")
def no_membership(faults: Faults) -> Undo:
    """Let a peer not reach the membership."""
    return _without_membership(faults, [faults.any_node().name])


@kind("no_membership_at_all")
def no_membership_at_all(faults: Faults) -> Undo:
    """Let no peer reach the membership."""
    return _without_membership(faults, [node.name for node in faults.world.nodes])


def _without_membership(faults: Faults, names: list[str]) -> Undo:
    membership = faults.world.membership
    for name in names:
        membership.cut_off(name)
    faults.note(f"no membership for {', '.join(names)}")

    def undo() -> None:
        for name in names:
            membership.let_through(name)

    return undo


@kind("election")
def election(faults: Faults) -> Undo:
    """Take every lock, as an election does."""
    faults.world.membership.lose_locks()
    return None
