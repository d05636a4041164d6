"""The registry of checks, and their input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.simulation.clock import WallClock
from tests.simulation.history import History, Place, Present

if TYPE_CHECKING:
    from tests.simulation.world import World


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that did not hold."""

    invariant: str
    place: Place | None
    text: str

    def __str__(self) -> str:
        where = f" {self.place[0]}/{self.place[1]}" if self.place else ""
        return f"{self.invariant}{where}: {self.text}"


class Terms(NamedTuple):
    """The conditions under which a run is checked.

    ``slack_ms``: the largest error of any clock: an expiry may come early or late by this much.
    ``keeps_ones``: whether writes acked by a single replica must survive (no store was lost, no
    partition moved).
    ``delivers_once``: whether a request that was refused stays refused; not so where the network
    delivers copies, which TCP never does after an answer.
    ``keeps_order``: whether the higher version always wins. If clocks were far off, or those of so
    many members that their median was, a later write may have replaced a record from the future,
    and peers may have restamped records.
    ``shares_epochs``: whether two topologies of one epoch, with other settings, may have existed.
    ``clocks``: of the members. A record that is from the future by their median, and that a single
    replica has, loses to any other write. ``presents`` has what each peer took for the present: it
    is early where it could not read the clocks of a majority, or only wrong ones.
    """

    replicas: int
    slack_ms: int
    keeps_ones: bool
    delivers_once: bool
    keeps_order: bool = True
    shares_epochs: bool = False
    clocks: Sequence[WallClock] = ()
    presents: Sequence[Present] = ()


class Run(NamedTuple):
    """The input of a check."""

    history: History
    terms: Terms
    world: World


class When(Enum):
    """When a check runs."""

    #: Repeated while the cluster recovers, until no check fails or time is over.
    RECOVERED = "recovered"
    #: Once, after all calls, including the final reads of every key.
    END = "end"


Check = Callable[[Run], Iterable[Violation]]

CHECKS: Final[dict[str, tuple[When, Check]]] = {}

#: Checks that the code does not pass yet, and the reason. ``--check`` runs them.
CHECKS_PENDING: Final[dict[str, str]] = {}


def check(when: When = When.END, *, pending: str = "") -> Callable[[Check], Check]:
    """Register a check under the name of its function.

    Args:
        when: when the check runs.
        pending: why runs leave it out for now.
    """

    def register(function: Check) -> Check:
        name = getattr(function, "__name__", "")
        if name in CHECKS:
            raise ValueError(f"two checks are called {name!r}")
        CHECKS[name] = when, function
        if pending:
            CHECKS_PENDING[name] = pending
        return function

    return register


def judge(run: Run, when: When) -> list[Violation]:
    """Return the violations that the checks of this phase find."""
    return [
        violation
        for name, (moment, function) in CHECKS.items()
        if moment is when and (name not in CHECKS_PENDING or name in run.world.also_checked)
        for violation in function(run)
    ]
