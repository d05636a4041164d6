"""Real peers whose names resolve late, to other addresses or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.process import expirable
from tests.integration.dns_world import CASES


@pytest.mark.parametrize("case", sorted(CASES))
def test_cluster_serves_by_name(case: str, tmp_path: Path) -> None:
    command = ["unshare", "--mount", "--net", sys.executable, "-m", "tests.integration.dns_world"]
    done = subprocess.run(
        expirable([*command, case, str(tmp_path)]), capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
