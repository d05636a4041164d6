"""What clients say of a store is kept only while it can be true."""

from __future__ import annotations

from dstash.cluster.replication.lineage import LIVES_PER_EPOCH, Lineage
from dstash.peer.background.claims import Claims
from dstash.store.memory import TwinStore


def claims_of_streamed_store() -> Claims:
    """Return the claims about a store that was streamed again in epoch 5."""
    lineage = Lineage(TwinStore("store-a"), 20)
    lineage.rebase(30, 5)
    return Claims(lineage, "store-a")


def test_later_life_contradicts_the_store() -> None:
    claims = claims_of_streamed_store()
    assert claims.take([["store-a", 6 * LIVES_PER_EPOCH, 20, 100]])
    assert claims.contradict()


def test_life_from_before_the_store_was_streamed_is_void() -> None:
    claims = claims_of_streamed_store()
    assert not claims.take([["store-a", 5 * LIVES_PER_EPOCH - 1, 40, 100]])
    assert not claims.contradict()


def test_claim_about_another_store_is_ignored() -> None:
    assert not claims_of_streamed_store().take([["store-b", 6 * LIVES_PER_EPOCH, 40, 100]])
