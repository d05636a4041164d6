"""Locks and semaphores of the blocking client, renewed by a thread each while they are held."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from dstash.client.calls import steady
from dstash.client.operations.base import Operation
from dstash.client.registers import holding
from dstash.client.registers.holding import Attempts, FindCalls, Held, Want
from dstash.client.registers.steps import run_steps
from dstash.errors import DStashError, UsageError


class Holding:
    """A register that is held in a ``with`` block, and renewed by a thread meanwhile."""

    def __init__(self, calls: FindCalls, run: Callable[[Operation], Any], want: Want) -> None:
        self._calls = calls
        self._run = run
        self._want = want
        self._held: Held | None = None
        self._stop = threading.Event()
        self._renewer: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.release()
            return
        with suppress(DStashError):  # the error of the block is the one to report
            self.release()

    @property
    def token(self) -> int:
        """The fencing token: it is higher than that of every earlier holder.

        Raises:
            UsageError: it was not acquired.
        """
        return self._required().token

    @property
    def is_held(self) -> bool:
        """Whether it is held, as far as this process knows."""
        return self._held is not None and self._held.lease.left(steady()) > 0

    def acquire(self) -> Self:
        """Acquire it; the ``with`` block does so.

        If it is interrupted, by Ctrl-C for instance, what it has acquired is released if peers
        answer within a few seconds; otherwise it expires.

        Raises:
            Conflict: others held it until the wait was over.
            Unavailable, TimedOut: the cluster did not answer until then.
            UsageError: it is held already.
        """
        if self._held is not None:
            raise UsageError(f"{self._want.what} is held already; make another object for each use")
        attempts = Attempts(self._calls(), self._want)
        self._stop.clear()
        try:
            self._held = run_steps(holding.acquire(attempts), self._run)
            self._renewer = threading.Thread(
                target=self._renew, args=(self._held,), name="dstash-renewer", daemon=True
            )
            self._renewer.start()
        except DStashError:
            raise
        except BaseException:  # an interrupt: the caller does not know that there is a lock
            self._held = None
            self._stop.set()
            with suppress(DStashError):
                run_steps(holding.abandon(attempts), self._run)
            raise
        return self

    def check(self) -> None:
        """Raise ``LockLost`` if it is not held any more."""
        self._required().lease.check(steady())

    def release(self) -> None:
        """Release it; the end of the ``with`` block does so.

        Raises:
            LockLost: it was not held any more, so another holder may have worked at the same time.
        """
        held, self._held = self._required(), None
        self._stop.set()
        if self._renewer is not None:
            self._renewer.join()
        run_steps(holding.release(self._calls(), self._want.index, held), self._run)

    def _required(self) -> Held:
        if self._held is None:
            raise UsageError(f"{self._want.what} was not acquired")
        return self._held

    def _renew(self, held: Held) -> None:
        lease = held.lease
        while lease.left(steady()) > 0:
            if self._stop.wait(max(0.0, lease.due - steady())):
                return
            run_steps(holding.renew(self._calls(), self._want.index, held), self._run)


class Lock(Holding):
    """A lock: one holder at a time. Made by ``Client.lock``.

    ``with client.lock("job") as lock:`` holds it for the block. ``lock.token`` is a fencing token,
    ``lock.check()`` raises ``LockLost`` if the lock is not held any more; so does the end of the
    block. See docs/locks.md for what that guarantees.
    """


class Semaphore(Holding):
    """A place of a semaphore: at most ``limit`` holders at a time. Made by ``Client.semaphore``.

    It is used like a ``Lock``; its token is higher than that of every earlier holder of the same
    place.
    """
