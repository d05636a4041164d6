"""The admission checks of a peer, without a core."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dstash.cluster.replication.cluster_clock import ClusterClock
from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.topology.topology import Member, Topology
from dstash.cluster.topology.view import View
from dstash.errors import Busy, DStashError, Forming, NotReady, StaleEpoch, Unauthorised
from dstash.peer.admission.authority import Authority, Grant, Role
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.checks import Admission
from dstash.peer.admission.requests import Request
from dstash.peer.admission.write_floor import WriteFloor
from dstash.store.memory import TwinStore
from dstash.wire import codec
from dstash.wire.envelope import Envelope
from dstash.wire.messages import Lookup
from dstash.wire.replication import SeenRequest
from dstash.wire.shapes import Frame, Message

NOW = 1_700_000_000_000
EPOCH = 5


class Readiness:
    """The readiness of a peer that serves, which tests change."""

    stopping = False
    not_ready: str | None = None
    freshness_confirmed = True

    def refusal(self) -> NotReady:
        return NotReady("a: not ready")


class FullClient:
    """A client that leaves its answers unread."""

    def defers(self, sender: bytes) -> bool:
        return True

    def lacks_room(self, sender: bytes) -> bool:
        return True


def view(epoch: int = EPOCH, *, formed: bool = True, key: str = "") -> View:
    members = tuple(Member(name, f"tcp://{name}:1", name, name, key=key) for name in "ab")
    return View(Topology("c", "id", epoch, formed=formed, members=members), frozenset("ab"))


def request(message: Message | None = None, epoch: int = EPOCH, user: str = "k") -> Request:
    message = message or Lookup("i", 1, Frame(codec.pack_blobs([b"k"])))
    return Request(b"client", user, Envelope(1, epoch, 0, message), NOW, 100)


@pytest.fixture
def readiness() -> Readiness:
    return Readiness()


@pytest.fixture
def admission(readiness: Readiness) -> Admission:
    partitions = LocalPartitions(TwinStore(), 100, NOW)
    clock = ClusterClock("a", 500, lambda: partitions.present, NOW)
    floor = WriteFloor("a", partitions, clock)
    admission = Admission("a", readiness, Backlog(1000, 10), floor, 150)
    admission.install(view())
    return admission


def test_check_passes_when_peer_serves(admission: Admission) -> None:
    admission.check(request())
    admission.check_read(request())
    admission.check_room(request())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda admission, readiness: setattr(readiness, "stopping", True), NotReady),
        (lambda admission, readiness: setattr(readiness, "not_ready", "starting"), NotReady),
        (lambda admission, readiness: admission.install(view(EPOCH + 1)), StaleEpoch),
        (lambda admission, readiness: admission.install(view(formed=False)), Forming),
    ],
    ids=["stopping", "starting", "new-epoch", "forming"],
)
def test_check_refuses_request_in_other_states(
    change: Callable[[Admission, Readiness], object],
    error: type[DStashError],
    admission: Admission,
    readiness: Readiness,
) -> None:
    change(admission, readiness)
    with pytest.raises(error):
        admission.check(request())


def test_check_of_stale_epoch_returns_new_topology(admission: Admission) -> None:
    admission.install(view(EPOCH + 1))
    with pytest.raises(StaleEpoch) as caught:
        admission.check(request())
    assert caught.value.details["topology"] == view(EPOCH + 1).topology.encode()


def test_check_allows_seen_request_while_stopping(
    admission: Admission, readiness: Readiness
) -> None:
    readiness.stopping = True
    admission.check(request(SeenRequest("b", "b", [], True)))


def test_check_refuses_seen_request_of_unknown_member(admission: Admission) -> None:
    with pytest.raises(Unauthorised):
        admission.check(request(SeenRequest("x", "x", [], True)))


def test_check_read_refuses_while_freshness_is_not_confirmed(
    admission: Admission, readiness: Readiness
) -> None:
    readiness.freshness_confirmed = False
    with pytest.raises(NotReady):
        admission.check_read(request())


def test_check_read_refuses_client_with_unread_answers(admission: Admission) -> None:
    admission.unread = FullClient()
    with pytest.raises(Busy):
        admission.check_read(request())
    with pytest.raises(Busy):
        admission.check_room(request())


def test_request_of_future_epoch_waits_for_topology(admission: Admission) -> None:
    early = request(epoch=EPOCH + 1)
    assert admission.is_future_epoch(early.envelope)
    assert not admission.is_future_epoch(request().envelope)
    assert admission.wait_for_topology(early)
    assert admission.install(view(EPOCH + 1)) == [early]
    assert admission.install(view(EPOCH + 1)) == []


def test_request_of_future_epoch_expires_when_topology_is_late(admission: Admission) -> None:
    early = request(epoch=EPOCH + 1)
    admission.wait_for_topology(early)
    assert admission.expired(NOW + 1000) == []
    ((expired, error),) = admission.expired(NOW + 1001)
    assert expired == early
    assert isinstance(error, NotReady)


def test_request_of_future_epoch_is_rejected_when_queue_is_full(admission: Admission) -> None:
    assert admission.wait_for_topology(request(epoch=EPOCH + 1))
    with pytest.raises(Busy):
        admission.wait_for_topology(request(epoch=EPOCH + 1))


def test_topology_lacks_keys_that_are_not_authorised(admission: Admission) -> None:
    known, unknown = "k" * 40, "x" * 40
    admission.authorise(Authority({known: Grant(Role.PEER)}))
    assert [m.key for m in admission.trusted(view(key=known).topology).members] == [known] * 2
    assert [m.key for m in admission.trusted(view(key=unknown).topology).members] == ["", ""]
