"""The inbox of an overloaded peer: order of service, and retry_after of rejected requests."""

from __future__ import annotations

from dstash.peer.admission.inbox import Inbox, RetryDelay


def taken(inbox: Inbox[int], now: float) -> list[int]:
    found = []
    while (message := inbox.take(now)) is not None:
        found.append(message)
    return found


def test_inbox_serves_in_order_of_arrival() -> None:
    inbox = Inbox[int](1000)
    for number in range(5):
        inbox.put(b"a", number, 1, 0.01 * number)
    assert taken(inbox, 0.05) == [0, 1, 2, 3, 4]
    assert inbox.take(0.05) is None


def test_inbox_alternates_between_senders() -> None:
    inbox = Inbox[int](1000)
    for number in range(100):
        inbox.put(b"greedy", number, 1, 0.0)
    inbox.put(b"modest", 1000, 1, 0.0)
    assert [inbox.take(0.01) for _ in range(4)] == [0, 1000, 1, 2]


def test_inbox_serves_newest_of_overloaded_sender() -> None:
    inbox = Inbox[int](1000)
    for number in range(5):
        inbox.put(b"a", number, 1, 0.1 * number)
    assert [inbox.take(0.41), inbox.take(0.41)] == [4, 3]
    assert inbox.surplus() == []  # it may have been interrupted briefly


def test_inbox_rejects_oldest_of_largest_sender() -> None:
    inbox = Inbox[int](1000)
    served, gone = [], []
    for step in range(100):
        now = step / 100
        for number in range(3):
            inbox.put(b"a", 10 * step + number, 1, now)
        served.append(inbox.take(now))
        gone += inbox.surplus()
    assert gone == sorted(gone)
    assert len(gone) > 50
    assert len(inbox) < 100
    assert served[-1] == 992  # fresh


def test_inbox_limits_sum_over_many_senders() -> None:
    inbox = Inbox[int](100_000)
    waits, gone = [], []
    for step in range(400):
        now = step / 100
        for number in range(5):
            inbox.put(b"%d" % (5 * step + number), step, 1, now)
        served = inbox.take(now)
        assert served is not None
        waits.append(step - served)
        gone += inbox.surplus()
    assert gone
    assert max(waits[200:]) <= 26  # hundredths of a second


def test_sender_is_not_overloaded_after_catching_up() -> None:
    inbox = Inbox[int](1000)
    for step in range(10):
        for number in range(3):
            inbox.put(b"a", number, 1, step / 10)
        inbox.take(step / 10)
    taken(inbox, 1.0)
    inbox.surplus()
    inbox.put(b"a", 7, 1, 2.0)
    assert inbox.take(2.0) == 7
    assert inbox.surplus() == []


def test_inbox_size_is_limited() -> None:
    inbox = Inbox[int](100)
    inbox.put(b"a", 1, 5000, 0.0)  # a single message may be larger
    full = inbox.has_room
    assert inbox.take(0.0) == 1
    assert (full, inbox.has_room, len(inbox)) == (False, True, 0)


def test_waiting_time_grows_with_senders_and_shrinks_with_work() -> None:
    delay = RetryDelay()
    first = delay.rejected()
    for _ in range(1000):
        longest = delay.rejected()
    assert first < 100 < longest <= 2000
    for _ in range(1000):
        delay.served()
    assert delay.rejected() <= first
