"""Versions, which decide between replicas that disagree.

A version has 20 bytes and is compared as bytes; the highest wins::

    0        8         12        20
    | stamp  | writer  | touched |
    stamp    hybrid logical clock of the write: 48 bits of milliseconds, 16 bits of counter
    writer   random id of the writing client, which decides between equal stamps
    touched  hybrid logical clock of the last change of only the expiry, 0 if none

``touched`` comes last so that a ``touch`` extends exactly the value that it read: any later put
wins, even one that was stamped before the touch and arrives after it.

The clock is the hybrid logical clock of Kulkarni et al., "Logical Physical Clocks" (2014). It is
close to wall time, never goes back, and advances past every stamp that it observes.
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
    """Return the highest version whose stamps are at most ``stamp``."""
    return pack(stamp, b"\xff" * WRITER_BYTES, MAX_STAMP)


def unpack(version: Version) -> tuple[Stamp, bytes, Stamp]:
    """Return (stamp, writer, touched)."""
    stamp, writer, touched = _LAYOUT.unpack(version)
    return stamp, writer, touched


def write_of(version: Version) -> bytes:
    """Return stamp and writer, which identify the write; a touch does not change them."""
    return version[:WRITE_BYTES]


def is_later_write(version: Version, other: Version) -> bool:
    """Whether a version is that of a later write by the same writer."""
    begin, end = _STAMP_BYTES, WRITE_BYTES
    return version[begin:end] == other[begin:end] and version[:begin] > other[:begin]


def write_stamp(version: Version) -> Stamp:
    """Return the stamp of the write, without its last touch."""
    return int.from_bytes(version[:_STAMP_BYTES], "big")


def newest_stamp(version: Version) -> Stamp:
    """Return the later stamp of the write and its last touch."""
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


def latest_stamp(milliseconds: int) -> Stamp:
    """Return the last stamp of a millisecond since 1970."""
    return min(MAX_STAMP, stamp_at(milliseconds + 1) - 1)


def stamp_milliseconds(stamp: Stamp) -> int:
    """Return the wall-clock part of a stamp."""
    return stamp >> COUNTER_BITS


class Steady:
    """Converts wall time to a time that never goes back, for pauses that must end.

    A step back of the clock counts as no time, a step forward as elapsed time.
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
    """A stamp in the chain of a clock, with the next link, if any."""

    __slots__ = ("after", "stamp")

    def __init__(self, stamp: Stamp) -> None:
        self.stamp = stamp
        self.after: dict[None, _Link] = {}


class Clock:
    """A hybrid logical clock, with wall time as an argument.

    ``wall`` returns milliseconds since 1970 and may jump; stamps never go back.

    Threads may share a clock, and a signal handler may use it while it interrupts a call of the
    same thread, where a lock would deadlock. The stamps form a linked chain, as in the queue of
    Michael and Scott (1996). ``dict.setdefault`` appends a link only to the last link and is
    atomic. So two calls never get the same stamp, and a call that begins after another call has
    returned gets a higher stamp.
    """

    def __init__(self, wall: Callable[[], int], floor: Stamp = 0) -> None:
        self._wall = wall
        #: Any link of the chain; the last link unless calls overlapped.
        self._link = _Link(floor)

    @property
    def last(self) -> Stamp:
        """The highest stamp that was issued or observed."""
        return self._end().stamp

    def tick(self) -> Stamp:
        """Return a stamp above every earlier stamp and not below the wall clock."""
        lowest = stamp_at(self._wall())
        while True:
            end = self._end()
            link = _Link(max(end.stamp + 1, lowest))
            if end.after.setdefault(None, link) is link:
                self._link = link
                return link.stamp

    def observe(self, stamp: Stamp) -> None:
        """Advance to a stamp from elsewhere."""
        while (end := self._end()).stamp < stamp:
            end.after.setdefault(None, _Link(stamp))

    def _end(self) -> _Link:
        link = end = self._link
        while (after := end.after.get(None)) is not None:
            end = after
        if end is not link:
            self._link = end
        return end
