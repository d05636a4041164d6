"""The load of the last five minutes, one sample a second, for the dashboard.

A sample is the difference between two readings of the meters, so it costs requests nothing. It
takes 40 bytes.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from dstash.errors import ProtocolError
from dstash.peer.telemetry.meters import Meters

#: How many samples a peer keeps, and the milliseconds between them.
KEPT: Final = 300
STEP_MS: Final = 1000

_LAYOUT: Final = struct.Struct(">Q8I")
_MAX_COUNT: Final = (1 << 32) - 1


class Sample(NamedTuple):
    """One second of load; ``at`` is its end (milliseconds since 1970 on the peer's clock).

    ``reads`` and ``writes`` count requests, ``read_keys`` and ``written_keys`` their keys. The
    percentiles are microseconds; 0 when there was no request.
    """

    at: int
    reads: int = 0
    writes: int = 0
    read_keys: int = 0
    written_keys: int = 0
    handling_p50: int = 0
    handling_p99: int = 0
    commit_p50: int = 0
    commit_p99: int = 0


class History:
    """The samples of one peer. ``note`` is called often, and takes a sample once a second."""

    def __init__(self, meters: Meters, now: int) -> None:
        self._meters = meters
        self._samples: deque[Sample] = deque(maxlen=KEPT)
        #: When the next sample is due, in milliseconds since 1970.
        self.due = _next(now)
        self._before = _read(meters)

    def note(self, now: int) -> None:
        """Take a sample if it is due."""
        if now < self.due:
            return
        self.due = _next(now)
        before, self._before = self._before, _read(self._meters)
        self._samples.append(_sample(now, before, self._before))

    def since(self, moment: int) -> list[Sample]:
        """Return the samples that ended after a moment (milliseconds since 1970), oldest first."""
        return [sample for sample in self._samples if sample.at > moment]


def _next(now: int) -> int:
    """Return the next full second, so that the samples of all peers line up."""
    return (now // STEP_MS + 1) * STEP_MS


class _Reading(NamedTuple):
    """The values of the meters at one moment."""

    requests: tuple[int, int]
    keys: tuple[int, int]
    handling: list[int]
    commits: list[int]


def _read(meters: Meters) -> _Reading:
    read, written = meters.read_keys, meters.written_keys
    return _Reading(
        (read.count, written.count),
        (int(read.total), int(written.total)),
        meters.handling.cumulative(),
        meters.commit_seconds.cumulative(),
    )


def _sample(now: int, before: _Reading, after: _Reading) -> Sample:
    bounds = Meters.seconds
    handling = _difference(after.handling, before.handling)
    commits = _difference(after.commits, before.commits)
    return Sample(
        now,
        *_difference(after.requests, before.requests),
        *_difference(after.keys, before.keys),
        *(percentile(bounds, handling, part) for part in (0.5, 0.99)),
        *(percentile(bounds, commits, part) for part in (0.5, 0.99)),
    )


def _difference(after: Sequence[int], before: Sequence[int]) -> list[int]:
    return [min(_MAX_COUNT, max(0, new - old)) for new, old in zip(after, before, strict=True)]


def percentile(bounds: Sequence[float], cumulative: Sequence[int], part: float) -> int:
    """Return a percentile of a histogram in microseconds, by linear interpolation in a bucket.

    A value beyond the last bound counts as that bound; an empty histogram gives 0.
    """
    wanted = part * cumulative[-1]
    edges = [0.0, *bounds]
    counts = [0, *cumulative]
    for (low, high), (below, up_to) in zip(pairwise(edges), pairwise(counts), strict=False):
        if up_to >= wanted and up_to > below:
            return round(1e6 * (low + (high - low) * (wanted - below) / (up_to - below)))
    return round(1e6 * edges[-1]) if cumulative[-1] else 0


def pack_samples(samples: Sequence[Sample]) -> bytes:
    """Return samples as they are sent to other peers."""
    return b"".join(_LAYOUT.pack(*sample) for sample in samples)


def unpack_samples(packed: bytes) -> list[Sample]:
    """Return samples that came from another peer.

    Raises:
        ProtocolError: the bytes are not samples, or more samples than a peer keeps.
    """
    if len(packed) % _LAYOUT.size or len(packed) > KEPT * _LAYOUT.size:
        raise ProtocolError(f"{len(packed)} bytes are not samples of {_LAYOUT.size} bytes")
    return list(_samples(packed))


def _samples(packed: bytes) -> Iterator[Sample]:
    return (Sample(*values) for values in _LAYOUT.iter_unpack(packed))
