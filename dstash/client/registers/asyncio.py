"""The methods of the asyncio client for registers: those of the blocking client, awaitable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from dstash.client.calls import Calls
from dstash.client.operations.base import Operation
from dstash.client.operations.registers.names import check_registers
from dstash.client.registers import batches, steps
from dstash.client.registers.async_locks import AsyncLock, AsyncSemaphore
from dstash.client.registers.holding import lock_want, semaphore_want
from dstash.client.registers.limiters import AsyncLimiter
from dstash.client.registers.limiting import limit_of
from dstash.client.registers.steps import NOT_GIVEN, Place, Steps, T, run_steps_async
from dstash.client.results import ChangeResult, Entry
from dstash.client.tracing.hook import Tracing
from dstash.limits import Ttl
from dstash.types import AnyOnError, OnError
from dstash.wire.keys import Entries, Key


class AsyncRegisterMethods(ABC):
    """Conditional changes, counters, locks and limits of an asyncio client.

    They are linearizable, for each key, and need an index whose name begins with ``@``: see
    docs/atomic.md.
    """

    _tracing: Tracing
    _calls: Calls

    @abstractmethod
    async def _run(self, operation: Operation) -> Any:
        """Run an operation and return its result."""

    # -- one register

    async def add(
        self,
        index: str,
        key: Key,
        value: Any,
        ttl: Ttl | None = None,
        *,
        fence: int | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Store a value if the key does not exist; return whether it did; see ``Client.add``."""
        place = Place(self._calls, index, key, timeout, fence)
        return await self._steps("add", index, steps.add(place, value, ttl))

    async def compare_and_set(
        self,
        index: str,
        key: Key,
        value: Any,
        version: int,
        ttl: Ttl | None = None,
        *,
        fence: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Store a value if the key has a version; see ``Client.compare_and_set``."""
        place = Place(self._calls, index, key, timeout, fence)
        change = steps.compare_and_set(place, value, version, ttl)
        return await self._steps("compare_and_set", index, change)

    async def get_and_set(
        self,
        index: str,
        key: Key,
        value: Any,
        default: Any = None,
        ttl: Ttl | None = None,
        *,
        fence: int | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Store a value; return the value before, or ``default``; see ``Client.get_and_set``."""
        place = Place(self._calls, index, key, timeout, fence)
        return await self._steps(
            "get_and_set", index, steps.get_and_set(place, value, default, ttl)
        )

    async def pop(
        self,
        index: str,
        key: Key,
        default: Any = NOT_GIVEN,
        *,
        fence: int | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Delete a key and return the value that it had; see ``Client.pop``."""
        place = Place(self._calls, index, key, timeout, fence)
        return await self._steps("pop", index, steps.pop(place, default))

    async def increment(
        self,
        index: str,
        key: Key,
        by: int = 1,
        *,
        initial: int = 0,
        at_least: int | None = None,
        at_most: int | None = None,
        ttl: Ttl | None = None,
        fence: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Add to an integer; return the sum; see ``Client.increment``."""
        place = Place(self._calls, index, key, timeout, fence)
        change = steps.increment(place, by, initial, (at_least, at_most), ttl)
        return await self._steps("increment", index, change)

    async def decrement(
        self,
        index: str,
        key: Key,
        by: int = 1,
        *,
        initial: int = 0,
        at_least: int | None = None,
        at_most: int | None = None,
        ttl: Ttl | None = None,
        fence: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Subtract from an integer; arguments and errors are those of ``increment``."""
        place = Place(self._calls, index, key, timeout, fence)
        change = steps.decrement(place, by, initial, (at_least, at_most), ttl)
        return await self._steps("decrement", index, change)

    async def lookup_entry(
        self, index: str, key: Key, *, timeout: float | None = None
    ) -> Entry | None:
        """Return value, version and time to live of a key, or None; see ``Client.lookup_entry``."""
        place = Place(self._calls, index, key, timeout)
        return await self._steps("lookup_entry", index, steps.lookup_entry(place))

    async def update(
        self,
        index: str,
        key: Key,
        change: Callable[[Any], Any],
        default: Any = NOT_GIVEN,
        ttl: Ttl | None = None,
        *,
        fence: int | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Replace the value of a key by a function of it; see ``Client.update``."""
        place = Place(self._calls, index, key, timeout, fence)
        return await self._steps("update", index, steps.update(place, change, default, ttl))

    # -- many registers

    async def batch_add(
        self,
        index: str,
        entries: Entries,
        ttl: Ttl | None = None,
        *,
        timeout: float | None = None,
        on_error: AnyOnError = "raise",
    ) -> ChangeResult:
        """Store the values of keys that do not exist; see ``Client.batch_add``."""
        change = batches.add(self._calls, index, entries, ttl, timeout)
        return await self._batch("batch_add", index, entries, change, on_error)

    async def batch_compare_and_set(
        self,
        index: str,
        entries: Entries,
        ttl: Ttl | None = None,
        *,
        timeout: float | None = None,
        on_error: AnyOnError = "raise",
    ) -> ChangeResult:
        """Store values of keys that have a version; see ``Client.batch_compare_and_set``."""
        change = batches.compare_and_set(self._calls, index, entries, ttl, timeout)
        return await self._batch("batch_compare_and_set", index, entries, change, on_error)

    async def batch_increment(
        self,
        index: str,
        amounts: Entries,
        *,
        initial: int = 0,
        at_least: int | None = None,
        at_most: int | None = None,
        ttl: Ttl | None = None,
        timeout: float | None = None,
        on_error: AnyOnError = "raise",
    ) -> ChangeResult:
        """Add to integers; see ``Client.batch_increment``."""
        limits = batches.Limits(initial, at_least, at_most)
        change = batches.increment(self._calls, index, amounts, limits, ttl, timeout)
        return await self._batch("batch_increment", index, amounts, change, on_error)

    # -- locks and limits

    def lock(self, name: Key, ttl: Ttl = 30, wait: float = 10, index: str = "@locks") -> AsyncLock:
        """Return a lock, for an ``async with`` block; see ``Client.lock``."""
        check_registers(index, "lock")
        return AsyncLock(lambda: self._calls, self._run, lock_want(index, name, ttl, wait))

    def semaphore(
        self, name: Key, limit: int, ttl: Ttl = 30, wait: float = 10, index: str = "@semaphores"
    ) -> AsyncSemaphore:
        """Return a place of a semaphore, for an ``async with`` block; see ``Client.semaphore``."""
        check_registers(index, "semaphore")
        want = semaphore_want(index, name, limit, ttl, wait)
        return AsyncSemaphore(lambda: self._calls, self._run, want)

    def limiter(
        self, name: Key, limit: int, per: float = 1, index: str = "@limits"
    ) -> AsyncLimiter:
        """Return a rate limit; see ``Client.limiter``."""
        check_registers(index, "limiter")
        return AsyncLimiter(lambda: self._calls, self._run, limit_of(index, name, limit, per))

    # -- inside

    async def _touch_register(
        self,
        index: str,
        key: Key,
        ttl: Ttl | None,
        version: int | None,
        fence: int | None,
        timeout: float | None,
    ) -> bool:
        place = Place(self._calls, index, key, timeout, fence)
        return await run_steps_async(steps.touch(place, ttl, version), self._run)

    async def _steps(self, name: str, index: str, made: Steps[T]) -> T:
        with self._tracing.call(name, index):
            return await run_steps_async(made, self._run)

    async def _batch(
        self,
        name: str,
        index: str,
        keys: object,
        made: Steps[ChangeResult],
        on_error: AnyOnError,
    ) -> ChangeResult:
        mode = OnError.parse(on_error)
        with self._tracing.call(name, index, keys) as span:
            result = await run_steps_async(made, self._run)
            span.note_outcome(result)
            result.conclude(mode)
            return result
