"""Whether what clients saw, and what replicas hold, keeps the invariants.

- I1: an acked write is readable, or beaten by a higher version that was really written.
- I2: nothing never written, or definitely failed, is ever read.
- I3: what was deleted or has expired does not come back.
- I4: after faults heal, replicas hold the same.

Reads at a level that overlaps with that of a write are held to I1 and I3 at once; all acked
writes are held to them in the reads after healing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from dstash.cluster.holdings import Holdings
from dstash.store.digest import is_dead_at
from dstash.store.record import split_storage_key
from dstash.store.twin import TwinStore
from dstash.types import NEVER, Level, Outcome
from dstash.version import ZERO, Version
from tests.simulation.clock import true_ms
from tests.simulation.history import History, Place, Read, Write
from tests.simulation.trace import show_record, show_version


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
    """What a run promises.

    ``slack_ms``: how far any clock was ever off: by so much an expiry may come early or late.
    ``keeps_ones``: whether writes acked by a single replica must survive (no store was lost, no
    partition moved).
    ``delivers_once``: whether a request that was refused stays refused; not so where the network
    delivers copies, which TCP never does after an answer.
    """

    replicas: int
    slack_ms: int
    keeps_ones: bool
    delivers_once: bool


class Checker:
    """Checks one history."""

    def __init__(self, history: History, terms: Terms) -> None:
        self._history = history
        self._terms = terms

    def check(self) -> list[Violation]:
        """Return every violation found in the reads."""
        found = [Violation("I6", None, text) for text in self._history.broken]
        for read in self._history.reads:
            violation = self._check_read(read)
            if violation is not None:
                found.append(violation)
        return found

    def _check_read(self, read: Read) -> Violation | None:
        writes = self._history.writes.get(read.place, [])
        known = [one for one in writes if one.invoked <= read.returned]
        floor, by = self._floor(read, known)
        if read.value is None:
            return self._check_missing(read, known, floor, by)
        return self._check_found(read, known, floor, by)

    # -- what must be there

    def _floor(self, read: Read, known: Iterable[Write]) -> tuple[Version, Write | None]:
        """Return the highest version that this read must not fall behind, and whose it is."""
        floor, by = ZERO, None
        for write in known:
            if write.acked is None or write.returned > read.invoked:
                continue
            if write.acked > floor and self._overlaps(read, write):
                floor, by = write.acked, write
        return floor, by

    def _overlaps(self, read: Read, write: Write) -> bool:
        if write.level is Level.ONE and not self._terms.keeps_ones:
            return False
        if read.is_last:
            return True
        replicas = self._terms.replicas
        return read.level.needed(replicas) + write.level.needed(replicas) > replicas

    # -- what may be there

    def _check_found(
        self, read: Read, known: list[Write], floor: Version, by: Write | None
    ) -> Violation | None:
        if read.is_blind:
            candidates = [one for one in known if one.kind != "delete"]
        else:
            candidates = [one for one in known if one.kind != "delete" and one.value == read.value]
        if not candidates:
            return self._violation("I2", read, "was never written")
        candidates = [one for one in candidates if self._may_count(one)]
        if not candidates:
            return self._violation("I2", read, "was definitely not stored")
        if read.version is not None:
            candidates = [one for one in candidates if read.version in one.versions]
            if not candidates:
                return self._violation("I2", read, "has a version that was never written")
        fresh = [one for one in candidates if max(one.versions) >= floor]
        if not fresh:
            kind = "I3" if by is not None and by.kind == "delete" else "I1"
            return self._violation(kind, read, f"is older than {_describe(by)}")
        if not any(self._may_live(one, read.invoked) for one in fresh):
            return self._violation("I3", read, "had expired")
        return None

    def _check_missing(
        self, read: Read, known: list[Write], floor: Version, by: Write | None
    ) -> Violation | None:
        if by is None:
            return None
        for write in known:
            is_dead = write.kind == "delete" or self._may_be_dead(write, read.returned)
            if is_dead and self._may_count(write) and max(write.versions) >= floor:
                return None
        return self._violation("I1", read, f"misses {_describe(by)}")

    def _may_count(self, write: Write) -> bool:
        """Whether a write may have reached a disk."""
        was_refused = write.outcome is Outcome.FAILED and self._terms.delivers_once
        return bool(write.versions) and not was_refused

    def _may_live(self, write: Write, moment: int) -> bool:
        return write.expiry == NEVER or write.expiry > true_ms(moment) - self._terms.slack_ms

    def _may_be_dead(self, write: Write, moment: int) -> bool:
        return write.expiry != NEVER and write.expiry <= true_ms(moment) + self._terms.slack_ms

    def _violation(self, invariant: str, read: Read, why: str) -> Violation:
        what = "nothing" if read.value is None else repr(read.value)
        version = f" {show_version(read.version)}" if read.version else ""
        when = f"{read.invoked / 1e6:.6f}..{read.returned / 1e6:.6f}"
        text = f"{read.client} read {what}{version} at {read.level} ({when}), which {why}"
        return Violation(invariant, read.place, text)


def compare(stores: Mapping[str, TwinStore], owners: dict[bytes, list[str]]) -> list[Violation]:
    """Check I4: every replica of a key holds the same record, or none that is alive.

    What is dead at the horizon that a peer has for a partition may have left its disk, or not
    yet; and where horizons differ, and that makes a difference, replicas differ.

    Args:
        stores: what each peer holds.
        owners: the peers that should hold a storage key.
    """
    horizons = {peer: Holdings(store).horizons for peer, store in stores.items()}
    found = []
    for storage_key, peers in owners.items():
        partition, index, key = split_storage_key(storage_key)
        held = {peer: stores[peer].records.get(storage_key) for peer in peers}
        counted = {
            None if record is None or is_dead_at(record, horizons[peer][partition]) else record
            for peer, record in held.items()
        }
        if len(counted) > 1:
            shown = ", ".join(f"{peer} {show_record(record)}" for peer, record in held.items())
            text = f"replicas differ: {shown}"
            found.append(Violation("I4", (index.decode(), key.decode()), text))
    return found


def _describe(write: Write | None) -> str:
    if write is None:
        return "nothing"
    acked = show_version(write.acked) if write.acked else "?"
    what = "" if write.kind == "delete" else f" of {write.value!r}"
    return f"the {write.kind}{what} acked at {write.level} to {write.client} ({acked})"


def describe_writes(history: History, place: Place) -> list[str]:
    """Return the writes of a key, as lines for people."""
    return [
        f"{one.invoked / 1e6:11.6f}..{min(one.returned, 10**12) / 1e6:.6f} {one.client} "
        f"{one.kind} {one.value!r} at {one.level}: {one.outcome}"
        f"{'' if one.outcome is Outcome.STORED else ' ' + one.error}"
        f" sent as {[show_version(version) for version in one.versions]}"
        f"{f' until {one.expiry % 100_000_000}' if one.expiry else ''}"
        for one in history.writes.get(place, [])
    ]
