"""Peers that ``dstash dev`` started: what it remembers of them, and whether they still run."""

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

from dstash.errors import DStashError, UsageError

STATE_FILE: Final = "dev.json"
_PAUSE: Final = 0.05
#: Field 22 of /proc/PID/stat, counted after the command's closing parenthesis.
_START_TIME: Final = 19


@dataclass(frozen=True)
class Process:
    """One peer of a dev cluster. ``started`` tells it from another process with the same pid."""

    id: str
    pid: int
    started: int
    port: int
    http_port: int

    @property
    def address(self) -> str:
        """Where clients reach it."""
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def http(self) -> str:
        """Where it tells its health."""
        return f"http://127.0.0.1:{self.http_port}"

    def runs(self) -> bool:
        """Whether this very process, not a later one with its pid, is running a peer."""
        return 0 < self.started == _identity(self.pid) and _is_peer(self.pid, self.id)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self.runs():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return  # it ended in between


def _identity(pid: int) -> int:
    """Return when a process started, in clock ticks; 0 when it is gone, or dead and not reaped."""
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
    # For a moment, while it is being executed, a program has no command line at all.
    # A folder or an interpreter may be called dstash too: only how a peer is started tells.
    return not command or (b"--id", peer.encode()) in pairwise(words)


@dataclass(frozen=True)
class DevCluster:
    """A directory with everything of a dev cluster in it."""

    root: Path

    @property
    def membership(self) -> Path:
        """The directory of the embedded membership."""
        return self.root / "membership"

    def log(self, peer: str) -> Path:
        """Return the file that takes the log of a peer."""
        return self.root / f"{peer}.log"

    def data(self, peer: str) -> Path:
        """Return the data directory of a peer."""
        return self.root / peer

    def load(self) -> list[Process]:
        """Return the peers that were started here, running or not."""
        file = self.root / STATE_FILE
        try:
            return [Process(**one) for one in json.loads(file.read_text())["peers"]]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise DStashError(f"{file} is damaged ({error}); remove it") from None

    def save(self, processes: Sequence[Process]) -> None:
        """Remember these peers. Never half: a crash must not lose the pids."""
        file = self.root / STATE_FILE
        partial = file.with_suffix(".partial")
        peers = [asdict(one) for one in sorted(processes, key=lambda one: one.id)]
        partial.write_text(json.dumps({"peers": peers}, indent=1))
        partial.replace(file)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one ``dstash dev`` at a time work here."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = open(self.root / "dev.lock", "w")  # noqa: SIM115  # closed below
        except OSError as error:
            raise UsageError(f"{self.root}: {error.strerror}") from None
        with lock:
            try:
                flock(lock, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                raise DStashError(f"another dstash dev is at work in {self.root}") from None
            yield

    def start(self, peer: str, port: int, http_port: int, options: Sequence[str]) -> Process:
        """Start a peer that outlives this command, and remember it."""
        command = [*_peer_command(), str(self.data(peer)), "127.0.0.1", str(port), "--id", peer]
        command += ["--http-port", str(http_port), *options]
        # The environment is the shell's: what is meant for other peers must not reach these.
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
        child.returncode = 0  # not ours to wait for: no warning when the object goes
        process = Process(peer, child.pid, _identity(child.pid), port, http_port)
        self.save([*(one for one in self.load() if one.id != peer), process])
        return process


def _peer_command() -> list[str]:
    script = Path(sys.executable).parent / "dstash-peer"
    if script.exists():
        return [str(script)]
    return [sys.executable, "-c", "from dstash.peer.start import main; main()"]


def stop(processes: Sequence[Process], patience: float) -> list[Process]:
    """End processes: first politely, after ``patience`` seconds by force. Returns the latter."""
    for process in processes:
        process.signal(signal.SIGTERM)
    stubborn = _outlasting(processes, patience)
    for process in stubborn:
        process.signal(signal.SIGKILL)
    left = _outlasting(stubborn, patience)
    if left:
        raise DStashError(f"process {left[0].pid} ({left[0].id}) does not end")
    return stubborn


def _outlasting(processes: Sequence[Process], patience: float) -> list[Process]:
    deadline = time.monotonic() + patience
    left = [process for process in processes if process.runs()]
    while left and time.monotonic() < deadline:
        time.sleep(_PAUSE)
        left = [process for process in left if process.runs()]
    return left
