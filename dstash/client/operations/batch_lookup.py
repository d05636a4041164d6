"""A look-up of many keys whose result has the order of the keys.

The keys are sent in the order of partitions (see ``routing.py``), and their values arrive in that
order. A dictionary keeps the order in which keys were added; to add them again afterwards would
take longer than to decode the values. So a chunk knows the places of its keys in its part of the
batch, and the values are put into a list by place. When a part is complete, its keys and its list
are added to the result, while peers work on the next part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final, overload

from dstash import loops
from dstash.client.operations.base import Chunk
from dstash.client.operations.batching import chunked
from dstash.client.operations.reads import LookupOperation
from dstash.errors import ProtocolError
from dstash.wire.keys import Key, as_encoded
from dstash.wire.messages import Values

#: The value of a key that is not found.
_ABSENT: Final = object()


class _Part:
    """A part of a batch, with a value for each of its keys."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self.keys = keys
        self.values: list[Any] = [_ABSENT] * len(keys)
        #: The number of keys without an answer. Keys that are sent again keep it above 0.
        self.left = len(keys)
        self.has_missing = False

    def add_to(self, found: dict[Key, Any], again: dict[Key, Any]) -> None:
        """Add the keys that exist, in their order; ``again`` has the values of those sent again."""
        if not self.left and not self.has_missing:
            loops.add_pairs(found, self.keys, self.values)
            return
        for key, value in zip(self.keys, self.values, strict=True):
            newest = again.get(key, value) if self.left else value
            if newest is not _ABSENT:
                found[key] = newest


class _Picked(Sequence[Key]):
    """Some keys of a part, by their places in it; looked up only where an error occurs."""

    def __init__(self, part: _Part, places: memoryview) -> None:
        self.part = part
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, place: int) -> Key: ...

    @overload
    def __getitem__(self, place: slice) -> list[Key]: ...

    def __getitem__(self, place: int | slice) -> Key | list[Key]:
        if isinstance(place, slice):
            return [self.part.keys[number] for number in self.places[place]]
        return self.part.keys[self.places[place]]


class BatchLookup(LookupOperation):
    """Looks up any number of keys; the result has the order of ``keys``."""

    #: Parts that were sent and that are not in ``_result``; ``found`` has their keys sent again.
    _parts: list[_Part]
    _result: dict[Key, Any]

    def _chunks(self) -> Iterator[list[Chunk]]:
        self._parts, self._result = [], {}
        for begin in range(0, len(self._keys), self.session.keys_per_read):
            part = _Part(self._keys[begin : begin + self.session.keys_per_read])
            self._parts.append(part)
            if self.is_linearizable:
                yield from chunked(self.cut(part.keys))
            else:
                encoded, self._encoded = self._encoded or as_encoded(part.keys), None
                yield from chunked(self.routed(encoded, partial(_Picked, part), 0))

    def deliver(self, keys: Sequence[Key], values: Values) -> None:
        """Process the answer to a look-up of ``keys``."""
        if not isinstance(keys, _Picked):
            super().deliver(keys, values)
            return
        decoded, places, part = self.decoded(keys, values), keys.places, keys.part
        found = part.values
        loops.put_at(found, places, decoded)
        try:
            for number in values.missing:
                found[places[number]] = _ABSENT
        except (IndexError, TypeError):
            raise ProtocolError("a peer reported a missing key that was not requested") from None
        part.has_missing = part.has_missing or bool(values.missing)
        part.left -= len(places)
        while self._parts and not self._parts[0].left:
            self._parts.pop(0).add_to(self._result, {})

    def result(self) -> dict[Key, Any]:
        """Return the values found."""
        if self.error is None:
            again, self.found = self.found, self._result
            for part in self._parts:
                part.add_to(self.found, again)
            self._parts = []
        return super().result()
