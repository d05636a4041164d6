"""``dstash cluster`` against real peers: plans, topology changes and refusals."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from dstash.cli.commands.cluster import _ahead_by_peer, _show_ahead
from dstash.cluster.replication.partitions import FLOOR_MARK
from dstash.store.directory import DATA_FILE
from dstash.store.lmdb import LmdbStore
from dstash.version import stamp_at
from tests.cli.schema import check
from tests.harness.devcluster import DSTASH, InProcess, clean_environment
from tests.harness.peers import PATIENCE, Peers
from tests.harness.waiting import wait_until

HOUR_MS = 3_600_000
HOUR = stamp_at(HOUR_MS)


class Here(InProcess):
    """Commands that find their cluster in a directory."""

    def __init__(self, peers: Peers) -> None:
        super().__init__(peers.folder)
        self.membership = peers.folder / "membership"

    def ask(self, *words: str, stdin: bytes = b"") -> tuple[int, str, str]:
        """Run ``dstash``; return the exit code, stdout and stderr."""
        where = {"DSTASH_LOCAL_DIR": str(self.membership)}
        done = self.run(*words, stdin=stdin, environ=where)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def status(self) -> dict[str, Any]:
        """Return the output of ``dstash status``."""
        return dict(json.loads(self.ask("-o", "json", "status")[1]))

    def wait_candidate(self, name: str) -> None:
        """Wait until every peer reports this peer as the only candidate.

        Each peer reads the membership ten times a second, so peers learn of it at different times.
        """
        wait_until(lambda: self.status()["candidates"] == [name], PATIENCE, f"{name} waits")


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """Three members and a candidate."""
    with Peers.local(Path(tmp_path_factory.mktemp("cluster"))) as cluster:
        cluster.form("p1", "p2", "p3")
        cluster.start("p4", "--join", "manual")
        client = cluster.client()
        client.batch_put("data", {f"k{n}": n for n in range(1000)}).raise_for_failures()
        wait_until(lambda: client.status()["candidates"], PATIENCE, "p4 waits")
        yield cluster


@pytest.fixture
def here(peers: Peers) -> Here:
    """The command line for that cluster."""
    return Here(peers)


def test_plan_changes_nothing(here: Here) -> None:
    code, out, err = here.ask("cluster", "plan", "add", "p4")
    assert (code, err) == (0, "")
    first, head, *rows = out.splitlines()
    assert "partition replicas would move: about" in first
    assert head.split()[:5] == ["id", "zone", "before", "after", "incoming"]
    assert [row.split()[0] for row in rows[:4]] == ["p1", "p2", "p3", "p4"]
    assert here.status()["change"] is None
    here.wait_candidate("p4")


def test_plan_prints_warnings_and_json(here: Here) -> None:
    code, out, _ = here.ask("-o", "json", "cluster", "plan", "remove", "p3")
    (plan,) = check("cluster plan", out)
    assert code == 0
    assert plan["partitions"] == 0
    assert any(problem.startswith("2 members for 3 replicas") for problem in plan["problems"])
    assert here.ask("cluster", "remove", "p3", "--dry-run")[2].count("warning: ") == 2


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("plan", "add", "p9"), 1, "peer 'p9' is not running"),
        (("plan", "add", "p1"), 1, "peer 'p1' is already a member"),
        (("plan", "move", "p1"), 2, "'move' is not an action; allowed are add, remove, replace"),
        (("remove", "p9", "-y"), 1, "no member 'p9'"),
        (("remove", "p3", "-y"), 2, "2 members are left for 3 replicas: each key would have fewer"),
        (("forget", "p1", "-y"), 1, "peer 'p1' is alive"),
        (("cancel",), 1, "no topology change is running"),
        (("pause",), 1, "no topology change is running"),
        (("rate", "fast"), 2, "'fast' is not a rate; allowed are forms like 20MB/s"),
        (("add", "p4", "-y", "--rate", "x"), 2, "'x' is not a rate; allowed are forms like 20MB/s"),
    ],
)
def test_cluster_command_is_refused_with_reason(
    here: Here, words: tuple[str, ...], code: int, said: str
) -> None:
    done, out, err = here.ask("cluster", *words)
    assert (done, out) == (code, "")
    assert said in err


def test_remove_below_replicas_needs_force(here: Here) -> None:
    code, _, err = here.ask("cluster", "remove", "p2", "p3", "--force", stdin=b"n\n")
    assert (code, "remove p2 p3?" in err) == (130, True)
    assert here.ask("cluster", "remove", "p2", "p3", stdin=b"y\n")[0] == 2
    assert here.status()["change"] is None


def test_status_shows_candidates(here: Here) -> None:
    code, out, _ = here.ask("status", "--check")
    assert code == 0
    assert "candidate: p4 waits to be added: dstash cluster add p4" in out.splitlines()


def test_cluster_command_changes_nothing_without_confirmation(here: Here) -> None:
    code, _, err = here.ask("cluster", "add", "p4", stdin=b"n\n")
    assert code == 130
    assert "add p4?" in err
    code, _, err = here.ask("cluster", "add", "p4", stdin=b"")
    assert code == 2
    assert err.endswith("\ndstash: add asks for confirmation; in a script, use --yes\n")
    here.wait_candidate("p4")


def test_topology_change_can_be_watched_to_its_end(here: Here, peers: Peers) -> None:
    code, out, _ = here.ask("-o", "json", "cluster", "add", "p4", "-y", "--rate", "1kB/s")
    assert code == 0
    assert check("cluster add", out)[0]["plan"]["partitions"] > 0
    (paused,) = check("cluster pause", here.ask("-o", "json", "cluster", "pause")[1])
    assert paused["change"]["paused"] is True
    assert paused["change"]["rate"] == 1000
    assert here.ask("cluster", "rate", "10MB/s")[2].endswith("at most 9.5 MiB/s\n")
    assert here.ask("cluster", "resume")[2] == "dstash: resumed\n"
    code, out, _ = here.ask("cluster", "watch")
    assert code == 0
    first, *_, last = check("cluster watch", out)
    assert [transfer["peer"] for transfer in first["transfers"]] == ["p4"]
    assert last["change"] is None
    code, out, _ = here.ask("-o", "json", "cluster", "remove", "p4", "-y", "--watch")
    assert code == 0
    check("cluster remove", out)
    assert peers["p4"].wait_end() == 0


def test_floors_ahead_of_time_are_lowered(here: Here, peers: Peers) -> None:
    def ahead() -> dict[str, int]:
        members = here.status()["members"]
        return {member["id"]: member["ahead_ms"] for member in members if member["answers"]}

    assert peers["p3"].stop() == 0
    store = LmdbStore(peers["p3"].data)
    # As a clock leaves it that was an hour ahead.
    store.mark(FLOOR_MARK, (stamp_at(time.time_ns() // 1_000_000) + HOUR).to_bytes(8, "big"))
    store.close()
    peers["p3"].start()
    peers["p3"].wait_ready()
    before = wait_until(
        lambda: found if len(found := ahead()) == 3 else None, PATIENCE, "all peers answer"
    )
    assert (before["p1"], before["p2"]) == (0, 0)
    assert HOUR_MS - 60_000 < before["p3"] <= HOUR_MS

    code, out, err = here.ask("cluster", "lower-floors")
    assert code == 2
    assert [line.split() for line in out.splitlines()[1:]][:2] == [["p1", "no"], ["p2", "no"]]
    assert "refuse only writes older than now. Stored records are not changed" in err
    assert "in a script, use --yes" in err
    code, out, _ = here.ask("-o", "json", "cluster", "lower-floors", "--dry-run")
    (planned,) = check("cluster lower-floors", out)
    assert (code, planned["dry_run"]) == (0, True)
    assert planned["ahead_ms"]["p3"] > HOUR_MS - 60_000
    assert peers["p3"].page("/status")["ahead_ms"] > HOUR_MS - 60_000, "nothing is lowered yet"

    code, out, err = here.ask("-o", "json", "cluster", "lower-floors", "--yes")
    (done,) = check("cluster lower-floors", out)
    assert (code, err, done["dry_run"]) == (0, "", False)
    wait_until(lambda: ahead() == {"p1": 0, "p2": 0, "p3": 0}, PATIENCE, "no peer is ahead")
    client = peers.client()
    client.put("data", "lowered", 1, write="all")
    assert client.lookup("data", "lowered", read="all") == 1
    client.delete("data", "lowered", write="all")


def test_peer_that_does_not_answer_is_not_shown_as_on_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    late = {"id": "p1", "answers": True, "ahead_ms": 1500}
    ahead = _ahead_by_peer(
        [late, late | {"id": "p2", "ahead_ms": 0}, {"id": "p3", "answers": False}]
    )
    assert ahead == {"p1": 1500, "p2": 0, "p3": None}
    _show_ahead(ahead)
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [["p1", "1.5 s"], ["p2", "no"], ["p3", "does not answer"]]


def test_repair_checks_and_compares_all_records(here: Here) -> None:
    code, out, err = here.ask("cluster", "repair", "--watch")
    assert (code, err) == (0, "")
    assert {line.split(":")[0] for line in out.splitlines() if "done" in line} >= {"p1", "p2", "p3"}
    code, out, _ = here.ask("-o", "json", "cluster", "repair", "--watch")
    assert code == 0
    last = {line["peer"]: line for line in map(json.loads, out.splitlines())}
    assert set(last) >= {"p1", "p2", "p3"}
    assert all(
        progress["left"] == progress["failed"] == progress["corrupt"] == 0
        for progress in last.values()
    )
    assert all(progress["of"] > 0 for progress in last.values())
    code, out, err = here.ask("cluster", "repair")
    assert (code, out) == (0, "")
    assert "started" in err


def test_compaction_gives_space_back_while_a_client_writes(here: Here, peers: Peers) -> None:
    client = peers.client()
    file = peers["p1"].data / DATA_FILE
    client.batch_put("gone", {f"k{n}": bytes(1000) for n in range(20_000)}).raise_for_failures()
    client.batch_delete("gone", [f"k{n}" for n in range(20_000)]).raise_for_failures()
    before, stop = file.stat().st_size, threading.Event()
    values: dict[str, int] = {}

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            client.put("written", f"k{number}", number, write="all")
            values[f"k{number}"] = number

    writing = threading.Thread(target=write)
    writing.start()
    code, out, err = here.ask("cluster", "compact", "p1", "--watch")
    stop.set()
    writing.join()
    assert (code, err) == (0, "")
    assert re.search(r"p1: done, \S+ \S+ before, \S+ \S+ now", out.splitlines()[-1])
    assert file.stat().st_size < before
    peers["p1"].stop()
    store = LmdbStore(peers["p1"].data)
    with store.snapshot() as snapshot:
        kept = [key for key, _ in snapshot.walk(b"", b"\xff" * 9) if b"written" in key]
    store.close()
    assert len(kept) == len(values) > 0
    peers["p1"].start()
    peers["p1"].wait_ready()
    code, _, err = here.ask("cluster", "compact", "p9")
    assert (code, err) == (
        2,
        "dstash: 'p9' is not a member of the cluster; members are p1, p2, p3\n",
    )


def test_watch_shows_bars_on_a_terminal(here: Here, peers: Peers) -> None:
    peers["p4"].start()
    client = peers.client()
    wait_until(lambda: client.status()["candidates"], PATIENCE, "p4 waits again")
    assert here.ask("cluster", "add", "p4", "-y", "--rate", "1kB/s")[0] == 0
    assert here.ask("cluster", "pause")[0] == 0
    with shown_by(here, "cluster", "watch") as shown:
        wait_until(lambda: "paused" in shown(), PATIENCE, "it says that it is paused")
        assert "━" in shown()
        assert "%" in shown()
        client.admin.rate(20_000)
        client.admin.resume()
        wait_until(lambda: "records, " in shown() and "left" in shown(), PATIENCE, "pace and rest")
        client.admin.rate(0)
        wait_until(
            lambda: "no topology change is running" in shown(), PATIENCE, "it ends with the change"
        )


@contextmanager
def shown_by(here: Here, *words: str) -> Iterator[Callable[[], str]]:
    """Run ``dstash`` on a terminal; yield a function that returns the output so far."""
    terminal, other_end = pty.openpty()
    running = subprocess.Popen(
        [DSTASH, *words],
        stdin=subprocess.DEVNULL,
        stdout=other_end,
        stderr=other_end,
        env=clean_environment(DSTASH_LOCAL_DIR=str(here.membership), TERM="xterm"),
    )
    os.close(other_end)
    os.set_blocking(terminal, False)
    seen = bytearray()

    def shown() -> str:
        with suppress(OSError):  # no new output, or the end
            seen.extend(os.read(terminal, 1 << 16))
        return seen.decode(errors="replace")

    try:
        yield shown
        assert running.wait(PATIENCE) == 0
    finally:
        running.kill()
        running.wait()
        os.close(terminal)
