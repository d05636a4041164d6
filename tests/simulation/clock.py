"""The clocks of virtual machines: each has its own offset and drift."""

from __future__ import annotations

from typing import Final

from tests.simulation.events import Events

#: The start of the world, in milliseconds since 1970.
BEGIN_MS: Final = 1_900_000_000_000


class WallClock:
    """The wall clock of one machine, in milliseconds since 1970.

    Args:
        offset_ms: how far it is ahead of true time.
        drift_ppm: how much further it gets ahead (microseconds a second).
    """

    def __init__(self, events: Events, offset_ms: int = 0, drift_ppm: int = 0) -> None:
        self._events = events
        self.offset_ms = offset_ms
        self.drift_ppm = drift_ppm
        #: Since when (microseconds) it was ahead by how much.
        self._steps = [(0, offset_ms)]
        #: The largest error it ever had.
        self.worst_ms = abs(offset_ms)

    def __call__(self) -> int:
        """Return the time that the clock shows."""
        return BEGIN_MS + self.offset_ms + (self._events.now + self._drifted()) // 1_000

    def _drifted(self) -> int:
        return self._events.now * self.drift_ppm // 1_000_000

    def error_ms(self) -> int:
        """Return the largest error this clock has had so far, drift included."""
        return max(self.worst_ms, abs(self.offset_ms) + abs(self._drifted()) // 1_000 + 1)

    def step(self, milliseconds: int) -> None:
        """Set the clock forward or back, but not before 1970, which no system allows."""
        self.worst_ms = self.error_ms()
        milliseconds = max(milliseconds, -self())
        self.offset_ms += milliseconds
        self._steps.append((self._events.now, self.offset_ms))
        self.worst_ms = max(self.worst_ms, self.error_ms())

    @property
    def set_at(self) -> list[int]:
        """The moments since which it was ahead by something else."""
        return [moment for moment, _ in self._steps]

    def offset_at(self, moment: int) -> int:
        """Return how far it was ahead at a moment, without drift."""
        return next(offset for begin, offset in reversed(self._steps) if begin <= moment)

    def steps_between(self, begin: int, end: int) -> list[int]:
        """Return the moments at which it was set."""
        return [moment for moment, _ in self._steps if begin < moment <= end]

    def set_right(self, within_ms: int = 200) -> None:
        """Correct a clock that is far off, so that peers accept its versions."""
        error = self.offset_ms + self._drifted() // 1_000
        if abs(error) > within_ms:
            self.step(-error)


def true_ms(moment: int) -> int:
    """Return a time of the world in milliseconds since 1970, rounded down."""
    return BEGIN_MS + moment // 1_000
