"""The meters of a peer: counters and histograms, updated once a request and never once a key.

One thread writes each meter and other threads read it, so it needs no lock: a reader sees a count
that was true a moment ago.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar, Final, NamedTuple

from dstash.errors import BY_CODE, Refused
from dstash.wire.messages import Error, Stored
from dstash.wire.shapes import Message

#: Upper bounds of buckets: seconds, from memory access to a slow disk.
SECONDS: Final = (
    *(0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
#: Upper bounds of buckets: requests in one commit.
REQUESTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
#: Upper bounds of buckets: keys in one request.
KEYS: Final = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536)
#: Upper bounds of buckets: bytes, to a little more than one commit takes.
BYTES: Final = (256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216)


class Histogram:
    """The number of observations up to each bound (inclusive), and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.total = 0.0
        self._counts = [0] * (len(bounds) + 1)

    @property
    def count(self) -> int:
        """The number of observations."""
        return sum(self._counts)

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[int]:
        """Return the counts up to each bound, then the total count."""
        return list(accumulate(self._counts))


class CommitStats(NamedTuple):
    """What the meters count of one commit."""

    seconds: float
    #: The part of ``seconds`` until the data was on disk.
    sync_seconds: float
    requests: int
    bytes: int
    #: How many keys each request of clients and peers stored.
    keys: Sequence[int]
    #: (kind, outcome) of every write.
    writes: Sequence[tuple[str, str]]


class Meters:
    """The meters of one peer."""

    #: The bounds of every histogram of time.
    seconds: ClassVar = SECONDS

    def __init__(self) -> None:
        #: Seconds to handle one message, and to answer it if it is a read: the socket's thread.
        self.handling = Histogram(SECONDS)
        #: Keys in one request; ``read_keys``: the socket's thread.
        self.read_keys = Histogram(KEYS)
        self.written_keys = Histogram(KEYS)
        #: Requests by (kind, level, outcome), counted once each: the socket's thread.
        self.requests: Counter[tuple[str, str, str]] = Counter()
        #: All below: the committing thread.
        self.commit_seconds = Histogram(SECONDS)
        self.sync_seconds = Histogram(SECONDS)
        self.commit_requests = Histogram(REQUESTS)
        self.commit_bytes = Histogram(BYTES)
        #: Writes by (kind, outcome), both named after classes.
        self.writes: Counter[tuple[str, str]] = Counter()

    def kinds(self) -> Counter[str]:
        """Return how many requests of each kind there were."""
        kinds: Counter[str] = Counter()
        for (kind, _, _), count in self.requests.copy().items():
            kinds[kind] += count
        return kinds

    def committed(self, commit: CommitStats) -> None:
        """Count a commit that has run, and the outcome of each write in it."""
        self.commit_seconds.observe(commit.seconds)
        self.sync_seconds.observe(commit.sync_seconds)
        for keys in commit.keys:
            self.written_keys.observe(keys)
        self.commit_requests.observe(commit.requests)
        self.commit_bytes.observe(commit.bytes)
        for kind, outcome in commit.writes:
            self.writes[kind, outcome] += 1


def outcome_of(message: Message) -> str:
    """Return the outcome of a write by its answer: ``Stored``, ``Partly``, or the error's name."""
    if isinstance(message, Error):
        return BY_CODE.get(message.code, Refused).__name__
    return "Partly" if isinstance(message, Stored) and message.rejected else "Stored"
