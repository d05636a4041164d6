"""The commands of docs/backup.md, run as printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backup.conftest import Cluster
from tests.harness.devcluster import InProcess, clean_environment

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "backup.md"


def run(line: str, folder: Path, peers: str) -> str:
    """Run a line; a plain command runs in this process, which is faster."""
    if line.startswith("dstash ") and "|" not in line:
        done = InProcess(folder).run(*shlex.split(line)[1:], environ={"DSTASH_PEERS": peers})
    else:
        search = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euc", line],
            cwd=folder,
            env=clean_environment(PATH=search, DSTASH_PEERS=peers),
            capture_output=True,
            timeout=100,
        )
    assert done.returncode == 0, f"{line}: {done.stderr.decode()}"
    return done.stdout.decode()


@pytest.mark.timeout(300)
def test_commands_of_backup_page_run(source: Cluster, target: Cluster, tmp_path: Path) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    said = ""
    for line in "".join(blocks).splitlines():
        said += run(line.replace("127.0.0.1:7001", target.addresses), tmp_path, source.addresses)
    assert '{"name":"a mistake"}' in said
    assert target.client.lookup("users", "user7") == {"name": "user 7"}
    assert source.client.batch_lookup("users", ["user1", "user2"]) == {
        "user1": {"name": "user 1"},
        "user2": {"name": "user 2"},
    }
