"""The order to lower floors, after the clocks of real peers were ahead and are right again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.cli.schema import check
from tests.cli.test_cluster import Here
from tests.harness.peers import PATIENCE, Peers
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")

WRONG_CLOCK = str(Path(__file__).parents[1] / "harness" / "wrong_clock.py")
NAMES = ("p1", "p2", "p3")
HOUR = 3_600_000


def set_clocks(file: Path, milliseconds: int) -> None:
    """Set the clocks of all peers; the file is never seen half written."""
    aside = file.with_suffix(".next")
    aside.write_text(str(milliseconds))
    aside.replace(file)


def test_floors_that_wrong_clocks_left_behind_are_lowered(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    set_clocks(clock, 0)
    with Peers.local(tmp_path) as peers:
        peers.environ |= {"DSTASH_BURY_INTERVAL": "1", "DSTASH_BURY_LAG": "900"}
        for name in NAMES:
            peers.all[name] = peers.make(name, [*peers.options, "--zone", name, "--min-peers", "3"])
            peers[name].command = [sys.executable, "-P", WRONG_CLOCK, str(clock)]
            peers[name].start()
        for name in NAMES:
            peers[name].wait_ready()
        here, client = Here(peers), peers.client()

        def ahead() -> dict[str, int]:
            return {name: int(peers[name].page("/readyz")["ahead_ms"]) for name in NAMES}

        def records() -> int:
            return sum(int(peers[name].page("/status")["records"]) for name in NAMES)

        client.put("i", "deleted", 1, write="all")
        client.delete("i", "deleted", write="all")
        assert ahead() == dict.fromkeys(NAMES, 0)
        assert records() == 3, "the lag is much longer than this test"
        set_clocks(clock, HOUR)
        wait_until(lambda: records() == 0, PATIENCE, "a horizon is set by the wrong clocks")
        set_clocks(clock, 0)
        wait_until(lambda: min(ahead().values()) > HOUR // 2, PATIENCE, "all peers are ahead")
        status = {one["id"]: one["ahead_ms"] for one in here.status()["members"]}
        assert min(status.values()) > HOUR // 2

        code, out, said = here.ask("cluster", "lower-floors")
        assert code == 2
        assert "in a script give --yes" in said
        assert "All peers would refuse only what is older than now" in said
        code, out, _ = here.ask("-o", "json", "cluster", "lower-floors", "--dry-run")
        assert code == 0
        assert min(check("cluster lower-floors", out)[0]["ahead_ms"].values()) > HOUR // 2
        assert min(ahead().values()) > HOUR // 2, "nothing was lowered"

        code, out, _ = here.ask("-o", "json", "cluster", "lower-floors", "--yes")
        assert code == 0
        assert json.loads(out)["dry_run"] is False
        wait_until(lambda: ahead() == dict.fromkeys(NAMES, 0), PATIENCE, "no peer is ahead")
        client.put("i", "k", 1, write="all")
        assert client.lookup("i", "k", read="all") == 1
        assert not client.exists("i", "deleted", read="all")
