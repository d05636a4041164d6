"""The call paths in ARCHITECTURE.md: each function exists, and its parent mentions it."""

from __future__ import annotations

import pytest

from tests.documents.paths import PAGE, Step, fault, steps

STEPS = list(steps(PAGE.read_text()))
OPERATIONS = {
    *("Put", "Batch put", "Look-up", "Batch look-up", "Scan"),
    *("Change of a register", "Topology change", "Repair", "Tombstone GC"),
}
#: Functions at which a path continues in another thread or process.
LOOPS = {
    "client/transport/channel.py:Channel._drive",
    "client/transport/channel.py:Channel._drive_short",
    "peer/server.py:PeerServer._iterate",
    "peer/server.py:PeerServer._commit_all",
    "peer/membership_agent.py:MembershipAgent._iterate",
    "peer/background/maintenance.py:Maintenance.tick",
}
#: The number of modules that a batch put may cross, from the user's call to the disk and back.
MAX_MODULES = 20


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_step_of_path_is_reached_from_its_parent(step: Step) -> None:
    assert fault(step) == ""


def test_paths_cover_every_operation() -> None:
    assert {step.path for step in STEPS} == OPERATIONS


def test_lists_begin_with_a_call_of_the_user_or_a_loop() -> None:
    first = {step.place for step in STEPS if not step.parent}
    users = {place for place in first if place.startswith("client/") and "._" not in place}
    assert first - users <= LOOPS


def test_batch_put_crosses_few_modules() -> None:
    modules = {step.place.partition(":")[0] for step in STEPS if step.path == "Batch put"}
    assert len(modules) <= MAX_MODULES, sorted(modules)


def test_step_with_wrong_name_is_found() -> None:
    put, run = "client/blocking.py:Client.put", "client/blocking.py:Client._run"
    assert fault(Step("Put", put, run, "")) == ""
    assert "does not exist" in fault(Step("Put", put, "client/blocking.py:Client._runs", ""))
    assert "does not mention" in fault(Step("Put", run, put, ""))
    assert "nothing connects" in fault(Step("Put", put, "store/merge.py:merge", "_run"))
