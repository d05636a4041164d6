"""The results of batch writes, with the outcome of each key, and of reads of registers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, NamedTuple

from dstash.errors import AnswerLost, BatchError, DStashError, UndecodableValue
from dstash.types import OnError, Outcome
from dstash.wire.keys import Key, show_key
from dstash.wire.values import Undecodable

#: How many keys, and how many errors, the text of an error names.
_MAX_SHOWN_KEYS: Final = 3
_MAX_SHOWN_ERRORS: Final = 3


@dataclass(slots=True)
class BatchResult:
    """The outcome of a batch write; true if every key was stored.

    ``stored`` counts the keys that enough replicas acked; after a delete, those that do not exist
    any more, whether they existed before or not. ``outcomes`` has every other key, as
    ``failed`` (not stored) or ``unknown`` (stored or not: no answer came), and ``errors`` has the
    reason for each of them, which names the peers: ``TimedOut`` for unknown outcomes,
    ``Unavailable`` or the error of a replica for failed keys. ``reasons`` has each of these errors
    once. ``deleted`` counts the keys that existed before a delete, and ``missing`` has those that
    did not.

    A batch is stored in parts, of as many keys as have the same timeout. A key that occurs again
    in a later part counts again.
    """

    stored: int = 0
    deleted: int = 0
    outcomes: dict[Key, Outcome] = field(default_factory=dict)
    reasons: list[DStashError] = field(default_factory=list)
    errors: dict[Key, DStashError] = field(default_factory=dict)
    missing: list[Key] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.ok

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
        self.errors.update(part.errors)
        self.missing += part.missing

    def give_up(self, keys: Iterable[Key], outcome: Outcome, error: DStashError) -> None:
        """Add keys that were not stored, or may not be, for the same reason."""
        self.errors.update(dict.fromkeys(keys, error))
        self.outcomes.update(dict.fromkeys(keys, outcome))
        self.reasons.append(error)

    @contextmanager
    def kept_in_errors(self) -> Iterator[None]:
        """Add to an error how many keys earlier parts of the batch have stored."""
        try:
            yield
        except DStashError as error:
            if self.stored or self.outcomes:
                error.args = (f"{error}; {self.stored:,} keys before these were stored",)
                error.details["result"] = self
            raise

    def raise_first(self) -> None:
        """Raise the first error, unless every key was stored."""
        if self.outcomes:
            raise self.reasons[0]

    def conclude(self, on_error: OnError) -> BatchResult:
        """Return this result, or raise ``BatchError`` if that is the mode and a key failed."""
        if on_error is OnError.RAISE:
            self.raise_for_failures()
        return self

    def raise_for_failures(self) -> None:
        """Raise ``BatchError`` unless every key was stored; batch writes do so by default."""
        if self.outcomes:
            raise BatchError(self._describe(), self.outcomes, self.errors, self)

    def _describe(self) -> str:
        """Return how many keys failed; for the first errors, some of their keys and the text."""
        failed = len(self.outcomes)
        parts: dict[tuple[Outcome, str], list[Key]] = {}
        for key, outcome in self.outcomes.items():
            error = self.errors.get(key) or next(iter(self.reasons), None)
            parts.setdefault((outcome, str(error or "")), []).append(key)
        texts = [
            f"{_names(keys)} {outcome}{text and f': {text}'}"
            for (outcome, text), keys in islice(parts.items(), _MAX_SHOWN_ERRORS)
        ]
        more = "; ..." if len(parts) > _MAX_SHOWN_ERRORS else ""
        return f"{failed} of {self.stored + failed} keys not written: {'; '.join(texts)}{more}"


class Entry(NamedTuple):
    """A register as it was read.

    Attributes:
        value: of the register.
        version: a number that grows with each change of the value, also across deletes; it is a
            condition for later changes, and a fencing token.
        ttl: seconds until it expires; None for never.
    """

    value: Any
    version: int
    ttl: float | None


@dataclass(slots=True)
class ChangeResult(BatchResult):
    """The outcome of a batch of changes to registers; true if no key failed.

    ``versions`` has the version of each key that was changed, and ``values`` the sum of each key
    that was incremented. ``unchanged`` has the present version (0: it does not exist) of each key
    that needed no change: for ``batch_add`` those that existed; ``stored`` does not count them.
    Every other key is in ``outcomes``, with its reason in ``errors``: a ``Conflict`` if it had
    another version than the expected, or if an increment would leave its bounds.
    """

    versions: dict[Key, int] = field(default_factory=dict)
    unchanged: dict[Key, int] = field(default_factory=dict)
    values: dict[Key, Any] = field(default_factory=dict)

    def add(self, part: BatchResult) -> None:
        """Add the outcomes of a part of the batch."""
        BatchResult.add(self, part)
        if isinstance(part, ChangeResult):
            self.versions.update(part.versions)
            self.unchanged.update(part.unchanged)
            self.values.update(part.values)

    def version_of(self, key: Key) -> int | None:
        """Return the version of a key after the call; None if it is not known."""
        return self.versions.get(key, self.unchanged.get(key))


def answer_lost_error(key: Key, version: int) -> AnswerLost:
    """Return the error for a change that was applied without an answer."""
    text = f"the value of key {show_key(key)} was changed, but the value before it is lost"
    return AnswerLost(f"{text}: no answer came to the first request", version=version)


def undecodable_error(
    undecodable: Mapping[Key, Undecodable], found: Mapping[Key, Any]
) -> UndecodableValue:
    """Return the error for values that cannot be decoded.

    Args:
        undecodable: at least one of them, by key.
        found: the values that were read, with those that cannot be decoded.
    """
    first = next(iter(undecodable.values()))
    more = "" if len(undecodable) == 1 else f" (and those of {len(undecodable) - 1:,} more keys)"
    decoded = {key: value for key, value in found.items() if key not in undecodable}
    return UndecodableValue(
        f"the value of key {show_key(first.key)} cannot be decoded{more}: {first.reason}",
        undecodable,
        decoded,
    )


def _names(keys: list[Key]) -> str:
    shown = ", ".join(map(show_key, keys[:_MAX_SHOWN_KEYS]))
    rest = len(keys) - _MAX_SHOWN_KEYS
    return f"{shown} and {rest:,} more" if rest > 0 else shown
