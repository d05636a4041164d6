"""The registry of profiles."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from tests.simulation.conditions import Conditions
from tests.simulation.registry import independent

Change = Callable[[Conditions, Random], Conditions]


@dataclass(frozen=True, slots=True)
class Profile:
    """A change of the conditions, and the share of all runs that have it."""

    change: Change
    share: float


PROFILES: Final[dict[str, Profile]] = {}

#: Profiles that the code does not survive yet, and the reason. Runs do not draw them; ``--profile``
#: adds them by name.
PROFILES_PENDING: Final[dict[str, str]] = {}


def profile(name: str, *, share: float, pending: str = "") -> Callable[[Change], Change]:
    """Register a profile.

    Args:
        name: as in ``--profile``.
        share: the share of all runs that have it.
        pending: why runs do not draw it yet.
    """

    def register(change: Change) -> Change:
        if name in PROFILES:
            raise ValueError(f"two profiles are called {name!r}")
        PROFILES[name] = Profile(change, share)
        if pending:
            PROFILES_PENDING[name] = pending
        return change

    return register


def apply(drawn: Conditions, token: int, always: Collection[str] = ()) -> Conditions:
    """Return the conditions with the profiles of this run, which ``token`` decides."""
    for name, known in sorted(PROFILES.items()):
        rng = independent(token, f"profile {name}")
        is_drawn = rng.random() < known.share and name not in PROFILES_PENDING
        if is_drawn or name in always:
            changed = known.change(drawn, rng)
            drawn = replace(changed, profiles=(*drawn.profiles, name))
    return drawn
