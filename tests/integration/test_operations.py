"""The commands of docs/operations.md, run as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.devcluster import clean_environment
from tests.harness.ports import free_ports
from tests.harness.process import expirable

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "operations.md"


def commands() -> str:
    """Return the commands of the page with free ports."""
    typed = "\n".join(
        re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    )
    named = sorted(set(re.findall(r"\b[78]00\d\b", typed)))
    for name, port in zip(named, free_ports(len(named)), strict=True):
        typed = re.sub(rf"\b{name}\b", str(port), typed)
    return typed


@pytest.mark.long
@pytest.mark.timeout(300)
def test_commands_of_operations_page_run(tmp_path: Path) -> None:
    # Job control, as in an interactive shell: a job keeps its number. The end stops all jobs.
    script = f"set -eumx\ntrap 'kill -9 $(jobs -p)' EXIT\n{commands()}"
    search = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        expirable(["bash", "-c", script]),
        cwd=tmp_path,
        env=clean_environment(PATH=search),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr
