"""The processes of ``dstash dev``: the list of peers it started, and whether they still run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from itertools import pairwise
from pathlib import Path
from typing import Final

from dstash.cli.failures import naming
from dstash.errors import DStashError, UsageError
from dstash.store.directory import is_marked_removed

STATE_FILE: Final = "dev.json"
_POLL_INTERVAL_S: Final = 0.05
#: Field 22 of /proc/PID/stat, counted after the command's closing parenthesis.
_START_TIME: Final = 19


@dataclass(frozen=True)
class Process:
    """One peer of a dev cluster. ``started`` distinguishes it from a later process with its pid."""

    id: str
    pid: int
    started: int
    port: int
    http_port: int

    @property
    def address(self) -> str:
        """The address for clients."""
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def http(self) -> str:
        """The URL of its HTTP pages."""
        return f"http://127.0.0.1:{self.http_port}"

    def runs(self) -> bool:
        """Whether this process, not a later process with the same pid, runs this peer."""
        return 0 < self.started == _identity(self.pid) and _is_peer(self.pid, self.id)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal if the process still runs."""
        if self.runs():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return  # it ended in between


def _identity(pid: int) -> int:
    """Return the start time of a process in clock ticks; 0 if it has ended, even if not reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] == "Z" else int(fields[_START_TIME])


def _is_peer(pid: int, peer: str) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    words = command.split(b"\0")
    # During exec, a process briefly has no command line.
    # A directory or an interpreter may be named dstash too, so look for the option --id.
    return not command or (b"--id", peer.encode()) in pairwise(words)


@dataclass(frozen=True)
class DevCluster:
    """The directory of a dev cluster: membership, data, logs and the list of processes."""

    root: Path

    @property
    def membership(self) -> Path:
        """The directory of the local membership."""
        return self.root / "membership"

    def log(self, peer: str) -> Path:
        """Return the log file of a peer."""
        return self.root / f"{peer}.log"

    def data(self, peer: str) -> Path:
        """Return the data directory of a peer."""
        return self.root / peer

    def is_removed(self, peer: str) -> bool:
        """Whether a peer was removed from the cluster; it notes that when it is started again."""
        return is_marked_removed(self.data(peer))

    def load(self) -> list[Process]:
        """Return the peers that were started here, running or not."""
        file = self.root / STATE_FILE
        try:
            return [Process(**fields) for fields in json.loads(file.read_text())["peers"]]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise DStashError(f"{file} is corrupt ({error}); remove it") from None

    def save(self, processes: Sequence[Process]) -> None:
        """Save the list of peers, atomically: a crash must not lose the pids."""
        file = self.root / STATE_FILE
        partial = file.with_suffix(".partial")
        peers = [asdict(process) for process in sorted(processes, key=lambda p: p.id)]
        with naming(file):
            partial.write_text(json.dumps({"peers": peers}, indent=1))
            partial.replace(file)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold a lock: only one ``dstash dev`` at a time may change the directory."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = open(self.root / "dev.lock", "w")  # noqa: SIM115  # closed below
        except OSError as error:
            raise UsageError(f"{self.root}: {error.strerror}") from None
        with lock:
            try:
                flock(lock, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                raise DStashError(f"another dstash dev runs in {self.root}") from None
            yield

    def start(self, peer: str, port: int, http_port: int, options: Sequence[str]) -> Process:
        """Start a peer that outlives this command, and add it to the list."""
        command = [*_peer_command(), str(self.data(peer)), "127.0.0.1", str(port), "--id", peer]
        command += ["--http-port", str(http_port), *options]
        # Settings in the environment of the user's shell are meant for other peers.
        environ = {key: text for key, text in os.environ.items() if not key.startswith("DSTASH_")}
        with self.log(peer).open("ab") as log:
            child = subprocess.Popen(  # noqa: S603  # our own command
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                start_new_session=True,
            )
        child.returncode = 0  # avoids a warning for a child that is not waited for
        process = Process(peer, child.pid, _identity(child.pid), port, http_port)
        self.save([*(known for known in self.load() if known.id != peer), process])
        return process


def _peer_command() -> list[str]:
    script = Path(sys.executable).parent / "dstash-peer"
    if script.exists():
        return [str(script)]
    return [sys.executable, "-c", "from dstash.peer.start import main; main()"]


def stop(processes: Sequence[Process], timeout_s: float) -> list[Process]:
    """End processes by SIGTERM, after ``timeout_s`` by SIGKILL; return those that were killed."""
    for process in processes:
        process.signal(signal.SIGTERM)
    killed = _running_after(processes, timeout_s)
    for process in killed:
        process.signal(signal.SIGKILL)
    left = _running_after(killed, timeout_s)
    if left:
        raise DStashError(f"process {left[0].pid} ({left[0].id}) does not end")
    return killed


def _running_after(processes: Sequence[Process], timeout_s: float) -> list[Process]:
    deadline = time.monotonic() + timeout_s
    left = [process for process in processes if process.runs()]
    while left and time.monotonic() < deadline:
        time.sleep(_POLL_INTERVAL_S)
        left = [process for process in left if process.runs()]
    return left
