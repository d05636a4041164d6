"""``python -m tests.fuzz.bystander ADDRESS PID``: another client, which must be served.

Looks up a key repeatedly until its input ends, then prints the times. Time that either process
waited for a CPU (proc_pid_schedstat(5)) is subtracted: the peer does not cause it, and on a busy
machine it would hide the rest.
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

#: The longest duration of a call (seconds).
STALL: Final = 0.1


class Waits(NamedTuple):
    """Durations of look-ups: number, median, slowest (ms), and number of stalls."""

    calls: int
    median: float
    slowest: float
    stalls: int

    @classmethod
    def of(cls, seconds: list[float]) -> Waits:
        """Summarise the measured times."""
        ordered = sorted(seconds)
        stalls = sum(wait > STALL for wait in ordered)
        return cls(len(ordered), 1000 * ordered[len(ordered) // 2], 1000 * ordered[-1], stalls)

    def __str__(self) -> str:
        return (
            f"{self.calls} look-ups, median {self.median:.1f} ms, slowest {self.slowest:.0f} ms, "
            f"{self.stalls} above {1000 * STALL:.0f} ms"
        )


class Bystander:
    """Runs this module in a separate process."""

    def __init__(self, address: str, pid: int) -> None:
        command = [sys.executable, "-m", "tests.fuzz.bystander", address, str(pid)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def stop(self) -> tuple[Waits, Waits]:
        """Return the waits, without and with the time spent waiting for a CPU."""
        output, _ = self._process.communicate(timeout=60)
        net, gross = json.loads(output)
        return Waits(*net), Waits(*gross)


def threads(pid: int | str) -> list[Path]:
    """Return the schedstat files of all threads of a process: any may delay the others."""
    return list(Path(f"/proc/{pid}/task").glob("*/schedstat"))


def in_line(schedules: list[Path]) -> float:
    """Return the seconds that threads have waited for a CPU."""
    return sum(int(path.read_text().split()[1]) for path in schedules) / 1e9


def main() -> None:
    """Look up the key until the input ends."""
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
