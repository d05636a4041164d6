"""Tests of reads while the disks of replicas are full: reads need no disk space."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dstash.errors import BatchError, DiskFull
from dstash.peer.background.maintenance import Pace
from dstash.store.interface import Merged, Write
from dstash.store.memory import TwinStore
from tests.harness.joined import Joined

NEVER = Pace(compare_ms=10**9, gc_interval_ms=10**9, gc_grace_ms=0)


class Full(TwinStore):
    """A disk that may be full: completely, or except for the reserve for deletes."""

    is_full = has_little = False

    def commit(self, writes: Sequence[Write]) -> list[Merged]:
        """Refuse all writes if the disk is full."""
        if self.is_full:
            raise DiskFull("no room left on the disk")
        return super().commit(writes)

    def has_room(self, reserve: int) -> bool:
        """Whether more than the reserve is free."""
        return not self.has_little


def joined_with(stores: dict[str, Full]) -> Joined:
    """Return a cluster on such disks, in which ``k`` is 1, and on ``a`` the newer 2."""
    joined = Joined(pace=NEVER)
    for name in "abc":
        stores[name] = joined.stores[name] = Full(f"store-{name}")  # type: ignore[assignment]
        core = joined.peers[name]
        core.store = core.local_partitions.store = stores[name]
    joined.put({"k": 1}, "all")
    joined.now += 10
    joined.down = {"b", "c"}
    joined.put({"k": 2}, timeout=50)
    joined.down = set()
    joined.now += 5000
    return joined


@pytest.mark.parametrize("how", ["is_full", "has_little"])
@pytest.mark.parametrize("full", ["b", "c", "bc"])
def test_read_returns_newest_value_when_a_replica_has_a_full_disk(full: str, how: str) -> None:
    stores: dict[str, Full] = {}
    joined = joined_with(stores)
    for name in full:
        setattr(stores[name], how, True)
    assert joined.lookup("k", level="all") == {"k": 2}
    if len(full) == 1:
        (other,) = set("bc") - set(full)
        assert joined.record(other, "k") == joined.record("a", "k"), "a quorum holds it"
        assert joined.lookup("k") == {"k": 2}, "no later read goes back"


@pytest.mark.parametrize("how", ["is_full", "has_little"])
@pytest.mark.parametrize("asked", ["ab", "ac"])
def test_quorum_read_succeeds_when_other_replica_has_a_full_disk(asked: str, how: str) -> None:
    stores: dict[str, Full] = {}
    joined = joined_with(stores)
    _, full = asked
    setattr(stores[full], how, True)
    joined.session.install(
        joined.topology.encode(), list(asked)
    )  # the peers that it considers alive
    assert joined.lookup("k") == {"k": 2}
    joined.session.install(joined.topology.encode(), list("abc"))
    assert joined.lookup("k") == {"k": 2}


def test_failed_write_names_the_peers_whose_disks_are_full() -> None:
    stores: dict[str, Full] = {}
    joined = joined_with(stores)
    stores["b"].has_little = stores["c"].has_little = stores["a"].has_little = True
    result = joined.put({"k": 3})
    assert list(result.outcomes) == ["k"]
    assert str(result.errors["k"]).startswith("a, b, c: ")
    with pytest.raises(BatchError, match=r"^1 of 1 keys not written: 'k' failed: a, b, c: "):
        result.raise_for_failures()
