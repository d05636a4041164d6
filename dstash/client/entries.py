"""The keys and entries of batches: checked, and cut into rounds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from dstash.errors import LimitError, UsageError
from dstash.wire.keys import Entries, Key, encode_key, encode_keys, show_key

_BATCH: Final = "a batch is a mapping, or an iterable of (key, value) pairs"
#: The usual types of (key, value) pairs.
_PAIRS: Final = frozenset({tuple, list})

_T = TypeVar("_T")

#: A part of a batch put: pairs, or a dictionary.
Round = Sequence[tuple[Key, Any]] | dict[Any, Any]


def put_rounds(entries: Entries, size: int) -> Iterator[Round]:
    """Return the entries of a batch put in parts of at most ``size``, at least one part.

    A small dictionary is the only part: to make its pairs takes longer than to encode its keys.

    Raises:
        UsageError: ``entries`` is neither a mapping nor iterable.
    """
    if type(entries) is dict and len(entries) <= size:
        return iter([entries])
    return pair_rounds(entries, size)


def pair_rounds(entries: Entries, size: int) -> Iterator[list[tuple[Key, Any]]]:
    """Return the (key, value) pairs of a batch in lists of at most ``size``, at least one list.

    Raises:
        UsageError: ``entries`` is neither a mapping nor iterable.
    """
    if isinstance(entries, Mapping):
        return _rounds(entries.items(), size)
    if not isinstance(entries, Iterable):
        raise UsageError(f"{_BATCH}, not {type(entries).__name__}")
    return _checked(_rounds(entries, size))


def _checked(rounds: Iterator[list[tuple[Key, Any]]]) -> Iterator[list[tuple[Key, Any]]]:
    """Yield lists whose elements are pairs: a text of two characters would pass for one."""
    for pairs in rounds:
        if not _PAIRS.issuperset(map(type, pairs)):
            _expect_pairs(pairs)
        yield pairs


def key_rounds(keys: Iterable[Key], size: int, method: str) -> Iterator[list[Key]]:
    """Return the keys of a batch in lists of at most ``size``, which are distinct in each list.

    Raises:
        LimitError: ``keys`` is a single key; ``method`` is what the user called.
        UnsupportedType: a key is neither str, bytes nor int.
    """
    for chunk in _rounds(check_keys(keys, method), size):
        yield _distinct(chunk)


def check_keys(keys: Iterable[Key], method: str) -> Iterable[Key]:
    """Return the keys of a batch.

    Raises:
        LimitError: ``keys`` is a single key; ``method`` is what the user called.
    """
    if isinstance(keys, str | bytes | bytearray | memoryview) or not isinstance(keys, Iterable):
        raise LimitError(
            f"{method} takes an iterable of keys, not one key: {show_key(keys)} is a "
            f"{type(keys).__name__}"
        )
    return keys


def _rounds(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield lists of at most ``size``; an empty batch is one call, which checks the arguments."""
    source = iter(items)
    yield list(itertools.islice(source, size))
    while chunk := list(itertools.islice(source, size)):
        yield chunk


def entries_by_key(pairs: Round) -> dict[Key, Any]:
    """Return entries as a new dictionary.

    Raises:
        UsageError: an element is no pair.
        UnsupportedType: a key is neither str, bytes nor int.
    """
    try:
        entries: dict[Key, Any] = dict(pairs)
    except (TypeError, ValueError):
        _expect_pairs(pairs)
        raise
    if len(entries) < len(pairs):
        encode_keys([key for key, _ in pairs])  # 1, 1.0 and True are equal
    return entries


def keys_of(pairs: Sequence[tuple[Key, Any]]) -> list[Key]:
    """Return the keys of pairs.

    Raises:
        UsageError: an element is no pair.
    """
    try:
        return [key for key, _ in pairs]
    except (TypeError, ValueError):
        _expect_pairs(pairs)
        raise


def _expect_pairs(pairs: Iterable[Any]) -> None:
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UsageError(f"{_BATCH}; there is a {type(pair).__name__} in it")
        encode_key(pair[0])  # an unhashable key is invalid, too


def _distinct(keys: Sequence[Key]) -> list[Key]:
    try:
        distinct = list(dict.fromkeys(keys))
    except TypeError:
        encode_keys(keys)  # an unhashable key is invalid
        raise
    if len(distinct) < len(keys):
        encode_keys(keys)  # 1, 1.0 and True are equal
    return distinct
