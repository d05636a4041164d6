"""The assembly of a peer: its parts have their settings, and share what they must share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dstash.cluster.replication.tasks import Merge, Task
from dstash.cluster.topology.registers import FEATURE
from dstash.cluster.topology.view import View
from dstash.errors import BelowFloor, Busy
from dstash.store.interface import DiskState
from dstash.version import pack, stamp_at
from dstash.wire import codec
from dstash.wire.envelope import decode
from dstash.wire.messages import AdminReply, AdminRequest, Put
from dstash.wire.registers import Settle
from dstash.wire.replication import DigestsRequest
from dstash.wire.shapes import Frame
from tests.peer.dispatch.assembled import Assembled
from tests.peer.parts import EPOCH, NOW, request, view_of

REMOVE = AdminRequest("remove", ["b"])


def test_writes_of_tasks_and_requests_share_the_backlog() -> None:
    peer = Assembled()

    def task() -> Task:
        yield Merge()

    peer.services.background.scheduler.spawn("merges", task())
    peer.services.background.tick(stopping=False)
    assert peer.state.backlog.has_waiting
    commit = peer.services.group_commit.begin(NOW)
    commit.run(peer.store)
    peer.services.group_commit.end(commit, NOW)
    assert not peer.state.backlog.has_work


def test_questions_and_admin_requests_share_the_bound_of_the_settings() -> None:
    peer = Assembled(max_requests=2)
    peer.begin(DigestsRequest(bytes(2)))
    peer.handlers.admin_requests.accept(request(REMOVE), REMOVE)
    with pytest.raises(Busy):
        peer.handlers.admin_requests.accept(request(REMOVE), REMOVE)


def test_answers_of_the_agent_carry_the_epoch() -> None:
    peer = Assembled()
    peer.handlers.admin_requests.accept(request(REMOVE), REMOVE)
    [pending] = peer.handlers.admin_requests.take()
    [reply] = pending.answer(AdminReply(b""), NOW)
    assert decode(reply.frames).epoch == EPOCH


def test_rejections_are_counted_in_the_status() -> None:
    peer = Assembled()
    peer.handlers.rejections.refused(request(REMOVE), Busy("later"), NOW)
    peer.handlers.outgoing.answered("b", [b"garbage"], NOW)
    assert peer.services.health.status()["counts"] == {"refused:Busy": 1, "malformed": 1}


def test_status_describes_the_registers() -> None:
    assert Assembled().services.health.status()["registers"]["waiting"] == 0


def with_features(view: View, **changes: Any) -> View:
    """Return a view of members that can vote on registers."""
    members = tuple(replace(member, features=FEATURE) for member in view.topology.members)
    return View(replace(view.topology, members=members, **changes), view.alive)


def test_registers_propose_topology_steps_to_the_maintenance() -> None:
    peer = Assembled()
    peer.install(with_features(view_of()))
    peer.services.background.maintenance.proposals.clear()
    with pytest.raises(Busy, match="enabling registers"):
        peer.begin(Settle("@i", Frame(codec.pack_blobs([b"k"]))))
    assert len(peer.services.background.maintenance.proposals) == 1


def test_registers_conclude_what_a_commit_could_not_merge() -> None:
    peer = Assembled()
    peer.install(with_features(view_of(), registers=True, epoch=EPOCH + 1))
    for correlation, member in enumerate("bc"):
        peer.state.clock.sent(correlation)
        peer.state.clock.answered(member, correlation, NOW)
    peer.services.group_commit.preempted.add(bytes(2) + b"key of a register")
    sent = peer.services.registers.tick()
    assert {outgoing.peer for outgoing in sent} == {"b", "c"}
    assert not peer.services.group_commit.preempted


def test_checks_use_the_floor_that_the_partitions_promised() -> None:
    peer = Assembled()
    checks = peer.services.admission
    put = Put("i", pack(stamp_at(NOW + 5), b"abcd"), 0, Frame(b""), Frame(b""))
    checks.check_floor(put, NOW)
    peer.state.local_partitions.floor = stamp_at(NOW + 10)
    with pytest.raises(BelowFloor):
        checks.check_floor(put, NOW)


def test_disk_reserve_of_the_settings_decides_readiness(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Assembled(disk_reserve=7)
    monkeypatch.setattr(peer.store, "has_room", lambda reserve: reserve != 7)
    assert peer.services.health.why_not_ready() == DiskState.FULL.value
