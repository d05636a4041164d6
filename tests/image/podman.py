"""Podman with storage and settings of its own: commands bounded in time, and their failures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent
COMPOSE: Final = ROOT / "conf" / "docker" / "compose.yaml"
#: Seconds for one command, if the caller gives no other limit.
PATIENCE: Final = 120.0

CONTAINERS_CONF: Final = """\
[containers]
cgroups = "disabled"
default_ulimits = []
log_driver = "k8s-file"
pids_limit = 0
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
[network]
network_backend = "netavark"
network_config_dir = "{home}/state/networks"
"""
STORAGE_CONF: Final = """\
[storage]
driver = "{driver}"
graphroot = "{home}/storage"
runroot = "{home}/state/run"
"""


class Failed(Exception):
    """A step failed; the text says why."""


def say(line: str) -> None:
    """Print a line of progress at once."""
    print(f"test-image: {line}", file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def step(name: str) -> Iterator[None]:
    """Print the name of a step, and how long it took; a failure names the step."""
    began = time.monotonic()
    try:
        yield
    except Failed as error:
        raise Failed(f"{name}: {error}") from None
    say(f"{name}: done in {time.monotonic() - began:.1f} s")


def main(steps: Callable[[Podman], None]) -> int:
    """Run steps with the folder that the command line names; 1 with one line after a failure."""
    try:
        steps(Podman(Path(sys.argv[1])))
    except Failed as error:
        say(f"FAILED: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


class Podman:
    """The commands podman and podman-compose, which keep everything in one folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._environment = os.environ | {
            "CONTAINERS_CONF": str(home / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(home / "storage.conf"),
            "DISABLE_HC_SYSTEMD": "true",  # health checks by timers of systemd need systemd
            "HOME": str(home / "home"),
        }
        policy = home / "home" / ".config" / "containers" / "policy.json"
        policy.parent.mkdir(parents=True, exist_ok=True)
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}\n')
        (home / "state").mkdir(exist_ok=True)
        (home / "containers.conf").write_text(CONTAINERS_CONF.format(home=home))
        self._choose_driver()

    def _choose_driver(self) -> None:
        """Take overlays, or copies where the file system of the folder cannot carry overlays."""
        for driver in ("overlay", "vfs"):
            text = STORAGE_CONF.format(home=self.home, driver=driver)
            (self.home / "storage.conf").write_text(text)
            done = self._start(["podman", "info"], PATIENCE)
            if done.returncode == 0:
                return
        raise Failed(f"podman does not start here: {last_line(done)}")

    def __call__(self, *words: str, patience: float = PATIENCE) -> str:
        """Run podman and return what it prints; ``Failed`` with its last line if it fails."""
        return self._run(["podman", *words], patience)

    def compose(self, *words: str, patience: float = PATIENCE) -> str:
        """Run podman-compose with compose.yaml."""
        program = self.home / "tools" / "bin" / "podman-compose"
        return self._run([str(program), "-f", str(COMPOSE), *words], patience)

    def status(self, *words: str, patience: float = PATIENCE) -> int:
        """Return the exit status of podman."""
        return self._start(["podman", *words], patience).returncode

    def complaint(self, *words: str) -> str:
        """Return the last line of the errors of podman, which must fail."""
        done = self._start(["podman", *words], PATIENCE)
        require(done.returncode, f"{shorten(done.args)} succeeded")
        return last_line(done)

    def logs(self, name: str) -> str:
        """Return what a container wrote to stdout and stderr."""
        done = self._start(["podman", "logs", name], PATIENCE)
        return done.stdout + done.stderr

    def inspect(self, name: str) -> dict[str, Any]:
        """Return what podman knows of a container or an image."""
        (found,) = json.loads(self("inspect", name))
        return dict(found)

    def spawn(self, *words: str) -> subprocess.Popen[str]:
        """Start podman, with pipes for its output."""
        return subprocess.Popen(
            ["podman", *words],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _run(self, command: list[str], patience: float) -> str:
        done = self._start(command, patience)
        if done.returncode:
            words = shorten(command)
            raise Failed(f"{words} ended with {done.returncode}: {last_line(done)}")
        return done.stdout

    def _start(self, command: list[str], patience: float) -> subprocess.CompletedProcess[str]:
        try:
            done = subprocess.run(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=patience,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{shorten(command)} took more than {patience:.0f} s") from None
        except OSError as error:
            raise Failed(f"{command[0]} does not start: {error}") from None
        with open(self.home / "log", "a") as log:
            log.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}= {done.returncode}\n")
        return done


def shorten(command: list[str]) -> str:
    """Return a command as a text of at most 120 characters."""
    text = " ".join([Path(command[0]).name, *command[1:]])
    return text if len(text) <= 120 else f"{text[:60]} ... {text[-56:]}"


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line of the errors of a command, or of its output."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else "it printed no reason"


def wait_until(holds: Callable[[], bool], what: str, patience: float = PATIENCE) -> float:
    """Wait until a condition holds and return the seconds; ``Failed`` names it if it never does."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > patience:
            raise Failed(f"after {patience:.0f} s still not: {what}")
        time.sleep(0.3)
    return time.monotonic() - began


def require(holds: object, what: str) -> None:
    """Raise ``Failed`` unless a condition holds."""
    if not holds:
        raise Failed(what)
