"""Faults of the membership: unreachable, or without its locks."""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.events import MS, SECOND
from tests.simulation.faults.network import cut
from tests.simulation.faults.registry import Undo, kind
from tests.simulation.faults.schedule import Faults


@kind("no_membership")
def no_membership(faults: Faults) -> Undo:
    """Make the membership unreachable for a peer."""
    return _without_membership(faults, [faults.any_node().name])


@kind("no_membership_at_all")
def no_membership_at_all(faults: Faults) -> Undo:
    """Make the membership unreachable for all peers."""
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


@kind("failing_turns", share=0.05)
def failing_turns(faults: Faults) -> Undo:
    """Make every round of a peer's membership thread fail."""
    failing, name = faults.world.membership.failing, faults.any_node().name
    failing.add(name)
    faults.note(f"iterations of the membership thread of {name} fail")
    return lambda: failing.discard(name)


@kind("election")
def election(faults: Faults) -> Undo:
    """Release every lock, as an election does."""
    faults.world.membership.lose_locks()
    return None


@kind("lost_topology", share=0.04)
def lost_topology(faults: Faults) -> Undo:
    """Delete the topology from the membership, while peers run or are down."""
    return _corrupt_topology(faults, faults.world.membership.lose_topology)


@kind("old_topology", share=0.04)
def old_topology(faults: Faults) -> Undo:
    """Roll the membership back to an older topology, while peers run or are down."""
    return _corrupt_topology(faults, faults.world.membership.roll_back)


def _corrupt_topology(faults: Faults, corruption: Callable[[], None]) -> Undo:
    topology = faults.world.membership.topology
    if topology is None or not topology.formed or topology.restored is not None:
        return None
    down = [node for node in faults.world.nodes if faults.rng.random() < 0.5]
    if faults.rng.random() < 0.5:
        down = []
    for node in down:
        node.kill(power=False)
    corruption()

    def undo() -> None:
        for node in down:
            faults.start(node)

    return undo


@kind("empty_first", share=0.03)
def empty_first(faults: Faults) -> Undo:
    """Start an empty peer first after all peers stopped and the topology was lost."""
    world = faults.world
    topology = world.membership.topology
    if topology is None or not topology.formed or topology.restored is not None:
        return None
    empty = [node for node in world.nodes if not node.is_running and not world.is_member(node)]
    if not empty:
        return None
    members = [node for node in world.nodes if world.is_member(node)]
    for node in world.nodes:
        node.kill(power=False)
    world.membership.lose_topology()
    first = faults.rng.choice(empty)
    faults.note(f"{first.name} is empty and starts first")
    first.start()

    def undo() -> None:
        for node in members:
            if not node.is_running:  # the topology of the empty peer has no other member
                node.start()

    return undo


@kind("forked_history", share=0.04, durations=(SECOND, 3 * SECOND), at_least=3 * SECOND)
def forked_history(faults: Faults) -> Undo:
    """Lose the topology, or put an old one back, while one member alone knows the last changes.

    Other changes follow before that member can read the membership again.
    """
    world, membership, rng = faults.world, faults.world.membership, faults.rng
    before = membership.topology
    members = [node for node in world.nodes if node.is_running and world.is_member(node)]
    is_settled = before is not None and before.formed and before.restored is None
    if before is None or not is_settled or len(members) < 3 or faults.is_forked:
        return None
    faults.is_forked = True
    ahead = rng.choice(members).name
    behind = [node.name for node in world.nodes if node.name != ahead]
    # The others must not hear of the changes from it.
    pairs = [pair for name in behind for pair in ((ahead, name), (name, ahead))]
    undos = [cut(faults, pairs), _without_membership(faults, behind)]
    is_lost = rng.random() < 0.5
    # Where no member notices the older copy, the changes of the others must not be fewer.
    lost_changes = rng.randint(1, 5) if is_lost else 1

    def fork() -> None:
        if not undos:
            return
        while_behind = undos.pop()
        undos.append(_without_membership(faults, [ahead]))
        if is_lost:
            membership.lose_topology()
        else:
            world.may_share_epochs = True
            membership.put_back(before)
        if while_behind is not None:
            while_behind()

    events, change = world.events, faults.operator.change_often
    events.after(400 * MS, change, lost_changes)
    events.after(1_000 * MS, fork)
    events.after(2_500 * MS, change, rng.randint(1, 3))

    def undo() -> None:
        faults.is_forked = False
        while undos:
            take_back = undos.pop()
            if take_back is not None:
                take_back()

    return undo
