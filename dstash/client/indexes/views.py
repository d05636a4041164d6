"""The keys, values and items of an index, as views like those of a ``dict``.

Iteration streams pages of a scan in bounded memory. A set operation reads the whole index once; the
operations that ``collections.abc`` provides would make a call for each element.
"""

from __future__ import annotations

from collections.abc import (
    Collection,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    MappingView,
    Set,
    ValuesView,
)
from typing import Any, Generic, TypeVar

from dstash.client.indexes.calls import MISSING, IndexCalls, ReadOptions, ValuesOptions
from dstash.wire.keys import Key, encode_key, encode_prefix

T_co = TypeVar("T_co", covariant=True)
Options = TypeVar("Options")


class _ScannedSet(MappingView, Set[T_co], Generic[T_co, Options]):
    """A view of the keys with a prefix, whose set operations read the elements once."""

    def __init__(
        self,
        mapping: Mapping[Key, Any],
        client: IndexCalls,
        index: str,
        prefix: str | bytes,
        options: Options,
    ) -> None:
        super().__init__(mapping)
        self._client = client
        self._index = index
        self._prefix = prefix
        self._options = options

    @classmethod
    def _from_iterable(cls, elements: Iterable[Any]) -> set[Any]:
        return set(elements)

    def __and__(self, other: Iterable[Any]) -> set[Any]:
        return set(self).intersection(other)

    def __rand__(self, other: Iterable[Any]) -> set[Any]:
        return set(self).intersection(other)

    def __sub__(self, other: Iterable[Any]) -> set[Any]:
        return set(self).difference(other)

    def __rsub__(self, other: Iterable[Any]) -> set[Any]:
        return set(other).difference(self)

    def __xor__(self, other: Iterable[Any]) -> set[Any]:
        return set(self).symmetric_difference(other)

    def __rxor__(self, other: Iterable[Any]) -> set[Any]:
        return set(self).symmetric_difference(other)

    def isdisjoint(self, other: Iterable[Any]) -> bool:
        """Whether no element is in ``other``."""
        mine = _elements(self)
        return not any(element in mine for element in other)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Set):
            return NotImplemented
        mine, theirs = _elements(self), _elements(other)
        return len(mine) == len(theirs) and _contains_all(theirs, mine)

    def __le__(self, other: Set[Any]) -> bool:
        return _contains_all(_elements(other), _elements(self))

    def __lt__(self, other: Set[Any]) -> bool:
        mine, theirs = _elements(self), _elements(other)
        return len(mine) < len(theirs) and _contains_all(theirs, mine)

    def __ge__(self, other: Set[Any]) -> bool:
        return _contains_all(_elements(self), _elements(other))

    def __gt__(self, other: Set[Any]) -> bool:
        mine, theirs = _elements(self), _elements(other)
        return len(mine) > len(theirs) and _contains_all(mine, theirs)


class IndexKeys(_ScannedSet[Key, ReadOptions], KeysView[Key]):
    """The keys of an index that begin with a prefix."""

    def __len__(self) -> int:
        return self._client.count(self._index, self._prefix, **self._options)

    def __iter__(self) -> Iterator[Key]:
        return self._client.keys(self._index, self._prefix, **self._options)

    def __contains__(self, key: Any) -> bool:
        return _has_prefix(key, self._prefix) and self._client.exists(
            self._index, key, **self._options
        )


class IndexItems(_ScannedSet[tuple[Key, Any], ValuesOptions], ItemsView[Key, Any]):
    """The (key, value) pairs of an index whose keys begin with a prefix."""

    def __len__(self) -> int:
        return self._client.count(self._index, self._prefix, **_without_mode(self._options))

    def __iter__(self) -> Iterator[tuple[Key, Any]]:
        return self._client.items(self._index, self._prefix, **self._options)

    def __contains__(self, item: object) -> bool:
        if not isinstance(item, tuple) or len(item) != 2:
            return False
        key, value = item
        if not _has_prefix(key, self._prefix):
            return False
        options = _without_mode(self._options)
        found = self._client.lookup(self._index, key, MISSING, **options)
        return found is value or (found is not MISSING and bool(found == value))


class IndexValues(ValuesView[Any]):
    """The values of an index whose keys begin with a prefix."""

    def __init__(self, mapping: Mapping[Key, Any], items: IndexItems) -> None:
        super().__init__(mapping)
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in self._items)

    def __contains__(self, value: object) -> bool:
        return any(found is value or found == value for found in self)


def is_key(key: object) -> bool:
    """Whether an object has a type that keys can have."""
    return isinstance(key, str | bytes | int) and not isinstance(key, bool)


def _has_prefix(key: Any, prefix: str | bytes) -> bool:
    return is_key(key) and encode_key(key).startswith(encode_prefix(prefix))


def _without_mode(options: ValuesOptions) -> ReadOptions:
    """Return the options that reads without values take."""
    kept: Any = {name: option for name, option in options.items() if name != "on_error"}
    return kept  # type: ignore[no-any-return]  # the same dict


def _elements(elements: Iterable[Any]) -> Collection[Any]:
    """Return the elements as a set, or as a list if they are not hashable."""
    listed = list(elements)
    try:
        return set(listed)
    except TypeError:
        return listed


def _contains_all(container: Collection[Any], elements: Collection[Any]) -> bool:
    return all(element in container for element in elements)
