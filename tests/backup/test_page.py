"""The commands of docs/backup.md, run as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backup.conftest import Cluster
from tests.harness.devcluster import clean_environment

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "backup.md"


@pytest.mark.timeout(300)
def test_the_commands_of_the_page(source: Cluster, target: Cluster, tmp_path: Path) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    script = "".join(blocks).replace("127.0.0.1:7001", target.addresses)
    search = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euxc", script],
        cwd=tmp_path,
        env=clean_environment(PATH=search, DSTASH_PEERS=source.addresses),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert target.client.lookup("users", "user7") == {"name": "user 7"}
    assert '{"name":"a mistake"}' in done.stdout
    assert source.client.batch_lookup("users", ["user1", "user2"]) == {
        "user1": {"name": "user 1"},
        "user2": {"name": "user 2"},
    }
