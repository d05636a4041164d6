"""Hints: bounded, in the order of the disk, and what they cannot hold makes a partition dirty."""

from __future__ import annotations

from dstash.cluster.hints import Hints

NOW = 1_700_000_000_000
AGE = 60_000


def storage_key(partition: int, number: int) -> bytes:
    return partition.to_bytes(2, "big") + b"\x01i" + b"%05d" % number


def test_what_lies_together_on_disk_is_taken_together() -> None:
    hints = Hints(10_000, AGE)
    scattered = [storage_key(number * 37 % 50, number) for number in range(2000)]
    hints.add("b", scattered, NOW)
    assert len(hints) == 2000
    assert hints.facts() == {"b": 2000}
    taken: list[bytes] = []
    while some := hints.take("b"):
        assert some == sorted(some)
        assert len({key[:2] for key in some}) <= 2 + len(some) // 40  # 40 keys a partition
        taken += some
    assert sorted(taken) == sorted(scattered)
    assert (len(hints), hints.waiting(), hints.facts()) == (0, [], {})


def test_past_the_limit_partitions_are_dirty_and_known_keys_stay() -> None:
    hints = Hints(3, AGE)
    hints.add("b", [storage_key(1, 1), storage_key(1, 2)], NOW)
    hints.add("c", [storage_key(2, 1), storage_key(3, 1)], NOW)
    hints.add("b", [storage_key(1, 1), storage_key(4, 1)], NOW)
    assert len(hints) == 3
    assert hints.facts() == {"b": 3, "c": 2}
    assert hints.dirty_facts() == {"b": 1, "c": 1}
    assert hints.take_dirty("b") == 4
    assert hints.take_dirty("c") == 3
    assert hints.take_dirty("b") is None
    hints.forget("b")
    assert (len(hints), hints.waiting()) == (1, ["c"])


def test_what_is_old_becomes_a_dirty_partition() -> None:
    hints = Hints(100, AGE)
    hints.add("b", [storage_key(1, 1), storage_key(2, 1)], NOW)
    hints.add("b", [storage_key(1, 2), storage_key(2, 1)], NOW + 1)
    hints.age(NOW + AGE + 1)
    assert hints.take_dirty("b") == 1
    assert hints.take_dirty("b") is None
    assert hints.take("b") == [storage_key(1, 2), storage_key(2, 1)]
