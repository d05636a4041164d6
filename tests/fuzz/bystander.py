"""``python -m tests.fuzz.bystander ADDRESS PID``: another client, which must be served.

Looks a key up again and again until its input ends, then tells how long that took. What either
process spent in line for a processor (proc_pid_schedstat(5)) is no fault of the peer: it is taken
off, or on a busy machine there would be nothing to see but that.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

from dstash import Client

#: The longest that a call may take (seconds).
STALL: Final = 0.1


class Waits(NamedTuple):
    """How long look-ups took: number, median, slowest (ms), and how many stalled."""

    calls: int
    median: float
    slowest: float
    stalls: int

    @classmethod
    def of(cls, seconds: list[float]) -> Waits:
        """Sum up what was measured."""
        ordered = sorted(seconds)
        stalls = sum(wait > STALL for wait in ordered)
        return cls(len(ordered), 1000 * ordered[len(ordered) // 2], 1000 * ordered[-1], stalls)

    def __str__(self) -> str:
        return (
            f"{self.calls} look-ups, median {self.median:.1f} ms, slowest {self.slowest:.0f} ms, "
            f"{self.stalls} above {1000 * STALL:.0f} ms"
        )


class Bystander:
    """Runs this module in a process of its own."""

    def __init__(self, address: str, pid: int) -> None:
        command = [sys.executable, "-m", "tests.fuzz.bystander", address, str(pid)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def stop(self) -> tuple[Waits, Waits]:
        """Return how long it waited, without and with the time in line for a processor."""
        told, _ = self._process.communicate(timeout=60)
        net, gross = json.loads(told)
        return Waits(*net), Waits(*gross)


def threads(pid: int | str) -> list[Path]:
    """Return where the scheduler tells of the threads of a process: any may hold up the others."""
    return list(Path(f"/proc/{pid}/task").glob("*/schedstat"))


def in_line(schedules: list[Path]) -> float:
    """Return the seconds that threads have waited for a processor."""
    return sum(int(path.read_text().split()[1]) for path in schedules) / 1e9


def main() -> None:
    """Look up until told to stop."""
    address, pid = sys.argv[1:]
    with Client(address, timeout=30) as client:
        client.put("good", "k", "v")
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        passed = threads(pid) + threads("self")
        net, gross = list[float](), list[float]()
        while not select.select([sys.stdin], [], [], 0.002)[0]:
            began, waited = time.monotonic(), in_line(passed)
            assert client.lookup("good", "k") == "v"
            gross.append(time.monotonic() - began)
            net.append(gross[-1] - (in_line(passed) - waited))
        json.dump([Waits.of(net), Waits.of(gross)], sys.stdout)


if __name__ == "__main__":
    main()
