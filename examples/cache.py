"""A cache with a time to live, in front of a slow function.

    dstash dev up && python examples/cache.py

All processes that use the decorator share the results. A cache must not make a program fail: if the
cluster is unreachable, the function is called.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from dstash import Client, DStashError

P = ParamSpec("P")
T = TypeVar("T")

_MISSING = object()  # None is a valid result


def cached(client: Client, index: str, *, ttl: float) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Keep the results of a function in ``index`` for ``ttl`` seconds, by its arguments.

    The arguments must have a distinct ``repr``; the result must be a value that
    dstash can store.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            key = cache_key(function.__qualname__, args, kwargs)
            try:
                found = client.lookup(index, key, _MISSING)
            except DStashError:
                return function(*args, **kwargs)
            if found is not _MISSING:
                return found  # type: ignore[no-any-return]  # it is what the function returned
            result = function(*args, **kwargs)
            remember(client, index, key, result, ttl)
            return result

        return wrapper

    return decorate


def cache_key(name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> bytes:
    """Return a key of 16 bytes, however long the arguments are."""
    call = repr((name, args, sorted(kwargs.items())))
    return hashlib.blake2b(call.encode(), digest_size=16).digest()


def remember(client: Client, index: str, key: bytes, result: object, ttl: float) -> None:
    """Store a result; ignore errors, which must not affect the caller."""
    with contextlib.suppress(DStashError):
        client.put(index, key, result, ttl=ttl)


def main() -> None:
    """Call a slow function twice, and count how often it ran."""
    calls = []
    with Client() as client:

        @cached(client, "cache", ttl=60)
        def report(year: int, *, country: str) -> dict[str, object]:
            calls.append(year)  # represents a query of several seconds
            return {"country": country, "year": year, "total": year * 7}

        client.index("cache").clear()  # remove the results of an earlier run
        first = report(2024, country="LI")
        again = report(2024, country="LI")
        other = report(2025, country="LI")
    print(f"3 calls, computed {len(calls)} times; same answer: {first == again != other}")


if __name__ == "__main__":
    main()
