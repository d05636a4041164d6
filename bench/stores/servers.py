"""Server processes on free ports, with log files, which end with the benchmark."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.harness.process import expirable

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0
_STOP_SECONDS = 20.0


class Server:
    """A server process; ``confine`` is called with its id at once."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        confine: Callable[[int], None] | None = None,
    ) -> None:
        # Settings in the environment are for other peers.
        environ = {key: text for key, text in os.environ.items() if not key.startswith("DSTASH_")}
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                expirable(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                cwd=ROOT,
            )
        if confine is not None:
            confine(self.pid)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def processor_seconds(self) -> float:
        """The processor time of all its threads."""
        try:
            threads = list(Path(f"/proc/{self.pid}/task").iterdir())
            times = [int((thread / "schedstat").read_text().split()[0]) for thread in threads]
            return sum(times) / 1e9
        except OSError:  # the kernel has no schedstat
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def check(self) -> None:
        """Fail if the process has ended."""
        assert self._process.poll() is None, f"a server ended by itself: see {self.log}"

    def stop(self) -> None:
        """Stop the process, first with SIGTERM."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def fetched(script: str) -> str:
    """Return the path of a server that ``bin/<script>`` finds or downloads."""
    done = subprocess.run([ROOT / "bin" / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr.strip()
    return done.stdout.strip()


def processor_seconds(servers: Iterable[Server]) -> float:
    """Return the total processor time of servers."""
    return sum(server.processor_seconds for server in servers)
