"""The life of a store: one process that ran on it, and how new the store was then."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from dstash.version import Stamp


class Life(NamedTuple):
    """One process on a store.

    Attributes:
        number: grows by one with each start.
        began: when the process started (milliseconds since 1970); distinguishes two lives that
            have the same number.
        stamp: the high water of the store, at the end of the life or when it was observed.
    """

    number: int
    began: int
    stamp: Stamp

    @property
    def start(self) -> tuple[int, int]:
        """The identity of the life: its number and its start."""
        return self.number, self.began


def lives_of(raw: Iterable[Any]) -> list[Life]:
    """Return lives from lists of three numbers; ``ValueError`` or ``TypeError`` if they are not."""
    return [Life(int(number), int(began), int(stamp)) for number, began, stamp in raw]
