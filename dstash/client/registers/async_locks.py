"""Locks and semaphores of the asyncio client, renewed by a task each while they are held."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from dstash.client.calls import steady
from dstash.client.operations.base import Operation
from dstash.client.registers import holding
from dstash.client.registers.holding import Attempts, FindCalls, Held, Want
from dstash.client.registers.steps import run_steps_async
from dstash.errors import DStashError, UsageError


class AsyncHolding:
    """A register that is held in an ``async with`` block, and renewed by a task meanwhile."""

    def __init__(
        self, calls: FindCalls, run: Callable[[Operation], Awaitable[Any]], want: Want
    ) -> None:
        self._calls = calls
        self._run = run
        self._want = want
        self._held: Held | None = None
        self._renewer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return await self.acquire()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            await self.release()
            return
        with suppress(DStashError):  # the error of the block is the one to report
            await self.release()

    @property
    def token(self) -> int:
        """The fencing token: it is higher than that of every earlier holder."""
        return self._required().token

    @property
    def is_held(self) -> bool:
        """Whether it is held, as far as this process knows."""
        return self._held is not None and self._held.lease.left(steady()) > 0

    async def acquire(self) -> Self:
        """Acquire it; errors as in ``Lock.acquire``.

        If the task is cancelled, what it has acquired is released if peers answer: the cancellation
        may take a few seconds.
        """
        if self._held is not None:
            raise UsageError(f"{self._want.what} is held already; make another object for each use")
        attempts = Attempts(self._calls(), self._want)
        try:
            self._held = await run_steps_async(holding.acquire(attempts), self._run)
        except (DStashError, GeneratorExit):  # a coroutine that is closed cannot wait for answers
            raise
        except BaseException:  # cancelled: the caller does not know that there is a lock
            with suppress(DStashError):
                await run_steps_async(holding.abandon(attempts), self._run)
            raise
        self._renewer = asyncio.get_running_loop().create_task(self._renew(self._held))
        return self

    def check(self) -> None:
        """Raise ``LockLost`` if it is not held any more."""
        self._required().lease.check(steady())

    async def release(self) -> None:
        """Release it.

        Raises:
            LockLost: it was not held any more, so another holder may have worked at the same time.
        """
        held, self._held = self._required(), None
        if self._renewer is not None:
            self._renewer.cancel()
            await asyncio.wait([self._renewer])
        steps = holding.release(self._calls(), self._want.index, held)
        await run_steps_async(steps, self._run)

    def _required(self) -> Held:
        if self._held is None:
            raise UsageError(f"{self._want.what} was not acquired")
        return self._held

    async def _renew(self, held: Held) -> None:
        lease = held.lease
        while lease.left(steady()) > 0:
            await asyncio.sleep(max(0.0, lease.due - steady()))
            steps = holding.renew(self._calls(), self._want.index, held)
            await run_steps_async(steps, self._run)


class AsyncLock(AsyncHolding):
    """The lock of an asyncio client, for ``async with``; see ``Lock``."""


class AsyncSemaphore(AsyncHolding):
    """A place of a semaphore of an asyncio client, for ``async with``; see ``Semaphore``."""
