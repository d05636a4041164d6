"""The registry of fault kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.simulation.events import MS, SECOND

if TYPE_CHECKING:
    from tests.simulation.faults.schedule import Faults

#: Ends a fault; None if there is nothing to end.
Undo = Callable[[], object] | None

Begin = Callable[["Faults"], Undo]

#: Mean durations of a fault, of which each occurrence draws one.
DURATIONS: Final = (200 * MS, SECOND, SECOND, 4 * SECOND, 12 * SECOND)


@dataclass(frozen=True, slots=True)
class Kind:
    """A fault kind.

    Attributes:
        begin: begins the fault and returns the function that ends it.
        share: the share of all runs that have this kind, in addition to those of the common
            sample; None for a kind of the common sample.
        durations: mean durations, of which each occurrence draws one.
        at_least: the shortest duration (microseconds).
    """

    begin: Begin
    share: float | None
    durations: tuple[int, ...]
    at_least: int


KINDS: Final[dict[str, Kind]] = {}

#: Kinds that the code does not survive yet, and the reason. Runs do not draw them; ``--with`` adds
#: them by name.
KINDS_PENDING: Final[dict[str, str]] = {}


def kind(
    name: str,
    *,
    share: float | None = None,
    durations: tuple[int, ...] = DURATIONS,
    at_least: int = 0,
    pending: str = "",
) -> Callable[[Begin], Begin]:
    """Register a fault kind.

    Args:
        name: as in ``--with``.
        share: see ``Kind``. New kinds need a share: if the common sample changed, every seed would
        change its meaning.
        durations: see ``Kind``.
        at_least: see ``Kind``.
        pending: why runs do not draw it yet.
    """

    def register(begin: Begin) -> Begin:
        if name in KINDS:
            raise ValueError(f"two fault kinds are called {name!r}")
        KINDS[name] = Kind(begin, share, durations, at_least)
        if pending:
            KINDS_PENDING[name] = pending
        return begin

    return register


def common_kinds() -> list[str]:
    """Return the names of the kinds of which every run has a sample, in order."""
    return sorted(name for name, known in KINDS.items() if known.share is None)


def shared_kinds() -> dict[str, float]:
    """Return the kinds with a share of their own, and the share."""
    return {
        name: known.share
        for name, known in sorted(KINDS.items())
        if known.share is not None and name not in KINDS_PENDING
    }
