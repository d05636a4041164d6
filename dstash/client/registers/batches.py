"""Batches of changes to registers, as generators; see ``steps.py``."""

from __future__ import annotations

from collections.abc import Callable, Collection, ItemsView, Iterator, Mapping
from typing import Any, NamedTuple

from dstash.client.calls import Calls
from dstash.client.entries import keys_of, pair_rounds
from dstash.client.operations.registers.arguments import (
    check_amounts,
    check_version,
    kept_ttl,
    new_ttl,
)
from dstash.client.operations.registers.names import check_registers
from dstash.client.operations.registers.wanted import Wanted
from dstash.client.registers.steps import Pause, Steps
from dstash.client.results import ChangeResult
from dstash.errors import UsageError
from dstash.limits import Ttl
from dstash.wire.keys import Entries, Key, encode_keys, show_key
from dstash.wire.registers import MISSING, ChangeKind

#: The pairs of a part of a batch.
_Pairs = list[tuple[Key, Any]]


class Limits(NamedTuple):
    """The numbers of an increment of many keys, as users give them."""

    initial: int
    at_least: int | None
    at_most: int | None


def add(
    calls: Calls, index: str, entries: Entries, ttl: Ttl | None, timeout: float | None
) -> Steps[ChangeResult]:
    """Store the values of keys that do not exist."""
    wanted = Wanted(ChangeKind.PUT, new_ttl(ttl), expected=MISSING, is_add=True)
    return _each(calls, "batch_add", index, entries, lambda pairs: (pairs, wanted), timeout)


def compare_and_set(
    calls: Calls,
    index: str,
    entries: Entries,
    ttl: Ttl | None,
    timeout: float | None,
) -> Steps[ChangeResult]:
    """Store the values of keys that have their versions."""
    kept = kept_ttl(ttl)

    def wish(pairs: _Pairs) -> tuple[_Pairs, Wanted]:
        for key, pair in pairs:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise UsageError(
                    f"the entry of key {show_key(key)} is {pair!r}; allowed is (value, version)"
                )
        expected = {key: check_version(version, MISSING) for key, (_, version) in pairs}
        values = [(key, value) for key, (value, _) in pairs]
        return values, Wanted(ChangeKind.PUT, kept, expected=expected)

    return _each(calls, "batch_compare_and_set", index, entries, wish, timeout)


def increment(
    calls: Calls,
    index: str,
    amounts: Entries,
    limits: Limits,
    ttl: Ttl | None,
    timeout: float | None,
) -> Steps[ChangeResult]:
    """Add to integers."""
    kept = kept_ttl(ttl)
    check_amounts(0, *limits)  # also of an empty batch

    def wish(pairs: _Pairs) -> tuple[_Pairs, Wanted]:
        by_key = {key: check_amounts(by, *limits) for key, by in pairs}
        return [(key, None) for key in by_key], Wanted(ChangeKind.INCREMENT, kept, amounts=by_key)

    return _each(calls, "batch_increment", index, amounts, wish, timeout)


def _each(
    calls: Calls,
    what: str,
    index: str,
    entries: Entries,
    wish: Callable[[_Pairs], tuple[_Pairs, Wanted]],
    timeout: float | None,
) -> Steps[ChangeResult]:
    """Change the keys of a batch, part by part; errors count the keys of earlier parts.

    Two changes of a key would be applied in any order, or one of them lost. So a collection is
    searched for such keys before anything is sent, and an iterator as it is read. The keys of a
    mapping are distinct, and to read an index takes requests.
    """
    check_registers(index, what)
    total = ChangeResult()
    with total.kept_in_errors():
        size = calls.keys_per_round(index, calls.session.batch_keys)
        seen: set[bytes] = set()
        is_read_once = isinstance(entries, Mapping | ItemsView | Iterator)
        is_searched = isinstance(entries, Collection) and not is_read_once
        for part in pair_rounds(entries, size) if is_searched else ():
            _expect_distinct(part, seen)
            yield Pause(0)  # other tasks run in between
        for part in pair_rounds(entries, size):
            if not is_searched:
                _expect_distinct(part, seen)
            pairs, wanted = wish(part)
            total.add((yield calls.change(what, index, pairs, wanted, timeout)))
    return total


def _expect_distinct(pairs: _Pairs, seen: set[bytes]) -> None:
    """Add the encoded keys of pairs to ``seen``; ``UsageError`` if a key is in it already."""
    keys = keys_of(pairs)
    for key, encoded in zip(keys, encode_keys(keys), strict=True):
        if encoded in seen:
            raise UsageError(f"key {show_key(key)} occurs twice in a batch; allowed is once")
        seen.add(encoded)
