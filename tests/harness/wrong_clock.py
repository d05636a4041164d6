"""``python -P tests/harness/wrong_clock.py FILE ...``: ``dstash-peer``, by another clock.

The clock is ahead of the machine's by the milliseconds in FILE, which is read again every 20 ms: so
a test sets the clock of a running peer.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def main() -> None:
    """Run a peer."""
    file = Path(sys.argv[1])
    del sys.argv[1]
    right, steady = time.time_ns, time.monotonic
    offset, due = 0, 0.0

    def time_ns() -> int:
        nonlocal offset, due
        if steady() >= due:
            offset, due = int(file.read_text() or offset), steady() + 0.02
        return right() + offset * 1_000_000

    time.time_ns = time_ns
    from dstash.peer.main import main as dstash_peer

    dstash_peer()


if __name__ == "__main__":
    main()
