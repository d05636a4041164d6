"""Locks, semaphores and rate limits, against a home in memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dstash.client.calls import steady
from dstash.client.operations.base import Operation
from dstash.client.registers import holding, limiting, steps
from dstash.client.registers.async_locks import AsyncLock
from dstash.client.registers.holding import Attempts, Held, Want, lock_want, semaphore_want
from dstash.client.registers.limiting import limit_of
from dstash.client.registers.locks import Lock
from dstash.client.registers.steps import Place
from dstash.errors import (
    Conflict,
    DStashError,
    LimitError,
    LockLost,
    TimedOut,
    Unavailable,
    UnsupportedType,
    UsageError,
)
from dstash.wire import codec
from dstash.wire.keys import encode_key, encode_keys
from dstash.wire.registers import Change, ChangeKind, Settle
from dstash.wire.shapes import Message
from tests.client.registers.home import Home

JOB = lock_want("@locks", "job", 30, 0)


@pytest.fixture
def home() -> Home:
    return Home()


def acquire(home: Home, want: Want = JOB) -> Held:
    return home.drive(holding.acquire(Attempts(home.calls, want)))


def release(home: Home, held: Held, want: Want = JOB) -> None:
    home.drive(holding.release(home.calls, want.index, held))


def renew(home: Home, held: Held) -> None:
    home.drive(holding.renew(home.calls, "@locks", held))


def entry(home: Home, key: str = "job", index: str = "@locks") -> Any:
    return home.drive(steps.lookup_entry(Place(home.calls, index, key)))


class TestLock:
    def test_second_holder_is_refused_with_the_name_of_the_first(self, home: Home) -> None:
        acquire(home)
        with pytest.raises(Conflict, match=r"lock 'job' is held by .*:\d+; waited 0 s"):
            acquire(home)

    def test_released_lock_is_free_and_its_next_token_is_higher(self, home: Home) -> None:
        first = acquire(home)
        release(home, first)
        assert entry(home) is None
        second = acquire(home)
        assert second.token > first.token

    def test_waiting_holder_gets_the_lock_when_it_is_released(self, home: Home) -> None:
        first = acquire(home)
        home.meanwhile = lambda: None if entry(home) is None else release(home, first)
        second = acquire(home, lock_want("@locks", "job", 30, 10))
        assert second.token > first.token
        assert all(0 < pause <= 0.8 for pause in home.pauses)

    def test_lock_expires_if_it_is_not_renewed(self, home: Home) -> None:
        acquire(home)
        assert entry(home).ttl == 30

    def test_renewal_moves_the_expiry_and_keeps_the_token(self, home: Home) -> None:
        held = acquire(home)
        home.now += 10_000
        before = held.lease.end
        renew(home, held)
        assert held.lease.end > before
        assert (entry(home).ttl, entry(home).version) == (30, held.token)

    def test_calls_of_a_long_lease_end_with_the_timeout_of_the_client(
        self, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        timeouts: list[int] = []
        run = home.run

        def noted(operation: Operation) -> Any:
            timeouts.append(operation.deadline - home.now)
            return run(operation)

        monkeypatch.setattr(home, "run", noted)
        held = acquire(home, lock_want("@locks", "job", 36_000, 0))
        renew(home, held)
        release(home, held)
        assert timeouts == [round(home.calls.timeout * 1000)] * 3

    def test_renewal_finds_that_the_lock_was_lost(self, home: Home) -> None:
        held = acquire(home)
        home.expire("job")
        renew(home, held)
        with pytest.raises(LockLost, match="lock 'job' is not held any more: it expired"):
            held.lease.check(steady())

    def test_renewal_never_takes_the_lock_of_another_holder(self, home: Home) -> None:
        held = acquire(home)
        home.expire("job")
        other = acquire(home)
        renew(home, held)
        with pytest.raises(LockLost):
            release(home, held)
        assert entry(home).version == other.token

    def test_release_finds_that_the_lock_was_lost(self, home: Home) -> None:
        held = acquire(home)
        home.expire("job")
        other = acquire(home)
        with pytest.raises(LockLost):
            release(home, held)
        assert entry(home).version == other.token

    @pytest.mark.parametrize("error", [Unavailable("no quorum"), TimedOut("no quorum")])
    def test_renewal_that_fails_is_tried_again(self, home: Home, error: DStashError) -> None:
        held = acquire(home)
        end = held.lease.end
        home.interfere = lambda message: error
        renew(home, held)
        held.lease.check(steady())
        assert held.lease.due < steady() + 5
        assert held.lease.end == end

    def test_holder_recognises_a_lock_whose_answer_was_lost(self, home: Home) -> None:
        tries: list[int] = []

        def lose_answers(message: Message) -> DStashError | None:
            if isinstance(message, Change) and message.operation == ChangeKind.PUT and not tries:
                if message.repeated:
                    return TimedOut("no quorum")
                home._change(message)
                return TimedOut("no quorum")
            return None

        home.interfere = lose_answers
        home.meanwhile = lambda: tries.append(1)
        held = acquire(home, lock_want("@locks", "job", 30, 10))
        assert entry(home).version == held.token
        assert held.lease.left(steady()) <= 30

    def test_interrupted_acquisition_leaves_no_lock(self, home: Home) -> None:
        def run(operation: Operation) -> Any:
            answer = home.run(operation)
            if len(home.requests) == 1:
                raise KeyboardInterrupt
            return answer

        lock = Lock(lambda: home.calls, run, JOB)
        with pytest.raises(KeyboardInterrupt):
            lock.acquire()
        assert not lock.is_held
        assert entry(home) is None

    def test_interrupted_wait_leaves_the_lock_of_another_holder(self, home: Home) -> None:
        held = acquire(home)
        home.requests.clear()

        def run(operation: Operation) -> Any:
            answer = home.run(operation)
            if len(home.requests) == 1:
                raise KeyboardInterrupt
            return answer

        with pytest.raises(KeyboardInterrupt):
            Lock(lambda: home.calls, run, JOB).acquire()
        assert entry(home).version == held.token

    def test_cancelled_acquisition_leaves_no_lock(self, home: Home) -> None:
        async def run(operation: Operation) -> Any:
            answer = home.run(operation)
            if len(home.requests) == 1:
                raise asyncio.CancelledError
            return answer

        lock = AsyncLock(lambda: home.calls, run, JOB)
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(lock.acquire())
        assert not lock.is_held
        assert entry(home) is None

    def test_closed_acquisition_makes_no_more_calls(self, home: Home) -> None:
        async def run(operation: Operation) -> Any:
            await asyncio.get_running_loop().create_future()

        async def begin_and_close() -> None:
            acquisition = AsyncLock(lambda: home.calls, run, JOB).acquire()
            acquisition.send(None)
            acquisition.close()

        asyncio.run(begin_and_close())
        assert home.requests == []


class TestSemaphore:
    @pytest.mark.parametrize("silent", ["pool/0", "pool/1"])
    def test_place_without_an_answer_keeps_no_other_place(self, home: Home, silent: str) -> None:
        attempts = Attempts(home.calls, semaphore_want("@semaphores", "pool", 2, 30, 10))
        for key in attempts.want.keys:
            home.drive(steps.add(attempts.place(key), attempts.value, 30))
        attempts.unknown = dict.fromkeys(attempts.want.keys, 0.0)

        def lose(message: Message) -> DStashError | None:
            lost = isinstance(message, Settle) and codec.unpack_keys(message.keys)
            return Unavailable("no quorum") if lost == [silent.encode()] else None

        home.interfere = lose
        home.drive(holding.abandon(attempts))
        home.interfere = lambda message: None
        left = [key for key in attempts.want.keys if entry(home, str(key), "@semaphores")]
        assert left == [silent]

    def test_limit_bounds_the_number_of_holders(self, home: Home) -> None:
        pool = semaphore_want("@semaphores", "pool", 3, 30, 0)
        held = [acquire(home, pool) for _ in range(3)]
        assert {place.key for place in held} == {"pool/0", "pool/1", "pool/2"}
        with pytest.raises(Conflict, match="a place of semaphore 'pool' is held by others"):
            acquire(home, pool)
        release(home, held[1], pool)
        assert acquire(home, pool).key == held[1].key

    def test_names_of_different_types_are_different_semaphores(self, home: Home) -> None:
        names: list[Any] = ["5", 5, b"5", encode_key(5), encode_key(b"5")]
        keys = [semaphore_want("@semaphores", name, 1, 30, 0).keys[0] for name in names]
        assert keys[0] == "5/0"
        assert len(set(encode_keys(keys))) == len(names)
        for name in names:
            acquire(home, semaphore_want("@semaphores", name, 1, 30, 0))

    @pytest.mark.parametrize("limit", [0, 10_001, True, 1.5, "3"])
    def test_bad_limit_is_named(self, limit: Any) -> None:
        with pytest.raises(LimitError, match=r"limit is .*; allowed are integers from 1 to"):
            semaphore_want("@semaphores", "pool", limit, 30, 0)


BAD_NAMES: list[tuple[Any, type[UsageError], str]] = [
    (None, UnsupportedType, "name must be str, bytes or int, not NoneType: None"),
    (1.5, UnsupportedType, "name must be str, bytes or int, not float: 1.5"),
    (True, UnsupportedType, "name must be str, bytes or int, not bool: True"),
    ("", LimitError, "name is empty; allowed are 1 to 400 bytes"),
]


@pytest.mark.parametrize(("name", "kind", "text"), BAD_NAMES)
@pytest.mark.parametrize(
    "make",
    [
        lambda name: lock_want("@locks", name, 30, 0),
        lambda name: semaphore_want("@semaphores", name, 1, 30, 0),
        lambda name: limit_of("@limits", name, 1, 1),
    ],
)
def test_name_that_cannot_be_a_key_is_refused(
    make: Any, name: Any, kind: type[UsageError], text: str
) -> None:
    with pytest.raises(kind) as caught:
        make(name)
    assert str(caught.value) == text


class TestLimiter:
    def test_names_of_different_types_are_different_limits(self, home: Home) -> None:
        for name in ("5", 5, b"5"):
            limit = limit_of("@limits", name, 1, 60)
            assert home.drive(limiting.acquire(home.calls, limit, 1, 0)) is True
        assert any(key.startswith(b"5/") for key in home.states)

    @pytest.mark.parametrize("limit", [0, 2**63, True, 1.5])
    def test_bad_limit_is_named_with_both_bounds(self, limit: Any) -> None:
        with pytest.raises(LimitError) as caught:
            limit_of("@limits", "mail", limit, 60)
        assert str(caught.value) == (f"limit is {limit!r}; allowed are integers from 1 to 2**63-1")

    def test_acquisitions_of_a_period_are_limited(self, home: Home) -> None:
        limit = limit_of("@limits", "mail", 3, 60)

        def allowed(count: int = 1, wait: float = 0) -> bool:
            return home.drive(limiting.acquire(home.calls, limit, count, wait))

        assert [allowed(2), allowed(2), allowed(), allowed()] == [True, False, True, False]
        home.now += 60_000
        assert allowed(3) is True

    def test_caller_may_wait_for_the_next_period(self, home: Home) -> None:
        limit = limit_of("@limits", "mail", 1, 60)
        assert home.drive(limiting.acquire(home.calls, limit, 1, 0)) is True
        assert home.drive(limiting.acquire(home.calls, limit, 1, 120)) is True
        assert 0 < sum(home.pauses) < 61

    def test_counters_expire_after_their_period(self, home: Home) -> None:
        limit = limit_of("@limits", "mail", 1, 60)
        home.drive(limiting.acquire(home.calls, limit, 1, 0))
        [key] = home.states
        assert 60 < entry(home, key.decode(), "@limits").ttl <= 120

    def test_count_above_the_limit_is_refused(self, home: Home) -> None:
        limit = limit_of("@limits", "mail", 1, 60)
        with pytest.raises(LimitError, match="count is 2, above the limit of 1 in a period"):
            home.drive(limiting.acquire(home.calls, limit, 2, 0))
