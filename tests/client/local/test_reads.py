"""Local reads of one store: when they answer, and when a peer has to be asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dstash.client.local import reads
from dstash.client.local.batches import ABSENT, ASK
from dstash.client.local.reads import LocalReads
from dstash.client.session import Session
from dstash.cluster.topology.topology import Member, Topology
from dstash.store.sharing.places import StorePlace
from dstash.types import Level, RecordFlag
from dstash.wire.values import TypeRegistry
from tests.store.sharing.owner import Owner

NOW = 1_700_000_000_000
EPOCH = 5


def topology(owner: Owner, epoch: int = EPOCH, cluster_id: str = "c") -> bytes:
    member = Member("a", "tcp://a:1", owner.place.store_id, "a")
    made = Topology("name", cluster_id, epoch, replicas=1, formed=True, members=(member,))
    return made.encode()


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    with Owner(tmp_path / "data") as made:
        made.do("put", "key", "one", NOW)
        made.do("mark", 7, EPOCH, 4096, "c")
        made.do("show", 7)
        yield made


@pytest.fixture
def session(owner: Owner) -> Session:
    made = Session(lambda: NOW)
    made.install(topology(owner), ["a"])
    made.learn_place("a", owner.place.fields())
    return made


@pytest.fixture
def local(session: Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalReads]:
    monkeypatch.setattr(reads, "_LOOK_INTERVAL_S", 0)
    made = LocalReads(session, TypeRegistry(), Level.ONE)
    yield made
    made.close()


def look(local: LocalReads) -> object:
    """Return the value of the key; both ways to look it up agree."""
    found = local.lookup("i", "key", None, None, None)
    many = local.lookup_all("i", ["key", "missing"], None, None)
    whole = [[ABSENT if found is None else found, ABSENT], [ASK, ASK], None]
    assert many in (whole if found is not ASK else [*whole, [ASK, ABSENT]])
    return found


def test_key_is_read_from_the_store(local: LocalReads) -> None:
    assert look(local) == "one"
    assert local.lookup_all("i", ["key", "missing"], None, None) == ["one", ABSENT]
    assert local.lookup("i", "missing", 3, None, "one") == 3
    assert local.lookup("i", "key", None, None, "quorum") is ASK
    assert local.lookup_all("i", ["key"] * 5001, None, None) is None


def test_later_epoch_of_the_client_or_of_the_peer_asks_a_peer(
    owner: Owner, session: Session, local: LocalReads
) -> None:
    assert look(local) == "one"
    session.install(topology(owner, EPOCH + 1), ["a"])
    assert look(local) is ASK
    owner.do("show", 0)
    owner.do("mark", 8, EPOCH + 1, 4096, "c")
    owner.do("show", 8)
    local.lookup("i", "key", None, None, None)  # takes the new mark
    assert look(local) == "one"
    owner.do("show", 0)
    owner.do("mark", 9, EPOCH + 2, 4096, "c")
    owner.do("show", 9)
    for _ in range(3):
        assert look(local) is ASK


def test_partition_that_the_mark_lacks_asks_a_peer(owner: Owner, local: LocalReads) -> None:
    owner.do("show", 0)
    owner.do("mark", 8, EPOCH, 0, "c")
    owner.do("show", 8)
    for _ in range(3):
        assert look(local) is ASK


def test_lagging_replica_asks_a_peer(session: Session, local: LocalReads) -> None:
    assert look(local) == "one"
    session.lagging["a"] = NOW + 1000
    assert look(local) is ASK
    session.lagging.clear()
    assert look(local) == "one"


def test_peer_that_shares_no_more_is_asked(session: Session, local: LocalReads) -> None:
    assert look(local) == "one"
    session.learn_place("a", [])
    assert look(local) is ASK
    assert local._stores == {}


@pytest.mark.parametrize("part", ["boot", "identity"])
def test_store_of_another_machine_is_not_opened(
    owner: Owner, session: Session, local: LocalReads, part: str
) -> None:
    machine = owner.place.machine._replace(**{part: "another"})
    session.learn_place("a", owner.place._replace(machine=machine).fields())
    assert look(local) is ASK
    assert local._stores == {}


def test_foreign_store_is_not_read_and_reported_once(
    owner: Owner, session: Session, local: LocalReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = list[str]()
    monkeypatch.setattr(reads._log, "warning", lambda event, peer, why: lines.append(why))
    session.learn_place("a", StorePlace(*owner.place[:2], "another").fields())
    assert look(local) is ASK
    assert local._stores == {}, "the topology does not list that store"
    session.learn_place("a", owner.place.fields())
    session.view = None
    session.install(topology(owner, cluster_id="of another cluster"), ["a"])
    for _ in range(5):
        assert look(local) is ASK
    assert len(lines) == 1
    assert "another cluster" in lines[0]


def test_tombstones_and_expired_records_are_missing_by_the_clock_of_the_peer(
    owner: Owner, local: LocalReads
) -> None:
    now = time.time_ns() // 1_000_000
    for flags, expiry, payload in [(RecordFlag.TOMBSTONE.value, 0, ""), (0, now - 1, "a161")]:
        owner.do("put_payload", "key", payload, now, flags, expiry)
        assert look(local) is None
        assert local.lookup_all("i", ["key", "missing"], None, None) == [ABSENT, ABSENT]
        now += 1
    owner.do("put_payload", "key", "a161", now, 0, now + 600_000)
    assert look(local) == "a"
    owner.do("put_payload", "key", "a161", now + 1, RecordFlag.REGISTER.value, 0)
    assert look(local) is ASK


def test_corrupt_record_asks_a_peer(owner: Owner, local: LocalReads) -> None:
    assert look(local) == "one"
    owner.do("put", "other", "two", NOW)
    owner.do("corrupt", "key")
    assert look(local) is ASK
    found = local.lookup_all("i", ["key", "other", "missing"], None, None)
    assert found == [ASK, "two", ABSENT]


def test_value_that_cannot_be_decoded_asks_a_peer(owner: Owner, local: LocalReads) -> None:
    owner.do("put_payload", "key", "c1", NOW + 1)
    assert look(local) is ASK
    assert local.lookup_all("i", ["key", "missing"], None, None) == [ASK, ABSENT]


def test_closed_client_reads_no_store(local: LocalReads) -> None:
    assert look(local) == "one"
    local.close()
    assert look(local) is ASK
    assert local.lookup_all("i", ["key"], None, None) is None
