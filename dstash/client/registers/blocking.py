"""The methods of the blocking client for registers: keys of indexes that begin with ``@``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from dstash.client.calls import Calls
from dstash.client.operations.base import Operation
from dstash.client.operations.registers.names import check_registers
from dstash.client.registers import batches, steps
from dstash.client.registers.holding import lock_want, semaphore_want
from dstash.client.registers.limiters import Limiter
from dstash.client.registers.limiting import limit_of
from dstash.client.registers.locks import Lock, Semaphore
from dstash.client.registers.steps import NOT_GIVEN, Place, Steps, T, run_steps
from dstash.client.results import ChangeResult, Entry
from dstash.client.tracing.hook import Tracing
from dstash.limits import Ttl
from dstash.types import AnyOnError, OnError
from dstash.wire.keys import Entries, Key


class RegisterMethods(ABC):
    """Conditional changes, counters, locks and limits of a blocking client.

    They are linearizable, for each key, and need an index whose name begins with ``@``: see
    docs/atomic.md.
    """

    _tracing: Tracing

    @property
    @abstractmethod
    def _calls(self) -> Calls:
        """The source of operations."""

    @abstractmethod
    def _run(self, operation: Operation) -> Any:
        """Run an operation and return its result."""

    # -- one register

    def add(
        self,
        index: str,
        key: Key,
        value: Any,
        ttl: Ttl | None = None,
        *,
        fence: int | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Store a value if the key does not exist; return whether this call stored it.

        Args:
            index: name of the keyspace; it begins with ``@``.
            key: as in ``put``.
            value: as in ``put``.
            ttl: as in ``put``.
            fence: token of a lock; the change is refused if a higher token was used for this key.
            timeout: seconds for the whole call, retries included.

        Raises:
            UsageError: the index has no registers.
            Conflict: a higher fencing token was used.
            Unavailable, Refused: nothing was changed.
            TimedOut: the value may or may not be stored; the text says why.
        """
        place = Place(self._calls, index, key, timeout, fence)
        return self._steps("add", index, steps.add(place, value, ttl))

    def compare_and_set(
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
        """Store a value if the key still has a version; return the new version.

        Args:
            index: name of the keyspace; it begins with ``@``.
            key: as in ``put``.
            value: as in ``put``.
            version: that the key must have, from ``lookup_entry`` or an earlier change of this key;
                0 if the key must not exist.
            ttl: seconds until the key expires, or a timedelta; None keeps the present expiry.
            fence: token of a lock, as in ``add``.
            timeout: seconds for the whole call, retries included.

        Raises:
            Conflict: the key has another version, which is ``details["version"]`` (0: it does not
                exist). Nothing was changed.
            TimedOut: the value may or may not be stored; the text says why.
        """
        place = Place(self._calls, index, key, timeout, fence)
        change = steps.compare_and_set(place, value, version, ttl)
        return self._steps("compare_and_set", index, change)

    def get_and_set(
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
        """Store a value; return the value before, or ``default`` if the key did not exist.

        Arguments and errors are those of ``compare_and_set``.

        Raises:
            AnswerLost: the value was stored, but the value before is not known.
        """
        place = Place(self._calls, index, key, timeout, fence)
        return self._steps("get_and_set", index, steps.get_and_set(place, value, default, ttl))

    def pop(
        self,
        index: str,
        key: Key,
        default: Any = NOT_GIVEN,
        *,
        fence: int | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Delete a key and return the value that it had. Of several callers, one gets the value.

        Raises:
            KeyError: the key does not exist, and there is no ``default``.
            AnswerLost: the key was deleted, but its value is not known.
        """
        place = Place(self._calls, index, key, timeout, fence)
        return self._steps("pop", index, steps.pop(place, default))

    def increment(
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
        """Add to an integer; return the sum. Integers have 64 bits.

        Args:
            index: name of the keyspace; it begins with ``@``.
            key: as in ``put``.
            by: what to add.
            initial: the number to start from if the key does not exist.
            at_least: a sum below it is refused.
            at_most: a sum above it is refused.
            ttl: seconds until the key expires, or a timedelta; None keeps the present expiry.
            fence: token of a lock, as in ``add``.
            timeout: seconds for the whole call, retries included.

        Raises:
            Conflict: the sum would be out of its bounds, or of 64 bits; nothing was changed. The
                text names the bounds that were given. Or a higher fencing token was used.
            UsageError: the value is no integer.
            TimedOut: the number may or may not be changed; the text says why.
        """
        place = Place(self._calls, index, key, timeout, fence)
        change = steps.increment(place, by, initial, (at_least, at_most), ttl)
        return self._steps("increment", index, change)

    def decrement(
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
        return self._steps("decrement", index, change)

    def lookup_entry(self, index: str, key: Key, *, timeout: float | None = None) -> Entry | None:
        """Return the value, version and time to live of a key; None if it does not exist.

        Raises:
            Unavailable, TimedOut: the key could not be read.
            UndecodableValue: the type of the value is not registered, or its decoder failed.
        """
        place = Place(self._calls, index, key, timeout)
        return self._steps("lookup_entry", index, steps.lookup_entry(place))

    def update(
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
        """Replace the value of a key by a function of it; return the new value.

        If another client changes the key at the same time, the function is called again.

        Args:
            index: name of the keyspace; it begins with ``@``.
            key: as in ``put``.
            change: returns the new value, given the present one; it must have no side effects, and
                must not be an async function.
            default: given to ``change`` if the key does not exist.
            ttl: seconds until the key expires, or a timedelta; None keeps the present expiry.
            fence: token of a lock, as in ``add``.
            timeout: seconds for the whole call, retries included.

        Raises:
            KeyError: the key does not exist, and there is no ``default``.
            Conflict: other changes came between until the timeout, or a higher fencing token was
                used; nothing was changed.
            UsageError: ``change`` is an async function.
            TimedOut: the value may or may not be changed; the text says why.
        """
        place = Place(self._calls, index, key, timeout, fence)
        return self._steps("update", index, steps.update(place, change, default, ttl))

    # -- many registers

    def batch_add(
        self,
        index: str,
        entries: Entries,
        ttl: Ttl | None = None,
        *,
        timeout: float | None = None,
        on_error: AnyOnError = "raise",
    ) -> ChangeResult:
        """Store the values of keys that do not exist; ``unchanged`` of the result has the others.

        Each key is decided by itself. Arguments and errors are those of ``batch_put``, but a key
        must not occur twice in a batch: ``UsageError``. In a collection, such a key is found before
        anything is sent; in an iterator, when it is read, and ``details["result"]`` counts the keys
        that were stored before.
        """
        change = batches.add(self._calls, index, entries, ttl, timeout)
        return self._batch("batch_add", index, entries, change, on_error)

    def batch_compare_and_set(
        self,
        index: str,
        entries: Entries,
        ttl: Ttl | None = None,
        *,
        timeout: float | None = None,
        on_error: AnyOnError = "raise",
    ) -> ChangeResult:
        """Store values of keys that still have their versions; each key is decided by itself.

        Args:
            index: name of the keyspace; it begins with ``@``.
            entries: (value, version) by key; a version is as in ``compare_and_set``.
            ttl: as in ``compare_and_set``.
            timeout: seconds for each 20,000 keys.
            on_error: as in ``batch_put``.

        Raises:
            BatchError: some keys were not changed; ``errors`` has a ``Conflict`` for each key with
                another version.
            UsageError: a key occurs twice in the batch; see ``batch_add``.
        """
        change = batches.compare_and_set(self._calls, index, entries, ttl, timeout)
        return self._batch("batch_compare_and_set", index, entries, change, on_error)

    def batch_increment(
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
        """Add to integers; ``values`` of the result has the sums. Each key is decided by itself.

        Args:
            index: name of the keyspace; it begins with ``@``.
            amounts: what to add, by key.
            initial: as in ``increment``, for all keys.
            at_least: as in ``increment``, for all keys.
            at_most: as in ``increment``, for all keys.
            ttl: as in ``increment``, for all keys.
            timeout: seconds for each 20,000 keys.
            on_error: as in ``batch_put``.

        Raises:
            BatchError: some keys were not changed; ``errors`` has a ``Conflict`` for each sum out
                of bounds.
            UsageError: a key occurs twice in the batch; see ``batch_add``.
        """
        limits = batches.Limits(initial, at_least, at_most)
        change = batches.increment(self._calls, index, amounts, limits, ttl, timeout)
        return self._batch("batch_increment", index, amounts, change, on_error)

    # -- locks and limits

    def lock(self, name: Key, ttl: Ttl = 30, wait: float = 10, index: str = "@locks") -> Lock:
        """Return a lock, to be held in a ``with`` block; see docs/locks.md.

        Args:
            name: of the lock: a key of ``index``.
            ttl: seconds, or a timedelta, after which the lock is free if its holder died. It is
                renewed while held.
            wait: seconds to wait for the lock.
            index: of the lock; it begins with ``@``.
        """
        check_registers(index, "lock")
        return Lock(lambda: self._calls, self._run, lock_want(index, name, ttl, wait))

    def semaphore(
        self, name: Key, limit: int, ttl: Ttl = 30, wait: float = 10, index: str = "@semaphores"
    ) -> Semaphore:
        """Return a place of a semaphore, to be held in a ``with`` block; see docs/locks.md.

        Args:
            name: of the semaphore: str, bytes or int, as a key.
            limit: how many may hold it; all callers must use the same limit.
            ttl: seconds, or a timedelta, after which a place is free if its holder died. It is
                renewed while held.
            wait: seconds to wait for a place.
            index: of the semaphore; it begins with ``@``.
        """
        check_registers(index, "semaphore")
        want = semaphore_want(index, name, limit, ttl, wait)
        return Semaphore(lambda: self._calls, self._run, want)

    def limiter(self, name: Key, limit: int, per: float = 1, index: str = "@limits") -> Limiter:
        """Return a rate limit; see docs/locks.md.

        Args:
            name: of the limit: str, bytes or int, as a key.
            limit: how many acquisitions a period may have.
            per: seconds in a period.
            index: of the limit; it begins with ``@``.
        """
        check_registers(index, "limiter")
        return Limiter(lambda: self._calls, self._run, limit_of(index, name, limit, per))

    # -- inside

    def _touch_register(
        self,
        index: str,
        key: Key,
        ttl: Ttl | None,
        version: int | None,
        fence: int | None,
        timeout: float | None,
    ) -> bool:
        place = Place(self._calls, index, key, timeout, fence)
        return run_steps(steps.touch(place, ttl, version), self._run)

    def _steps(self, name: str, index: str, made: Steps[T]) -> T:
        with self._tracing.call(name, index):
            return run_steps(made, self._run)

    def _batch(
        self,
        name: str,
        index: str,
        keys: object,
        made: Steps[ChangeResult],
        on_error: AnyOnError,
    ) -> ChangeResult:
        mode = OnError.parse(on_error)
        with self._tracing.call(name, index, keys) as span:
            result = run_steps(made, self._run)
            span.note_outcome(result)
            result.conclude(mode)
            return result
