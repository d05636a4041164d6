"""The result of a batch write: the outcome of each key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dstash.errors import BatchError, DStashError
from dstash.types import Outcome
from dstash.wire.keys import Key


@dataclass(slots=True)
class BatchResult:
    """The outcome of a batch write.

    ``stored`` counts the keys that enough replicas acked; ``outcomes`` has every other key, as
    ``failed`` (not stored) or ``unknown`` (stored or not: no answer came). ``deleted`` counts the
    keys that existed before a delete. ``reasons`` are the errors: ``TimedOut`` for unknown
    outcomes, ``Unavailable`` or the error of a replica for failed keys.
    """

    stored: int = 0
    deleted: int = 0
    outcomes: dict[Key, Outcome] = field(default_factory=dict)
    reasons: list[DStashError] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every key was stored."""
        return not self.outcomes

    def add(self, part: BatchResult) -> None:
        """Add the outcomes of a part of the batch."""
        self.stored += part.stored
        self.deleted += part.deleted
        self.outcomes.update(part.outcomes)
        self.reasons += part.reasons

    def raise_first(self) -> None:
        """Raise the first error, unless every key was stored."""
        if self.outcomes:
            raise self.reasons[0]

    def raise_for_failures(self) -> None:
        """Raise ``BatchError`` unless every key was stored."""
        if self.outcomes:
            total = self.stored + len(self.outcomes)
            why = f": {self.reasons[0]}" if self.reasons else ""
            outcomes: Mapping[Key, Outcome] = self.outcomes
            raise BatchError(f"{len(outcomes)} of {total} keys not stored{why}", dict(outcomes))
