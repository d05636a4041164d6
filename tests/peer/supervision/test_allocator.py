"""Freed memory of large messages is kept for the next ones."""

from __future__ import annotations

import subprocess
import sys

#: Allocates the messages of a batch, again and again, and prints the page faults.
_PROGRAM = """
import resource
from dstash.peer.supervision.allocator import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

{setup}
for round in range(40):
    if round == 20:
        before = faults()
    messages = [b"m" * 1_000_000 for _ in range(8)]
    del messages
print(faults() - before)
"""


def _faults(setup: str) -> int:
    command = [sys.executable, "-c", _PROGRAM.format(setup=setup)]
    return int(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)


def test_kept_memory_needs_no_page_faults() -> None:
    assert _faults("") > 20 * 8 * 100
    assert _faults("keep_freed_memory()") < 20 * 8
