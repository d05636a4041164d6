"""Freshness: whether a store may vote after old copies and starts without other members."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest

from dstash.cluster.replication.lineage import LINEAGE_MARK, StoreMemory
from dstash.cluster.topology import transitions
from dstash.cluster.topology.announcement import FEATURES, Announcement
from dstash.cluster.topology.joining import with_seen
from dstash.cluster.topology.life import Life
from dstash.cluster.topology.topology import Restored, Topology
from dstash.cluster.topology.view import View
from dstash.errors import DiskFull, NotReady, StaleEpoch
from dstash.peer.admission.authority import Authority, Grant, Role
from dstash.peer.assembly import Settings
from dstash.peer.background.claims import SUSPECTED
from dstash.peer.background.maintenance import Pace
from dstash.peer.core import PeerCore
from dstash.store.interface import LACKING_MARK, Write
from dstash.store.memory import TwinStore
from dstash.version import stamp_at
from dstash.wire import codec
from dstash.wire.envelope import Envelope, decode, encode
from dstash.wire.messages import Error, Hello, Lookup, TopologyRequest, Welcome
from dstash.wire.replication import SeenReply, SeenRequest
from dstash.wire.shapes import Frame
from tests.harness.joined import Joined

KEYS = Frame(codec.pack_blobs([b"k"]))
LIVE = Pace(compare_ms=10**9, gc_interval_ms=10**9, gc_grace_ms=0)


class Restarted(Joined):
    """Peers that restart on their disk or on a copy of it."""

    def __init__(self, names: str = "abc", replicas: int = 3) -> None:
        self.ended: set[str] = set()
        super().__init__(names, replicas, pace=LIVE)

    def _tick(self, name: str) -> bool:
        return name not in self.ended and super()._tick(name)

    def end(self, *names: str) -> None:
        self.ended |= set(names)
        self.down |= set(names)
        for name in self.peers:
            self.look(name)

    def start(self, *names: str) -> None:
        """Start processes at the same time."""
        self.now += 100
        for name in names:
            self.ended.discard(name)
            self.down.discard(name)
            core = PeerCore(Settings(name, "c", pace=LIVE), self.stores[name], self.now)
            core.health.not_ready = None
            self.peers[name] = core
        for name in self.peers:
            self.look(name)

    def look(self, name: str) -> None:
        """Let a peer read the topology and the live members."""
        if name not in self.ended:
            alive = frozenset(self.peers.keys() - self.ended)
            self.peers[name].install(View(self.topology, alive), self.now)

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 4)):
            self.now += 250
            self.settle()
            self.make_proposals()

    def make_proposals(self) -> None:
        """Apply the proposals of peers, as their membership agents do."""
        for name in self.peers.keys() - self.ended:
            for propose in self.peers[name].take_proposals():
                step = propose(self.topology)
                if step is not None:
                    self.topology = with_seen(step, self.peers[name].newest_lives())
        for name in self.peers:
            self.look(name)

    def votes(self, name: str) -> bool:
        return self.peers[name].maintenance.freshness_confirmed

    def why(self, name: str) -> str:
        return self.peers[name].health.why_not_ready() or ""

    def synced(self) -> str:
        return "".join(member.id for member in self.topology.members if member.synced)


def with_old_copy(joined: Restarted) -> Any:
    """Return a copy of the disk of ``a``; later writes were acked only by ``a`` and ``b``."""
    joined.put({"k": 1})
    joined.pass_time(3)
    copy = deepcopy(joined.stores["a"])
    joined.now += 1000
    joined.put({"k": 2}, level="all")
    joined.delete("k", level="all")
    joined.pass_time(3)
    return copy


def start_copy_that_only_c_recognises(joined: Restarted) -> None:
    """Start ``a`` on an old copy while ``c`` is down, the only other member with the last write."""
    joined.put({"k": 1})
    joined.pass_time(3)
    copy = deepcopy(joined.stores["a"])
    joined.end("b")
    joined.pass_time(1)
    joined.put({"k": 2})
    joined.pass_time(3)
    joined.end("a", "c")
    joined.stores["a"] = copy
    joined.start("a", "b")
    joined.pass_time(3)
    assert joined.votes("a"), "what b knows is older, and does not reveal the rollback"


@pytest.fixture
def joined() -> Restarted:
    return Restarted()


def test_peers_started_together_confirm_freshness(joined: Restarted) -> None:
    with_old_copy(joined)
    joined.end("a", "b", "c")
    joined.start("a", "b", "c")
    assert not joined.votes("a")
    joined.settle()
    assert all(map(joined.votes, "abc"))


def test_old_copy_waits_for_silent_members(joined: Restarted) -> None:
    copy = with_old_copy(joined)
    joined.end("a")
    joined.stores["a"] = copy
    joined.mute = {"b", "c"}
    joined.start("a")
    joined.pass_time(60)
    assert not joined.votes("a")
    assert "waiting for b or c" in joined.why("a")
    request = Envelope(1, joined.topology.epoch, 0, Lookup("i", 1, Frame(b"\x91\xc4\x01k")))
    reply = joined.peers["a"].receive(b"x", encode(request), joined.now)[0]
    answer = decode(reply.frames).message
    assert isinstance(answer, Error)
    assert isinstance(answer.error(), NotReady)
    joined.mute = set()
    joined.pass_time(20)
    assert joined.synced() == "abc"  # lost, and streamed again
    assert joined.record("a", "k") == joined.record("b", "k")


def test_restarted_members_recognise_old_copy(joined: Restarted) -> None:
    copy = with_old_copy(joined)
    joined.end("a")
    for name in "bc":
        joined.end(name)
        joined.start(name)
        joined.pass_time(3)
    assert joined.votes("b")
    joined.stores["a"] = copy
    joined.start("a")
    joined.settle()
    assert not joined.votes("a")
    joined.make_proposals()
    assert joined.synced() == "bc"


def test_old_copy_started_alone_waits_until_recognised(joined: Restarted) -> None:
    copy = with_old_copy(joined)
    joined.end("a", "b", "c")
    joined.stores["a"] = copy
    joined.start("a")
    joined.pass_time(300)
    assert not joined.votes("a")
    assert "waiting for b or c" in joined.why("a")
    joined.start("b")
    joined.pass_time(3)
    assert joined.synced() == "bc"


def test_later_evidence_of_rollback_ends_the_vote(joined: Restarted) -> None:
    start_copy_that_only_c_recognises(joined)
    joined.put({"other": 1})
    joined.pass_time(3)
    joined.end("a")
    joined.start("a")  # neither newer writes nor a restart hide the rollback
    joined.pass_time(3)
    joined.start("c")
    joined.pass_time(1)
    assert joined.synced() == "bc"


def test_copies_of_all_disks_are_recognised_by_the_topology(joined: Restarted) -> None:
    joined.put({"k": 1})
    joined.pass_time(3)
    copies = {name: deepcopy(store) for name, store in joined.stores.items()}
    joined.now += 1000
    joined.put({"k": 2}, level="all")
    joined.topology = with_seen(joined.topology.next(), joined.peers["a"].newest_lives())
    joined.pass_time(3)
    joined.topology = with_seen(joined.topology.next(), joined.peers["b"].newest_lives())
    joined.end("a", "b", "c")
    joined.stores.update(copies)
    joined.start("a", "b", "c")
    joined.settle()
    assert not any(map(joined.votes, "abc"))


def test_streamed_store_is_not_suspected_again(joined: Restarted) -> None:
    copy = with_old_copy(joined)
    joined.end("a")
    joined.stores["a"] = copy
    joined.start("a")
    joined.pass_time(30)
    assert joined.synced() == "abc"
    joined.end("a")
    joined.start("a")
    joined.pass_time(3)
    assert joined.votes("a")
    assert joined.synced() == "abc"


def test_stop_announces_the_last_write(joined: Restarted) -> None:
    joined.pass_time(3)
    joined.put({"k": 1}, level="all")
    core = joined.peers["a"]
    core.health.stopping = True
    assert core.has_work
    joined.settle()
    assert not core.has_work
    newest = joined.stores["a"].high_water
    assert joined.peers["b"].local_partitions.memory.newest_stamp("store-a") == newest
    assert joined.peers["c"].local_partitions.memory.newest_stamp("store-a") == newest


def test_last_report_reaches_a_member_that_is_not_connected_at_once(joined: Restarted) -> None:
    joined.pass_time(3)
    joined.put({"k": 1}, level="all")
    newest = joined.stores["a"].high_water
    core = joined.peers["a"]
    joined.down = {"b"}
    core.health.stopping = True
    joined.settle()
    assert core.has_work
    assert joined.peers["c"].local_partitions.memory.newest_stamp("store-a") == newest
    joined.down = set()
    joined.now += 100
    joined.settle()
    assert joined.peers["b"].local_partitions.memory.newest_stamp("store-a") == newest
    assert not core.has_work


def test_peer_that_may_not_report_keeps_what_others_reported(joined: Restarted) -> None:
    joined.pass_time(3)
    joined.end("a", "b")
    joined.start("a")
    core = joined.peers["a"]
    assert not joined.votes("a")
    core.local_partitions.memory.note("store-b", Life(7, 8, 9))
    core.health.stopping = True
    joined.settle()
    assert not core.has_work
    assert StoreMemory(joined.stores["a"]).newest("store-b") == Life(7, 8, 9)


def test_stop_does_not_wait_for_silent_members(joined: Restarted) -> None:
    joined.put({"k": 1}, level="all")
    joined.mute = {"b", "c"}
    core = joined.peers["a"]
    core.health.stopping = True
    joined.settle()
    assert core.has_work
    joined.now += 600
    joined.settle()
    assert not core.has_work


@pytest.mark.parametrize(
    ("names", "replicas", "others"),
    [("a", 1, ""), ("ab", 2, ""), ("abc", 3, "b"), ("abcd", 4, "b"), ("abcde", 5, "bc")],
)
def test_confirmation_needs_as_many_members_as_may_miss_an_acked_write(
    names: str, replicas: int, others: str
) -> None:
    joined = Restarted(names, replicas)
    joined.end(*names)
    joined.start("a")
    joined.pass_time(1)
    for name in others:
        assert not joined.votes("a")
        joined.start(name)
        joined.pass_time(1)
    assert joined.votes("a")


def test_unsynced_store_does_not_confirm_freshness(joined: Restarted) -> None:
    members = tuple(replace(member, synced=member.id != "b") for member in joined.topology.members)
    joined.end("a", "c")
    joined.topology = replace(joined.topology.next(), members=members)
    joined.start("a")
    joined.pass_time(3)
    assert not joined.votes("a")
    assert "waiting for c; b cannot confirm it" in joined.why("a")


def test_idle_peers_exchange_few_seen_requests(joined: Restarted) -> None:
    joined.put({"k": 1}, level="all")
    joined.pass_time(40)
    asked = joined.peers["a"].meters.kinds()["SeenRequest"]
    commits = joined.peers["a"].health.counts["commits"]
    joined.pass_time(60)
    assert joined.peers["a"].meters.kinds()["SeenRequest"] - asked <= 6
    assert joined.peers["a"].health.counts["commits"] == commits


def test_seen_messages_of_earlier_versions_are_understood(joined: Restarted) -> None:
    """They know one stamp of a peer, regardless of its store and life."""
    copy = with_old_copy(joined)
    newest = joined.stores["a"].high_water
    asked = Envelope(1, joined.topology.epoch, 0, SeenRequest("a", newest))
    joined.peers["b"].receive(b"client", encode(asked), joined.now)
    joined.settle()
    assert joined.peers["b"].local_partitions.memory.newest_stamp("store-a") == newest
    joined.end("a")
    joined.stores["a"] = copy
    joined.start("a")
    core = joined.peers["a"]
    _, outgoing = core.tick(joined.now)
    questions = [(request.peer, decode(request.frames)) for request in outgoing]
    for peer, envelope in questions:
        if not isinstance(envelope.message, SeenRequest):
            continue
        assert envelope.message.high_water == 0
        answer = Envelope(envelope.correlation, envelope.epoch, 0, SeenReply(newest, newest))
        core.outgoing.answered(peer, encode(answer), joined.now)
    core.tick(joined.now)
    core.tick(joined.now)
    assert not core.maintenance.freshness_confirmed
    assert core.take_proposals()


def test_topology_with_sightings_round_trips(joined: Restarted) -> None:
    joined.put({"k": 1}, level="all")
    joined.pass_time(3)
    topology = with_seen(joined.topology, joined.peers["a"].newest_lives())
    seen = {member.id: member.seen[2] for member in topology.members}
    assert seen == {name: joined.stores[name].high_water for name in "abc"}
    assert Topology.decode(topology.encode()) == topology


def test_accept_loss_of_all_old_copies_resumes_service(joined: Restarted) -> None:
    joined.put({"k": 1, "l": 1})
    joined.pass_time(3)
    copies = {name: deepcopy(store) for name, store in joined.stores.items()}
    joined.now += 1000
    joined.put({"k": 2}, level="all")
    joined.pass_time(3)
    for name in "abc":
        joined.topology = with_seen(joined.topology.next(), joined.peers[name].newest_lives())
    joined.end("a", "b", "c")
    joined.stores.update(copies)
    joined.forget("b", "l")  # the copies need not be equal
    joined.start("a", "b", "c")
    joined.pass_time(20)
    assert joined.synced() == ""
    joined.topology = transitions.accept_loss(joined.topology, list("abc"), frozenset("abc"))
    for name in "abc":
        joined.look(name)
    joined.pass_time(30)
    assert joined.synced() == "abc"
    joined.session.install(joined.topology.encode(), list("abc"))
    assert joined.lookup("k", "l") == {"k": 1, "l": 1}
    assert joined.record("b", "l") == joined.record("a", "l")
    joined.put({"new": 1}, level="all")
    assert joined.lookup("new") == {"new": 1}


class TestHeardTopology:
    """A later topology of another member; see ``MembershipAgent.hear``."""

    def hear(self, joined: Restarted, topology: Topology, *, trusts: str = "") -> Topology | None:
        """Start ``a`` with the present epoch while the others use ``topology``."""
        joined.end("a")
        joined.install(topology, "b", "c")
        joined.ended.discard("a")
        joined.down.discard("a")
        core = PeerCore(Settings("a", "c", pace=LIVE), joined.stores["a"], joined.now)
        core.health.not_ready = None
        if trusts:
            core.admission.authorise(Authority({trusts: Grant(Role.PEER)}))
        joined.peers["a"] = core
        core.install(View(joined.topology, frozenset("abc")), joined.now)
        joined.settle()
        return core.topology_news.heard

    def test_later_topology_is_learned_from_refused_requests(self, joined: Restarted) -> None:
        later = joined.topology.next()
        assert self.hear(joined, later) == later
        assert joined.peers["a"].topology_news.wants_refresh
        joined.peers["a"].install(View(later, frozenset("abc")), joined.now)
        assert joined.peers["a"].topology_news.heard is None
        joined.pass_time(1)
        assert joined.votes("a")

    def test_untrusted_keys_of_heard_topology_are_dropped(self, joined: Restarted) -> None:
        known, unknown = "k" * 40, "u" * 40
        members = tuple(
            replace(member, key=unknown if member.id == "c" else known)
            for member in joined.topology.members
        )
        heard = self.hear(joined, replace(joined.topology.next(), members=members), trusts=known)
        assert heard is not None
        assert [member.key for member in heard.members] == [known, known, ""]

    @pytest.mark.parametrize("wrong", ["cluster", "without", "store", "restored", "forming"])
    def test_unsuitable_heard_topology_is_ignored(self, joined: Restarted, wrong: str) -> None:
        later = joined.topology.next()
        me, *others = later.members
        changed = {
            "cluster": replace(later, cluster_id="another"),
            "without": replace(later, members=tuple(others)),
            "store": replace(later, members=(replace(me, store_id="x"), *others)),
            "restored": replace(later, restored=Restored(5)),
            "forming": replace(later, formed=False),
        }
        assert self.hear(joined, changed[wrong]) is None

    def test_later_topology_is_requested_when_a_client_knows_its_epoch(
        self, joined: Restarted
    ) -> None:
        core, later = joined.peers["a"], joined.topology.next()
        joined.install(later, "b", "c")
        frames = encode(
            Envelope(1, later.epoch, 0, Lookup("i", 1, Frame(codec.pack_blobs([b"k"]))))
        )
        assert core.receive(b"", frames, joined.now) == []
        joined.settle()
        assert core.topology_news.heard is None, "the membership may return it at once"
        joined.now += 250
        joined.settle()
        assert core.topology_news.heard == later

    def test_later_topology_is_not_requested_when_the_membership_returns_it(
        self, joined: Restarted
    ) -> None:
        core, later = joined.peers["a"], joined.topology.next()
        frames = encode(
            Envelope(1, later.epoch, 0, Lookup("i", 1, Frame(codec.pack_blobs([b"k"]))))
        )
        core.receive(b"", frames, joined.now)
        joined.settle()
        joined.install(later)
        joined.now += 250
        _, outgoing = core.tick(joined.now)
        asked = {type(decode(message.frames).message) for message in outgoing}
        assert TopologyRequest not in asked

    def test_topology_of_a_stranger_is_ignored(self, joined: Restarted) -> None:
        core = joined.peers["a"]
        error = StaleEpoch("old", topology=joined.topology.next().encode())
        frames = encode(Envelope(1, joined.topology.epoch + 1, 0, Error.of(error)))
        core.outgoing.answered("x", frames, joined.now)
        assert core.topology_news.heard is None
        core.outgoing.answered("b", frames, joined.now)
        assert core.topology_news.heard is not None


class TestClaims:
    """Claims of clients about a store."""

    def claim(self, joined: Restarted, name: str, seen: list[list[Any]]) -> Any:
        frames = encode(Envelope(1, 0, 0, Hello(seen=seen)))
        return decode(joined.peers[name].receive(b"client", frames, joined.now)[0].frames).message

    def seen_of(self, joined: Restarted, name: str) -> list[list[Any]]:
        """Return the sighting of a client that connects now."""
        answer = self.claim(joined, name, [])
        assert isinstance(answer, Welcome)
        return [answer.store]

    def suspects(self, joined: Restarted, name: str) -> bool:
        joined.pass_time(1)
        return joined.peers[name].health.status()["alerts"] == [SUSPECTED]

    def all_old(self, joined: Restarted) -> dict[str, list[list[Any]]]:
        """Replace all disks by old copies; return the earlier sightings of a client."""
        joined.put({"k": 1})
        joined.pass_time(3)
        copies = {name: deepcopy(store) for name, store in joined.stores.items()}
        joined.now += 1000
        joined.put({"k": 2}, level="all")
        joined.pass_time(3)
        seen = {name: self.seen_of(joined, name) for name in "abc"}
        joined.end("a", "b", "c")
        joined.stores.update(copies)
        joined.start("a", "b", "c")
        joined.pass_time(3)
        return seen

    def test_suspected_copies_of_all_disks_keep_their_vote(self, joined: Restarted) -> None:
        seen = self.all_old(joined)
        for name in "abc":
            assert joined.votes(name)
            assert not self.suspects(joined, name)
            self.claim(joined, name, [*seen["a"], *seen["b"], *seen["c"]])
            assert self.suspects(joined, name)
            assert joined.votes(name)
            assert joined.peers[name].health.why_not_ready() is None
        assert joined.synced() == "abc"

    def test_claim_is_kept_until_the_store_is_streamed(self, joined: Restarted) -> None:
        seen = self.all_old(joined)
        self.claim(joined, "a", seen["a"])
        assert self.suspects(joined, "a")
        joined.pass_time(60)
        assert self.suspects(joined, "a")
        lost = transitions.lost(joined.topology, "a", "store-a")
        assert lost is not None
        joined.topology = lost
        for name in "abc":
            joined.look(name)
        joined.pass_time(30)
        assert joined.synced() == "abc"
        assert not self.suspects(joined, "a")
        self.claim(joined, "a", seen["a"])
        assert not self.suspects(joined, "a")

    def test_claims_end_with_restart_of_the_peer(self, joined: Restarted) -> None:
        seen = self.all_old(joined)
        self.claim(joined, "a", seen["a"])
        assert self.suspects(joined, "a")
        joined.end("a")
        joined.start("a")
        assert not self.suspects(joined, "a")
        self.claim(joined, "a", seen["a"])
        assert self.suspects(joined, "a")

    def test_claim_is_confirmed_by_members_at_once(self, joined: Restarted) -> None:
        joined.put({"k": 1})
        joined.pass_time(3)
        copy = deepcopy(joined.stores["a"])
        joined.now += 1000
        joined.put({"k": 2}, level="all")
        joined.pass_time(3)
        seen = self.seen_of(joined, "a")
        remembered = joined.peers["c"].local_partitions.memory.of("store-a")
        joined.end("a", "b", "c")
        joined.stores["a"] = copy
        joined.stores["b"].marks.pop(b"seen", None)
        joined.stores["c"].marks.pop(b"seen", None)
        joined.start("a", "b", "c")
        joined.pass_time(6)
        assert joined.votes("a")
        for life in remembered:  # as if from a member that was down
            joined.peers["c"].local_partitions.memory.note("store-a", life)
        before = joined.peers["c"].meters.kinds()["SeenRequest"]
        joined.settle()
        assert joined.peers["c"].meters.kinds()["SeenRequest"] == before
        self.claim(joined, "a", seen)
        joined.now += 100
        joined.settle()
        assert joined.peers["c"].meters.kinds()["SeenRequest"] > before
        assert not joined.votes("a")
        joined.make_proposals()
        assert joined.synced() == "bc"

    def test_store_that_was_not_rolled_back_is_not_suspected(self, joined: Restarted) -> None:
        joined.put({"k": 1}, level="all")
        seen = self.seen_of(joined, "a")
        for _ in range(3):
            joined.end("a")
            joined.start("a")
            joined.pass_time(3)
            self.claim(joined, "a", seen)
            assert not self.suspects(joined, "a")
            seen += self.seen_of(joined, "a")

    @pytest.mark.parametrize(
        "made_up",
        [
            ["store-b", 3, 1, 2**63],  # another store
            ["store-a", 2**64 - 1, 1, 1],  # an impossible life: its number would overflow
        ],
    )
    def test_claim_about_another_store_is_ignored(
        self, joined: Restarted, made_up: list[Any]
    ) -> None:
        joined.pass_time(3)
        assert isinstance(self.claim(joined, "a", [made_up]), Welcome)
        assert not self.suspects(joined, "a")

    def test_false_claims_cost_no_vote_and_limited_memory(self, joined: Restarted) -> None:
        joined.pass_time(3)
        for number in range(200):
            self.claim(joined, "a", [["store-a", 7 + number, 1, 2**63]])
        assert self.suspects(joined, "a")
        assert joined.votes("a")
        assert len(joined.peers["a"].maintenance.freshness._claims._kept) <= 16
        asked = joined.peers["b"].meters.kinds()["SeenRequest"]
        for number in range(100):
            self.claim(joined, "a", [["store-a", 9999 + number, 1, 2**63]])
            joined.settle()
        assert joined.peers["b"].meters.kinds()["SeenRequest"] - asked <= 1

    @pytest.mark.parametrize("seen", [[1], [["store-a"]], [["store-a", -1, 2, 3]], [[1, 2, 3, 4]]])
    def test_malformed_claim_is_refused(self, joined: Restarted, seen: Any) -> None:
        answer = self.claim(joined, "a", seen)
        assert isinstance(answer, Error)
        assert "Hello.seen is not a list of" in answer.text


def test_store_whose_machine_stopped_before_a_sync_is_streamed_again(joined: Restarted) -> None:
    joined.put({"k": 1})
    joined.pass_time(3)
    copy = deepcopy(joined.stores["a"])
    joined.put({"k": 2}, level="all")
    joined.end("a")  # before it has reported how new its store is
    copy.may_lack_writes = True
    joined.stores["a"] = copy
    joined.start("a")
    assert not joined.votes("a")
    assert "stopped before all commits were synced" in joined.why("a")
    joined.pass_time(20)
    assert joined.synced() == "abc"
    assert joined.votes("a")
    assert joined.record("a", "k") == joined.record("b", "k")
    assert not copy.may_lack_writes
    assert copy.marks[LACKING_MARK] == b""


@pytest.mark.parametrize("is_old", [False, True])
def test_complete_newcomer_that_lost_data_is_streamed_once_more(is_old: bool) -> None:
    joined = Restarted("abcd")
    joined.put({"k": 1}, level="all")
    joined.stores["d"] = TwinStore("store-d")
    joined.end("d")
    newcomer = Announcement("d", "tcp://d:1", "store-d", "z-d", 1.0, features=FEATURES)
    joined.topology = transitions.add(joined.topology.without("d").next(), [newcomer])
    joined.start("d")
    copy = deepcopy(joined.stores["d"])
    joined.pass_time(3)
    assert joined.topology.change is not None
    assert joined.topology.change.complete == ("d",)
    joined.put({"k": 2}, level="all")
    joined.pass_time(3)
    first = joined.topology.change.number
    joined.end("d")
    if is_old:
        joined.stores["d"] = copy
    else:
        joined.stores["d"].may_lack_writes = True
    joined.start("d")
    joined.pass_time(6)
    change = joined.topology.change
    assert change is not None
    assert change.complete == ("d",)
    assert change.number == first + 2, "it has begun once more"
    assert joined.votes("d")
    joined.pass_time(20)
    assert joined.topology.change == change
    assert not joined.stores["d"].may_lack_writes


def test_streaming_to_a_store_that_counts_is_no_evidence_about_it(joined: Restarted) -> None:
    joined.pass_time(3)
    joined.end("a", "b", "c")
    joined.start("a")
    freshness = joined.peers["a"].maintenance.freshness
    assert not joined.votes("a")
    base = joined.stores["a"].marks.get(LINEAGE_MARK)
    assert list(freshness.streamed()) == [], "as after gained partitions, or registers"
    joined.pass_time(1)
    assert not joined.votes("a")
    assert joined.stores["a"].marks.get(LINEAGE_MARK) == base


def test_sole_replica_serves_after_its_machine_stopped_before_a_sync() -> None:
    joined = Restarted(replicas=1)
    joined.pass_time(3)
    joined.end("a")
    joined.stores["a"].may_lack_writes = True
    joined.start("a")
    joined.pass_time(3)
    assert joined.synced() == "abc"
    assert joined.votes("a")
    assert not joined.stores["a"].may_lack_writes
    assert joined.stores["a"].marks[LACKING_MARK] == b""


def test_loss_is_proposed_again_in_a_topology_restored_without_it(joined: Restarted) -> None:
    core = joined.peers["a"]
    core.maintenance.freshness._judge(True, "the test")
    assert len(core.take_proposals()) == 1, "it is stored, and lost before a peer has seen it"
    assert core.view is not None
    later = replace(core.view.topology, epoch=core.view.epoch + 1000)
    core.install(View(later, core.view.alive), joined.now)
    [step] = core.take_proposals()
    without = step(later)
    assert without is not None
    assert [member.id for member in without.members if not member.synced] == ["a"]
    core.install(View(without, core.view.alive), joined.now)
    assert core.take_proposals() == []


class TestCommitsOfOldRecords:
    """A store is newer after each commit, however old the records of the commit are."""

    def test_copy_from_before_gained_partitions_is_recognised(self) -> None:
        joined = Restarted("abcd")
        joined.put({f"k{number}": 1 for number in range(40)}, level="all")
        joined.pass_time(40)
        copy = deepcopy(joined.stores["a"])
        joined.topology = transitions.remove(joined.topology, ["d"])
        finish_change(joined)
        gained = joined.stores["a"].records.keys() - copy.records.keys()
        assert gained
        restart_on(joined, "a", copy)
        assert joined.synced() == "bc"
        joined.pass_time(20)
        assert joined.synced() == "abc"
        assert gained <= joined.stores["a"].records.keys()

    def test_copy_from_before_writes_below_a_future_stamp_is_recognised(
        self, joined: Restarted
    ) -> None:
        ahead = stamp_at(joined.now + 3_600_000)
        for store in joined.stores.values():
            store.commit([Write([], joined.now, newest=ahead)])
        joined.pass_time(3)
        copy = deepcopy(joined.stores["a"])
        joined.put({"k": 2}, level="all")
        assert all(store.newest == ahead for store in joined.stores.values())
        joined.pass_time(3)
        restart_on(joined, "a", copy)
        assert joined.synced() == "bc"

    def test_reports_of_other_members_make_a_store_no_newer(self, joined: Restarted) -> None:
        joined.put({"k": 1}, level="all")
        joined.pass_time(5)
        before = [store.high_water for store in joined.stores.values()]
        asked = joined.peers["a"].meters.kinds()["SeenRequest"]
        joined.pass_time(25)
        assert [store.high_water for store in joined.stores.values()] == before
        assert joined.peers["a"].meters.kinds()["SeenRequest"] - asked <= 2


def finish_change(joined: Restarted) -> None:
    """Let a topology change end."""
    for _ in range(80):
        joined.pass_time(0.25)
        if (step := transitions.switch(joined.topology)) is not None:
            joined.topology = with_seen(step, joined.peers["b"].newest_lives())
        if joined.topology.change is None:
            joined.pass_time(3)
            return
    raise AssertionError(joined.topology.change)


def restart_on(joined: Restarted, name: str, copy: Any) -> None:
    """Restart a peer on a copy of its disk; the topology is not stored again meanwhile."""
    joined.end(name)
    joined.stores[name] = copy
    joined.start(name)
    joined.settle()
    assert not joined.votes(name)
    joined.make_proposals()


class TestNewcomers:
    """From the moment that the store of a newcomer counts, older copies of it are recognised."""

    @pytest.fixture
    def joined(self) -> Restarted:
        joined = Restarted("abcde")
        joined.put({f"k{number}": 1 for number in range(40)}, level="all")
        joined.stores["e"] = TwinStore("store-new")
        joined.end("e")
        newcomer = Announcement("e", "tcp://e:1", "store-new", "z-e", 1.0, features=FEATURES)
        joined.topology = transitions.add(joined.topology.without("e").next(), [newcomer])
        joined.start("e")
        joined.settle()  # the others ask it while it is empty
        return joined

    def complete(self, joined: Restarted) -> None:
        for _ in range(40):
            assert joined.topology.change is not None
            if "e" in joined.topology.change.complete:
                return
            joined.pass_time(0.25)
        raise AssertionError(joined.topology.change)

    def test_empty_copy_is_recognised_before_the_newcomer_has_reported(
        self, joined: Restarted
    ) -> None:
        copy = deepcopy(joined.stores["e"])
        self.complete(joined)
        life = joined.peers["e"].local_partitions.lineage.current
        memories = [joined.peers[name].local_partitions.memory for name in "abcd"]
        assert not any(life.start == seen.start for memory in memories for _, seen in memory.all())
        self.restart_on(joined, copy)

    @pytest.mark.parametrize("is_clean", [True, False])
    def test_copy_from_before_more_gains_is_recognised(
        self, joined: Restarted, is_clean: bool
    ) -> None:
        self.complete(joined)
        memory = joined.peers["a"].local_partitions.memory
        while memory.newest("store-new") != joined.peers["e"].local_partitions.lineage.current:
            joined.pass_time(0.25)
        copy = deepcopy(joined.stores["e"])
        joined.topology = transitions.remove(joined.topology, ["b"])
        joined.make_proposals()
        for _ in range(100):
            joined.settle()  # it streams faster than it reports
        self.complete(joined)
        assert joined.stores["e"].records.keys() > copy.records.keys()
        if is_clean:
            joined.peers["e"].health.stopping = True
            joined.settle()
        newest = joined.peers["e"].local_partitions.lineage.current
        joined.pass_time(0 if is_clean else 3)
        assert memory.newest("store-new") == newest
        self.restart_on(joined, copy)

    def restart_on(self, joined: Restarted, copy: Any) -> None:
        whole = joined.stores["e"]
        joined.end("e")
        joined.stores["e"] = copy
        joined.start("e")
        joined.settle()
        assert not joined.votes("e")
        assert copy.records.keys() < whole.records.keys()
        joined.pass_time(10)
        self.complete(joined)
        assert joined.stores["e"].records.keys() == whole.records.keys()


def test_reports_of_members_that_stop_at_the_same_time_are_kept(joined: Restarted) -> None:
    joined.pass_time(3)
    joined.end("a", "b", "c")
    copy = deepcopy(joined.stores["a"])
    joined.start("a", "b", "c")
    joined.pass_time(0.75)
    joined.put({"k": 2}, level="all")
    for core in joined.peers.values():
        core.health.stopping = True
    joined.settle()
    assert not any(core.has_work for core in joined.peers.values())
    own = joined.peers["a"].local_partitions.lineage.current
    assert [StoreMemory(joined.stores[name]).newest("store-a") for name in "bc"] == [own, own]
    joined.end("a", "b", "c")
    joined.stores["a"] = copy
    joined.start("a", "b", "c")
    joined.settle()
    joined.make_proposals()
    assert joined.synced() == "bc"


def test_sole_replica_keeps_its_vote_while_another_peer_joins() -> None:
    joined = Restarted("ab")
    joined.topology = joined.topology.without("b").next()
    joined.end("b")
    joined.stores["b"] = TwinStore("store-b")
    joined.look("a")
    joined.pass_time(3)
    newcomer = Announcement("b", "tcp://b:1", "store-b", "z-b", 1.0, features=FEATURES)
    joined.topology = transitions.add(joined.topology, [newcomer])
    joined.end("a")
    joined.stores["a"].may_lack_writes = True
    joined.start("a", "b")
    joined.pass_time(10)
    assert joined.synced() == "ab"
    assert joined.votes("a")
    assert not joined.stores["a"].may_lack_writes


def test_old_copy_is_asked_about_again_in_a_topology_restored_without_its_loss(
    joined: Restarted,
) -> None:
    start_copy_that_only_c_recognises(joined)
    before = joined.topology
    joined.start("c")
    joined.settle()
    joined.make_proposals()
    assert joined.synced() == "bc"
    joined.end("b", "c")
    joined.topology = replace(before, epoch=joined.topology.epoch + 1000)
    joined.look("a")
    joined.pass_time(3)
    assert not joined.votes("a")
    joined.start("b", "c")
    joined.pass_time(30)
    assert joined.synced() == "abc"
    assert joined.record("a", "k") == joined.record("c", "k")


def test_sole_replica_keeps_its_vote_although_others_remember_more() -> None:
    joined = Restarted(replicas=1)
    joined.pass_time(3)
    copies = {name: deepcopy(joined.stores[name]) for name in "abc"}
    joined.put({f"k{number}": 1 for number in range(20)})
    joined.pass_time(3)
    joined.topology = with_seen(joined.topology.next(), joined.peers["b"].newest_lives())
    joined.end("a")
    joined.stores["a"] = copies["a"]
    joined.stores["a"].may_lack_writes = True
    joined.start("a")
    joined.pass_time(10)
    assert joined.synced() == "abc"
    assert joined.votes("a")
    joined.end("a")
    joined.start("a")
    joined.pass_time(10)
    assert joined.synced() == "abc"
    assert joined.votes("a")


def test_store_that_waits_for_its_data_asks_seldom(joined: Restarted) -> None:
    copy = with_old_copy(joined)
    joined.end("b")
    restart_on(joined, "a", copy)
    assert joined.synced() == "bc"
    joined.pass_time(5)
    asked = joined.peers["c"].meters.kinds()["SeenRequest"]
    joined.pass_time(60)
    assert joined.synced() == "bc"
    assert joined.peers["c"].meters.kinds()["SeenRequest"] - asked <= 3


def test_stop_does_not_wait_for_a_disk_without_room(
    joined: Restarted, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined.put({"k": 2}, level="all")
    core = joined.peers["a"]
    monkeypatch.setattr(joined.stores["a"], "commit", Mock(side_effect=DiskFull("no room")))
    core.local_partitions.memory.note("store-b", Life(1, 1, 2**62))
    core.health.stopping = True
    joined.settle()
    assert not core.has_work
