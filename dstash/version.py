"""Versions: who wins when two replicas disagree.

A version is 20 bytes, compared as bytes, highest wins::

    0        8         12        20
    | stamp  | writer  | touched |
    stamp    hybrid logical clock of the write: 48 bits of milliseconds, 16 bits of counter
    writer   random id of the writing client, breaks ties between equal stamps
    touched  hybrid logical clock of the last change of the expiry alone, 0 if never

``touched`` comes last so that a ``touch`` extends exactly the value it saw: any later put,
even one that was stamped before the touch but is still on its way, beats it.

The clock is the hybrid logical clock of Kulkarni et al., "Logical Physical Clocks" (2014):
close to wall time, never going back, and moved forward by what it sees.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

Version = bytes
Stamp = int

VERSION_BYTES: Final = 20
ZERO: Final[Version] = bytes(VERSION_BYTES)
WRITER_BYTES: Final = 4
#: Stamp and writer.
WRITE_BYTES: Final = 12
COUNTER_BITS: Final = 16
MAX_STAMP: Final = (1 << 64) - 1

_LAYOUT = struct.Struct(">Q4sQ")
_STAMP_BYTES: Final = 8


def pack(stamp: Stamp, writer: bytes, touched: Stamp = 0) -> Version:
    """Build a version. ``writer`` has 4 bytes."""
    return _LAYOUT.pack(stamp, writer, touched)


def highest_version(stamp: Stamp) -> Version:
    """Return a version that none is above of those that speak of no later moment than ``stamp``."""
    return pack(stamp, b"\xff" * WRITER_BYTES, MAX_STAMP)


def unpack(version: Version) -> tuple[Stamp, bytes, Stamp]:
    """Return (stamp, writer, touched)."""
    stamp, writer, touched = _LAYOUT.unpack(version)
    return stamp, writer, touched


def write_of(version: Version) -> bytes:
    """Return stamp and writer: which write this version is of, whenever it was touched."""
    return version[:WRITE_BYTES]


def write_stamp(version: Version) -> Stamp:
    """Return the stamp of the write, whenever its expiry was changed."""
    return int.from_bytes(version[:_STAMP_BYTES], "big")


def newest_stamp(version: Version) -> Stamp:
    """Return the latest moment this version speaks of: its write or its last touch."""
    stamp, _, touched = _LAYOUT.unpack(version)
    return int(max(stamp, touched))


class StampRange(NamedTuple):
    """The oldest and the newest stamp of some versions; touches count."""

    oldest: Stamp
    newest: Stamp


def stamp_range_of(versions: Sequence[Version]) -> StampRange:
    """Return the range of the stamps of one or more versions.

    Versions are compared as bytes: unpacking each of them takes several times as long.
    """
    touched = max([version[WRITE_BYTES:] for version in versions])
    highest = max(versions)[:WRITE_BYTES] + touched
    return StampRange(unpack(min(versions))[0], newest_stamp(highest))


def with_touch(version: Version, touched: Stamp) -> Version:
    """Return ``version`` with its expiry changed at ``touched``."""
    return version[:WRITE_BYTES] + touched.to_bytes(8, "big")


def stamp_at(milliseconds: int, counter: int = 0) -> Stamp:
    """Return the stamp of a wall-clock time in milliseconds since 1970."""
    return (milliseconds << COUNTER_BITS) | counter


def stamp_milliseconds(stamp: Stamp) -> int:
    """Return the wall-clock part of a stamp."""
    return stamp >> COUNTER_BITS


class Steady:
    """Turns wall time into one that never goes back: for pauses, which must end all the same.

    A step back counts as no time at all; one forward, as time.
    """

    def __init__(self, now: int) -> None:
        self._last = now
        self._lost = 0

    def at(self, now: int) -> int:
        """Return the steady time at a wall time, both in milliseconds."""
        self._lost += max(0, self._last - now)
        self._last = now
        return now + self._lost


class _Link:
    """A stamp in the chain of a clock, and the link that follows it, once there is one."""

    __slots__ = ("after", "stamp")

    def __init__(self, stamp: Stamp) -> None:
        self.stamp = stamp
        self.after: dict[None, _Link] = {}


class Clock:
    """A hybrid logical clock; wall time is handed in.

    ``wall`` returns milliseconds since 1970 and may jump; stamps never go back.

    Threads may share a clock, and a signal handler may use it while it interrupts a call of the
    same thread: a lock would end such a call in a deadlock. All stamps are links of a chain (as in
    the queue of Michael and Scott, 1996). ``dict.setdefault`` appends a link only where none
    follows yet, and is atomic, so no two calls get the same stamp, and a call that begins after
    another one returned gets a higher stamp.
    """

    def __init__(self, wall: Callable[[], int], floor: Stamp = 0) -> None:
        self._wall = wall
        #: Any link: the last one, unless calls ran at the same time.
        self._link = _Link(floor)

    @property
    def last(self) -> Stamp:
        """The highest stamp given out or seen."""
        return self._end().stamp

    def tick(self) -> Stamp:
        """Return a stamp above every earlier one and not below the wall clock."""
        lowest = stamp_at(self._wall())
        while True:
            end = self._end()
            mine = _Link(max(end.stamp + 1, lowest))
            if end.after.setdefault(None, mine) is mine:
                self._link = mine
                return mine.stamp

    def observe(self, stamp: Stamp) -> None:
        """Move past a stamp seen elsewhere."""
        while (end := self._end()).stamp < stamp:
            end.after.setdefault(None, _Link(stamp))

    def _end(self) -> _Link:
        link = end = self._link
        while (after := end.after.get(None)) is not None:
            end = after
        if end is not link:
            self._link = end
        return end
