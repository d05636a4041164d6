"""The rate limits of both clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from dstash.client.operations.base import Operation
from dstash.client.registers.holding import FindCalls
from dstash.client.registers.limiting import Limit, acquire
from dstash.client.registers.steps import run_steps, run_steps_async


class Limiter:
    """A rate limit, made by ``Client.limiter``.

    It counts in fixed periods of the cluster clock: at most ``limit`` acquisitions in each. So up
    to twice the limit may fall into a span of the length of a period that covers parts of two.
    """

    def __init__(self, calls: FindCalls, run: Callable[[Operation], Any], limit: Limit) -> None:
        self._calls = calls
        self._run = run
        self._limit = limit

    def acquire(self, count: int = 1, wait: float = 0) -> bool:
        """Return whether the limit allows an acquisition, and count it if so.

        Args:
            count: how many acquisitions.
            wait: seconds to wait for another period, if this one is used up.

        Raises:
            Unavailable: it was not counted.
            TimedOut: it may or may not be counted.
        """
        return run_steps(acquire(self._calls(), self._limit, count, wait), self._run)


class AsyncLimiter:
    """The rate limit of an asyncio client; see ``Limiter``."""

    def __init__(
        self, calls: FindCalls, run: Callable[[Operation], Awaitable[Any]], limit: Limit
    ) -> None:
        self._calls = calls
        self._run = run
        self._limit = limit

    async def acquire(self, count: int = 1, wait: float = 0) -> bool:
        """Return whether the limit allows an acquisition, and count it if so."""
        steps = acquire(self._calls(), self._limit, count, wait)
        return await run_steps_async(steps, self._run)
