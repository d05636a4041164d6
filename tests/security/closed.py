"""A cluster with CURVE: keys, the list of authorised keys, and clients."""

from __future__ import annotations

from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from dstash import Client
from dstash.wire.curve import KeyPair, load_public
from dstash.wire.messages import Hello, Welcome
from dstash.wire.shapes import Message
from tests.harness.peers import Peer, Peers
from tests.harness.waiting import wait_until
from tests.security.attackers import Attacker

PATIENCE = 30.0


class Closed:
    """Peers that accept only listed keys.

    Args:
        folder: for keys, data and logs.
        options: for every peer, including the membership if ``local`` is false.
    """

    def __init__(self, folder: Path, *options: str, local: bool = True) -> None:
        self.folder = folder
        self.listed = folder / "authorised_keys"
        self.lines: dict[str, str] = {}
        more = ("--replicas", "3", *options)
        self.peers = Peers.local(folder, *more) if local else Peers(folder, [], *more, finder={})

    def __enter__(self) -> Closed:
        return self

    def __exit__(self, *error: object) -> None:
        self.peers.__exit__(*error)

    def keys(self, name: str) -> KeyPair:
        """Return the keys of a user, which the first call creates."""
        cert_file, key_file = self.folder / f"{name}.key", self.folder / f"{name}.key_secret"
        if not cert_file.exists():
            KeyPair.generate().save(cert_file, key_file)
        return KeyPair.load(cert_file, key_file)

    def grant(self, name: str, rights: str) -> KeyPair:
        """Authorise a user, and wait until the peers have reloaded the list."""
        keys = self.keys(name)
        self.lines[name] = f"{keys.public} {rights}"
        self._write()
        return keys

    def revoke(self, name: str) -> None:
        """Remove a user from the list."""
        del self.lines[name]
        self._write()

    def _write(self) -> None:
        new = self.folder / "authorised_keys.new"
        new.write_text("# authorised keys\n" + "\n".join(self.lines.values()) + "\n")
        new.chmod(0o644)
        new.replace(self.listed)

    def options(self, name: str) -> list[str]:
        """Return the options of a peer with its own keys."""
        files = {"cert-file": f"{name}.key", "key-file": f"{name}.key_secret"}
        paths = [word for key, file in files.items() for word in (f"--{key}", self._path(file))]
        return ["--curve", *paths, "--authorised-keys", str(self.listed)]

    def _path(self, file: str) -> str:
        return str(self.folder / file)

    def form(self, *names: str) -> None:
        """Start the first peers and wait until they serve."""
        for name in names:
            self.grant(name, "peer")
        for name in names:
            self.peers.start(name, "--min-peers", str(len(names)), *self.options(name))
        for name in names:
            self.peers[name].wait_ready()

    def server_key(self, name: str) -> str:
        """Return the public key of a peer."""
        return load_public(self.folder / f"{name}.key")

    def client(self, name: str, peer: str = "p1", **settings: Any) -> Client:
        """Return a client with the keys of a user and the address of one peer."""
        self.keys(name)
        given: dict[str, Any] = {
            "curve": True,
            "cert_file": self._path(f"{name}.key"),
            "key_file": self._path(f"{name}.key_secret"),
            "server_key": [self.server_key(peer)],
            "timeout": PATIENCE,
        }
        return Client(self.peers[peer].address, **given | settings)

    def attacker(self, name: str, peer: str = "p1", **options: Any) -> Attacker:
        """Return a raw connection with the keys of a user."""
        server = self.server_key(peer)
        address = self.peers[peer].address
        return Attacker(address, keys=self.keys(name), server=server, **options)

    def await_let_in(self, name: str) -> None:
        """Wait until every peer has read that these keys are authorised, each at its own time."""

        def is_let_in(peer: str) -> bool:
            with self.attacker(name, peer) as attacker:
                return isinstance(attacker.ask(Hello(), timeout=1.0), Welcome)

        for peer in [each for each in self.peers.all.values() if each.runs()]:
            wait_until(lambda: is_let_in(peer.name), PATIENCE, f"{name} is let in by {peer.name}")  # noqa: B023

    def await_shut_out(self, name: str, peer: str) -> None:
        """Wait until a peer refuses a user."""

        def is_shut_out() -> bool:
            with self.attacker(name, peer) as attacker:
                return attacker.ask(Hello(), timeout=1.0) is None

        wait_until(is_shut_out, PATIENCE, f"{name} is not let in any more")

    def epoch(self) -> int:
        """Return the epoch of the topology, as the first peer knows it."""
        return int(next(iter(self.peers.all.values())).page("/status")["epoch"])


#: Pages that a peer serves over HTTP, and pages that do not exist.
PAGES = (
    *("/", "/healthz", "/readyz", "/status", "/metrics", "/nothing"),
    *("/dashboard", "/dashboard/cluster", "/dashboard/load"),
)


def text_of(peer: Peer) -> str:
    """Return the log and the pages of a peer."""
    shown = [peer.log.read_text()]
    for path in PAGES:
        connection = HTTPConnection("127.0.0.1", peer.http_port, timeout=20)
        connection.request("GET", path)
        shown.append(connection.getresponse().read().decode())
        connection.close()
    assert all(shown)
    return "\n".join(shown)


def memory(peer: Peer) -> float:
    """Return the private memory of a peer in mebibytes."""
    assert peer.process is not None
    _, resident, shared, *_ = Path(f"/proc/{peer.process.pid}/statm").read_text().split()
    return (int(resident) - int(shared)) * 4096 / 2**20


def forget_peak(peer: Peer) -> None:
    """Reset the peak memory of a peer (proc_pid_clear_refs(5))."""
    assert peer.process is not None
    Path(f"/proc/{peer.process.pid}/clear_refs").write_text("5")


def peak(peer: Peer) -> float:
    """Return the peak memory of a peer since ``forget_peak`` in mebibytes, with mapped files."""
    assert peer.process is not None
    lines = Path(f"/proc/{peer.process.pid}/status").read_text().splitlines()
    [kibibytes] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kibibytes) / 1024


def code_of(answer: Message | None) -> int:
    """Return the code of an error, 0 for anything else."""
    return int(getattr(answer, "code", 0))
