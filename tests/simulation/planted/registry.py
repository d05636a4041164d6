"""The registry of planted faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Final, TypeVar

from tests.simulation.conditions import Conditions, draw_common
from tests.simulation.events import MS, SECOND
from tests.simulation.world import World

_CALLS: Final = 150

AnyWorld = TypeVar("AnyWorld", bound=type[World])


@dataclass(frozen=True, slots=True)
class Planted:
    """A planted fault.

    Attributes:
        world: makes the world of a seed.
        invariants: those that it may break.
        seeds: how many seeds find it, at most.
        first: the first of them.
    """

    world: Callable[[int], World]
    invariants: frozenset[str]
    seeds: int
    first: int


PLANTED: Final[dict[str, Planted]] = {}


def plant(
    name: str, *invariants: str, seeds: int = 40, first: int = 1
) -> Callable[[AnyWorld], AnyWorld]:
    """Register a world under the name of its planted fault.

    Args:
        name: as in ``--planted``.
        invariants: those that the fault may break; if another invariant breaks, the test fails.
        seeds: within how many seeds it must be found. The tests of all planted faults together
            should take less than a minute: choose conditions under which few seeds are needed.
        first: the first of them. Begin close to one that finds it; when the code has changed,
            others will.
    """

    def register(world: AnyWorld) -> AnyWorld:
        if name in PLANTED:
            raise ValueError(f"two planted faults are called {name!r}")
        PLANTED[name] = Planted(world, frozenset(invariants), seeds, first)
        return world

    return register


def planted_conditions(seed: int, *faults: str) -> Conditions:
    """Return conditions that reveal a planted fault: correct clocks and few keys.

    Args:
        seed: the seed of the world.
        faults: the fault kinds of the world.
    """
    drawn = draw_common(Random(seed), _CALLS)
    return replace(
        drawn,
        faults=faults,
        replicas=3,
        keys=4,
        levels=(0, 1, 0),
        offsets_ms=(0,) * drawn.peers,
        calm=SECOND,
        timeout=2.0,
        pause=100 * MS,
    )


def register_conditions(seed: int, *faults: str) -> Conditions:
    """Return conditions under which four clients call registers, and homes change often."""
    return replace(
        planted_conditions(seed, *faults),
        peers=3,
        offsets_ms=(0, 0, 0),
        clients=4,
        calm=300 * MS,
        pause=30 * MS,
        mix=(("register", 400),),
    )
