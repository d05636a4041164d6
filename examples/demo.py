"""Demonstration on real data: load, look up, kill a peer, continue, and compare every answer.

``bin/demo`` sets everything up and runs this. Three peers start on this machine. ``dstash import``
loads all named characters of Unicode, which Python includes. A batch looks up 100,000 of them.
Threads increment a counter while a lock is held. One peer is killed with SIGKILL. Counter and lock,
look-ups and writes continue on the other two. Every answer is compared with its source: after any
difference the exit code is 1.

    bin/demo            embedded membership, no server needed
    bin/demo --consul   the same on a real Consul
    bin/demo --keep     leave the cluster running, and print how to use it
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unicodedata
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from dstash import Client, Conflict, DStashError, Lock

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sys.executable).parent
INDEX = "unicode"
PEERS = 3
LOOKUPS = 100_000
LOCK = "demo"
COUNTS = 400
THREADS = 8
START_SECONDS = 60.0
STOP_SECONDS = 15.0

Characters = dict[str, dict[str, Any]]


class DemoError(Exception):
    """The demo cannot continue; the text is the reason in one line."""


class Step(NamedTuple):
    """A row of the final table."""

    what: str
    items: int
    seconds: float
    wrong: int


class Process:
    """A child process and the path of its log."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, *, ends_with_parent: bool
    ) -> None:
        self.name = name
        self.log = log
        if ends_with_parent and shutil.which("setpriv"):
            command = ["setpriv", "--pdeathsig", "KILL", "--", *command]
        with log.open("wb") as output:
            self.popen = subprocess.Popen(  # noqa: S603  # commands of our own
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_clean_environment(),
                start_new_session=True,  # on Ctrl-C, this process stops it in order
            )

    def await_page(self, url: str) -> None:
        """Wait until ``url`` answers 200."""
        deadline = time.monotonic() + START_SECONDS
        while not _answers(url):
            if self.popen.poll() is not None:
                raise DemoError(f"{self.name} ended at its start: {self._last_lines()}")
            if time.monotonic() > deadline:
                raise DemoError(f"{self.name} was not ready after {START_SECONDS:.0f} s")
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill the process, as a crash would."""
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> None:
        """Stop the process with SIGTERM, or with SIGKILL after a timeout."""
        self.popen.terminate()
        try:
            self.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def _last_lines(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"


class Peer(NamedTuple):
    """A peer of the demo."""

    process: Process
    address: str
    ready: str


class Cluster:
    """Three peers in a directory, with Consul if requested."""

    def __init__(self, folder: Path, *, keep: bool) -> None:
        self._folder = folder
        self._keep = keep
        self.processes: list[Process] = []
        self.peers: list[Peer] = []

    @property
    def addresses(self) -> str:
        """The addresses of the peers, as a value of ``DSTASH_PEERS``."""
        return ",".join(peer.address for peer in self.peers)

    def start(self, *, on_consul: bool) -> None:
        """Start all processes and wait until every peer serves."""
        membership = self._start_consul() if on_consul else self._embedded()
        ports = free_ports(2 * PEERS)
        for number in range(PEERS):
            self._start_peer(
                f"peer{number + 1}", ports[2 * number], ports[2 * number + 1], membership
            )
        for peer in self.peers:
            peer.process.await_page(peer.ready)

    def stop(self) -> None:
        """Stop all processes in reverse order."""
        while self.processes:
            self.processes.pop().stop()

    def _embedded(self) -> list[str]:
        return ["--membership", "local", "--local-dir", str(self._folder / "membership")]

    def _start_consul(self) -> list[str]:
        binary = _consul_binary()
        http, server, lan, wan = free_ports(4)
        command = [binary, "agent", "-dev", "-bind", "127.0.0.1", "-client", "127.0.0.1"]
        command += ["-http-port", str(http), "-server-port", str(server)]
        command += ["-serf-lan-port", str(lan), "-serf-wan-port", str(wan)]
        command += ["-dns-port", "-1", "-grpc-port", "-1"]
        consul = self._start("consul", command)
        url = f"http://127.0.0.1:{http}"
        consul.await_page(f"{url}/v1/catalog/service/consul?consistent")
        return ["--consul", url]

    def _start_peer(self, name: str, port: int, http: int, membership: Sequence[str]) -> None:
        command = [str(SCRIPTS / "dstash-peer"), str(self._folder / name), "127.0.0.1", str(port)]
        command += ["--cluster", "demo", "--min-peers", str(PEERS), "--http-port", str(http)]
        process = self._start(name, [*command, *membership])
        ready = f"http://127.0.0.1:{http}/readyz"
        self.peers.append(Peer(process, f"127.0.0.1:{port}", ready))

    def _start(self, name: str, command: Sequence[str]) -> Process:
        log = self._folder / f"{name}.log"
        self.processes.append(Process(name, command, log, ends_with_parent=not self._keep))
        return self.processes[-1]


class Demo:
    """The steps and their results."""

    def __init__(self, cluster: Cluster, folder: Path, console: Console) -> None:
        self._cluster = cluster
        self._folder = folder
        self._console = console
        self.steps: list[Step] = []

    def run(self, characters: Characters) -> None:
        """Run all steps."""
        names = random.Random(1).sample(sorted(characters), LOOKUPS)  # noqa: S311  # no secret
        self._import(characters)
        with self._client() as client:
            self._look_up(client, characters, names, "look up in one batch")
            with client.lock(LOCK) as lock:
                self._count(client, 0, "count with 8 threads")
                self._kill_one()
                self._count(client, COUNTS, "count, one peer killed")
                self._try_lock(client, lock)
            self._look_up(client, characters, names, "look up, one peer killed")
            self._put_again(client, characters, names)

    def _client(self) -> Client:
        return Client(*self._cluster.addresses.split(","), cluster="demo", timeout=60)

    def _import(self, characters: Characters) -> None:
        file = self._folder / "unicode.jsonl"
        with file.open("w") as lines:
            for name, facts in characters.items():
                lines.write(json.dumps({"key": name, "value": facts}) + "\n")
        command = [str(SCRIPTS / "dstash"), "--peers", self._cluster.addresses, "--cluster", "demo"]
        began = self._begin(f"importing {len(characters):,} characters with dstash import")
        done = subprocess.run(  # noqa: S603  # a command of our own
            [*command, "import", INDEX, str(file)], env=_clean_environment(), check=False
        )
        if done.returncode:
            raise DemoError(f"dstash import ended with exit code {done.returncode}")
        self._end("dstash import", len(characters), began, lambda: self._miscounted(characters))

    def _miscounted(self, characters: Characters) -> int:
        with self._client() as client:
            return abs(client.count(INDEX) - len(characters))

    def _look_up(
        self, client: Client, characters: Characters, names: Sequence[str], what: str
    ) -> None:
        began = self._begin(f"looking up {len(names):,} characters in one batch")
        found = client.batch_lookup(INDEX, names)
        self._end(what, len(names), began, differences(found, characters, names))

    def _kill_one(self) -> None:
        victim = self._cluster.peers[1].process
        self._console.print(f"killing {victim.name} with SIGKILL (pid {victim.popen.pid})")
        victim.kill()

    def _count(self, client: Client, before: int, what: str) -> None:
        began = self._begin(f"incrementing one counter {COUNTS} times with {THREADS} threads")
        with ThreadPoolExecutor(THREADS) as pool:
            sums = list(pool.map(lambda _: client.increment("@demo", "counter"), range(COUNTS)))
        expected = range(before + 1, before + COUNTS + 1)
        self._end(what, COUNTS, began, lambda: len(set(expected) ^ set(sums)))

    def _try_lock(self, client: Client, lock: Lock) -> None:
        began = self._begin("taking the lock that is held since before the kill")
        try:
            client.lock(LOCK, wait=0).acquire()
            wrong = 1
        except Conflict:
            lock.check()
            wrong = 0
        self._end("lock still held", 1, began, lambda: wrong)

    def _put_again(self, client: Client, characters: Characters, names: Sequence[str]) -> None:
        changed = {name: characters[name] | {"name": name.title()} for name in names}
        began = self._begin(f"putting {len(changed):,} changed characters in one batch")
        stored = client.batch_put(INDEX, changed.items(), on_error="return").stored
        what = "put in one batch, one peer killed"
        self._end(what, len(changed), began, lambda: len(changed) - stored)
        self._look_up(client, changed, names, "look up what was put")

    def _begin(self, what: str) -> float:
        self._console.print(what)
        return time.perf_counter()

    def _end(self, what: str, items: int, began: float, wrong: Callable[[], int]) -> None:
        seconds = time.perf_counter() - began
        self.steps.append(Step(what, items, seconds, wrong()))


def differences(
    found: Mapping[Any, Any], expected: Characters, names: Sequence[str]
) -> Callable[[], int]:
    """Return a function that counts wrong answers, to be called outside the measured time."""
    return lambda: (
        sum(found.get(name) != expected[name] for name in names) + len(found.keys() - set(names))
    )


def named_characters() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every named character of Unicode with its properties."""
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        name = unicodedata.name(character, None)
        if name is not None:
            category = unicodedata.category(character)
            yield name, {"character": character, "category": category, "code": code}


def free_ports(number: int) -> list[int]:
    """Return ports that are free now, from below the range of outgoing connections."""
    chosen: list[int] = []
    while len(chosen) < number:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in chosen:
            chosen.append(port)
    return chosen


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310  # our own peers
            return len(answer.read()) > len(b"[]")  # without a leader: []
    except (urllib.error.URLError, OSError):
        return False


def _clean_environment() -> dict[str, str]:
    # Settings in the environment may be for another cluster.
    return {name: text for name, text in os.environ.items() if not name.startswith("DSTASH_")}


def _consul_binary() -> str:
    done = subprocess.run(  # noqa: S603  # a script of our own
        [str(ROOT / "bin" / "get-consul")], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DemoError(f"no Consul: {done.stderr.strip()}")
    return done.stdout.strip()


def show(steps: Sequence[Step], console: Console) -> None:
    """Print the table."""
    table = Table("step")
    for heading in ("items", "seconds", "items/s", "wrong"):
        table.add_column(heading, justify="right")
    for step in steps:
        rate = f"{step.items / step.seconds:,.0f}"
        table.add_row(step.what, f"{step.items:,}", f"{step.seconds:.2f}", rate, str(step.wrong))
    console.print(table)


def explain(cluster: Cluster, folder: Path, console: Console) -> None:
    """Print how to use the running cluster, and how to stop it."""
    pids = " ".join(
        str(process.popen.pid) for process in cluster.processes if process.popen.poll() is None
    )
    dstash = shlex.quote(str(SCRIPTS / "dstash"))
    lines = [
        "the cluster still runs, without the killed peer; try:",
        f"  export DSTASH_PEERS={cluster.addresses} DSTASH_CLUSTER=demo",
        f"  {dstash} get {INDEX} SNOWMAN",
        f"  {dstash} status",
        "to stop it and delete its data:",
        f"  kill {pids}; rm -r {shlex.quote(str(folder))}",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def scratch(*, keep: bool) -> Iterator[Path]:
    """Create a directory, and remove it at the end unless it must be kept."""
    folder = Path(tempfile.mkdtemp(prefix="dstash-demo-"))
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def play(options: argparse.Namespace, console: Console) -> int:
    """Run the demo; return the exit code."""
    with scratch(keep=options.keep) as folder:
        cluster = Cluster(folder, keep=options.keep)
        finished = False
        try:
            on = "Consul" if options.consul else "the embedded membership"
            console.print(f"starting {PEERS} peers on {on}")
            cluster.start(on_consul=options.consul)
            demo = Demo(cluster, folder, console)
            demo.run(dict(named_characters()))
            finished = True
        finally:
            if not (options.keep and finished):
                console.print("stopping")
                cluster.stop()
        show(demo.steps, console)
        if options.keep:
            explain(cluster, folder, console)
        return 1 if any(step.wrong for step in demo.steps) else 0


def main() -> int:
    """Parse the options, run the demo, and print any failure in one line."""
    parser = argparse.ArgumentParser(
        prog="bin/demo", description="Demonstrate dstash on real data."
    )
    parser.add_argument("--consul", action="store_true", help="use a real Consul")
    parser.add_argument("--keep", action="store_true", help="leave the cluster running")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return play(options, Console())
    except (DemoError, DStashError) as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("demo: interrupted\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
