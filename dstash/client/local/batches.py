"""Batches of look-ups of which a client answers some keys itself, and peers the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from dstash.errors import UndecodableValue
from dstash.wire.keys import Key

#: Larger batches are left to peers: they work on it together, and on other processors.
MOST_KEYS: Final = 5_000
#: Takes the place of a value: a peer has to be asked.
ASK: Final[Any] = object()
#: Takes the place of a value: there is none.
ABSENT: Final[Any] = object()

_GAPS: Final = frozenset({id(ASK), id(ABSENT)})


class PartlyRead:
    """The keys of a batch, and what the client itself has read of their values.

    Args:
        keys: of the batch.
        values: the value of each, or ``ABSENT``, or ``ASK``.
    """

    def __init__(self, keys: Sequence[Key], values: Sequence[Any]) -> None:
        self._keys = keys
        self._values = values
        #: The keys for which peers have to be asked.
        self.rest: list[Key] = []
        # By identity, because values may compare as equal to anything.
        gaps = sum(map(_GAPS.__contains__, map(id, values)))
        self._is_whole = not gaps
        if gaps:
            self.rest = [key for key, value in zip(keys, values, strict=True) if value is ASK]

    def with_answers(self, answers: Mapping[Key, Any]) -> dict[Key, Any]:
        """Return the values of the keys that exist, in the order of the keys.

        Args:
            answers: the values of the rest.
        """
        pairs = zip(self._keys, self._values, strict=True)
        if self._is_whole:
            return dict(pairs)
        if not self.rest:
            return {key: value for key, value in pairs if value is not ABSENT}
        return {
            key: answers[key] if value is ASK else value
            for key, value in pairs
            if value is not ABSENT and (value is not ASK or key in answers)
        }

    @contextmanager
    def kept_in_errors(self) -> Iterator[None]:
        """Add what was read to an error about values of the rest that cannot be decoded."""
        try:
            yield
        except UndecodableValue as error:
            error.found = self.with_answers(error.found)
            raise
