"""Results of batch writes: what is true, and what their errors say."""

from __future__ import annotations

import pytest

from dstash.client.refusals import by_peer
from dstash.client.results import BatchResult
from dstash.errors import BatchError, DiskFull, NoPeers, TimedOut, Unavailable
from dstash.types import OnError, Outcome
from tests.harness.joined import Joined


def test_result_is_true_only_if_every_key_was_stored() -> None:
    assert BatchResult(stored=2)
    assert BatchResult()
    failed = BatchResult(stored=2)
    failed.give_up(["k"], Outcome.UNKNOWN, TimedOut("no answer"))
    assert not failed
    assert not failed.ok


def test_batch_error_names_keys_outcomes_and_reasons() -> None:
    result = BatchResult(stored=90)
    result.give_up([f"k{number}" for number in range(8)], Outcome.UNKNOWN, TimedOut("b: silent"))
    result.give_up([b"x", 7], Outcome.FAILED, Unavailable("c: not connected"))
    with pytest.raises(BatchError) as caught:
        result.conclude(OnError.RAISE)
    assert str(caught.value) == (
        "10 of 100 keys not written: 'k0', 'k1', 'k2' and 5 more unknown: b: silent; "
        "b'x', 7 failed: c: not connected"
    )
    assert caught.value.outcomes["k7"] is Outcome.UNKNOWN
    assert isinstance(caught.value.errors[7], Unavailable)
    assert caught.value.result is result
    assert result.conclude(OnError.RETURN) is result


def test_error_of_a_later_part_counts_the_keys_stored_before() -> None:
    result = BatchResult(stored=100_000)
    with (
        pytest.raises(NoPeers, match=r"^no peer; 100,000 keys before these were stored$") as caught,
        result.kept_in_errors(),
    ):
        raise NoPeers("no peer")
    assert caught.value.details["result"] is result
    with pytest.raises(NoPeers, match=r"^no peer$"), BatchResult().kept_in_errors():
        raise NoPeers("no peer")


def test_errors_of_peers_with_the_same_text_are_named_together() -> None:
    errors = {"c": DiskFull("c: full"), "a": DiskFull("full"), "b": Unavailable("down")}
    assert by_peer(errors) == "a, c: full; b: down"


def test_batch_with_two_of_three_peers_down_names_keys_and_peers() -> None:
    joined = Joined()
    joined.down = {"b", "c"}
    result = joined.put({"k1": 1, "k2": 2}, timeout=1000)
    assert not result
    assert set(result.errors) == set(result.outcomes) == {"k1", "k2"}
    with pytest.raises(BatchError, match=r"^2 of 2 keys not written: 'k1', 'k2' ") as caught:
        result.conclude(OnError.RAISE)
    assert "b: not connected" in str(caught.value)
    assert "c: not connected" in str(caught.value)
