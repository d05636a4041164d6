"""docs/security.md as a program: its settings and commands, for peers of a test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dstash.wire.curve import KeyPair, load_public
from tests.harness.devcluster import clean_environment
from tests.harness.peers import DSTASH_PEER, PATIENCE, Peer
from tests.harness.ports import free_port
from tests.harness.process import expirable
from tests.harness.waiting import wait_until

_MANUAL = Path(__file__).resolve().parent.parent.parent / "docs" / "security.md"
_BLOCK = re.compile(
    r"^( *)```(\w+)(?: not-run=\"[^\"]*\")?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL
)
_RESTART = "systemctl restart dstash-peer"


class Block(NamedTuple):
    """A block of the manual, and its language."""

    language: str
    text: str


def chapter(title: str) -> list[Block]:
    """Return the blocks of one chapter of the manual."""
    _, _, rest = _MANUAL.read_text().partition(f"\n## {title}\n")
    assert rest, f"there is no chapter {title!r}"
    found = _BLOCK.findall(rest.partition("\n## ")[0])
    return [Block(language, textwrap.dedent(text)) for _, language, text in found]


class Machine(Peer):
    """A peer with all settings in a file, except those that only tests need."""

    def __init__(self, name: str, folder: Path, settings: Path) -> None:
        super().__init__(name, folder, [])
        self.settings = settings
        self.plain_port, self.port = self.port, free_port()  # as in the manual

    def start(self) -> None:
        """Start the process."""
        command = [DSTASH_PEER, "--config", str(self.settings), "--log-format", "json"]
        command += ["--http-port", str(self.http_port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                expirable(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(),
            )


class Site:
    """Three machines of the manual, simulated in one folder and on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machines = {
            name: Machine(name, folder, folder / f"{name}.toml")
            for name in ("peer1", "peer2", "peer3")
        }
        self.client = folder / "client.toml"

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *error: object) -> None:
        for machine in self.machines.values():
            if machine.runs():
                machine.kill()

    def open_up(self) -> None:
        """Start an open cluster, and write the settings of its client."""
        for name, machine in self.machines.items():
            self.write(machine.settings, self.local(f"{self.unchanged(name)}port = 5500\n", name))
            machine.start()
        self.wait_ready()
        peers = '"tcp://peer1.example.org:5500", "tcp://peer2.example.org:5500"'
        self.write(self.client, self.local(f"peers = [{peers}]\n"))

    def wait_ready(self) -> None:
        """Wait until all peers serve; fail at once if a peer ends."""
        wait_until(
            lambda: {machine.is_ready() for machine in self.machines.values()} == {True},
            PATIENCE,
            f"all are ready (see {self.folder})",
        )

    def unchanged(self, name: str) -> str:
        """Return the settings of a peer that no step of the manual changes."""
        return (
            f'data_dir = "{self.folder / name}"\nlocal_dir = "{self.folder}/membership"\n'
            f'zone = "{name}"\nmin_peers = 3\n'
        )

    def local(self, text: str, name: str = "peer1") -> str:
        """Return a text of the manual about ``peer1``, adapted to a peer of the test."""
        for other, machine in self.machines.items():
            for number, port in ((5500, machine.plain_port), (5600, machine.port)):
                text = text.replace(f"{other}.example.org:{number}", f"127.0.0.1:{port}")
            text = text.replace(f"the public key of {other}", self.key(other))
        machine = self.machines[name]
        text = re.sub(r"\bport = 5500\b", f"port = {machine.plain_port}", text)
        text = re.sub(r"plain_port = 5500\b", f"plain_port = {machine.plain_port}", text)
        text = re.sub(r"\bport = 5600\b", f"port = {machine.port}", text)
        text = text.replace('"*"', '"127.0.0.1"').replace("peer1.example.org", "127.0.0.1")
        text = re.sub(r"/etc/dstash/peer1\b", f"/etc/dstash/{name}", text)
        return text.replace("/etc/dstash", str(self.folder))

    def make_keys(self) -> None:
        """Create all keys and the list without the commands of the manual."""
        lines = []
        for name, role in [*((machine, "peer") for machine in self.machines), ("app", "write")]:
            pair = KeyPair.generate()
            pair.save(self.folder / f"{name}.key", self.folder / f"{name}.key_secret")
            lines.append(f"{pair.public} {role}\n")
        listed = self.folder / "authorised_keys"
        listed.write_text("".join(lines))
        listed.chmod(0o644)

    def key(self, name: str) -> str:
        """Return a public key; empty if it does not exist yet."""
        file = self.folder / f"{name}.key"
        return load_public(file) if file.exists() else ""

    def write(self, file: Path, text: str) -> None:
        """Write a file of settings."""
        file.write_text(text)

    def run(self, block: Block, restart: Callable[[], None] | None = None) -> None:
        """Run commands as printed; all must succeed. ``restart`` replaces systemd."""
        assert block.language == "sh", block
        first, *others = block.text.split(_RESTART + "\n")
        self.shell(first)
        for text in others:
            assert restart is not None, block
            restart()
            self.shell(text)

    def shell(self, text: str) -> None:
        """Run lines of a shell; all must succeed."""
        done = self.attempt(text)
        assert done.returncode == 0, (text, done.stderr)

    def attempt(self, text: str) -> subprocess.CompletedProcess[str]:
        """Run lines of a shell."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-euc", text],
            capture_output=True,
            text=True,
            timeout=100,
            env=clean_environment(PATH=path),
        )
