"""The systemd unit: valid for systemd-analyze, hardened, and a peer runs under its filter."""

from __future__ import annotations

import configparser
import ctypes.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from dstash.config import PeerSettings
from tests.harness.peers import Peers

ROOT: Final = Path(__file__).resolve().parent.parent
UNIT: Final = ROOT / "conf" / "systemd" / "dstash-peer.service"
PATIENCE: Final = 60.0
DRAIN: Final = PeerSettings.drain_seconds

#: Allows only the system calls that it is given, as systemd does, and then starts a program.
CONFINE: Final = """
import ctypes, errno, os, sys
library, names, *command = sys.argv[1:]
seccomp = ctypes.CDLL(library)
seccomp.seccomp_init.restype = ctypes.c_void_p
context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(0x00050000 | errno.EPERM)))
for name in names.split():
    number = seccomp.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:
        assert not seccomp.seccomp_rule_add(context, ctypes.c_uint32(0x7FFF0000), number, 0), name
assert not seccomp.seccomp_load(context)
os.execv(command[0], command)
"""


@pytest.fixture(scope="module")
def analyze() -> Path:
    """systemd-analyze, of this machine or from its Debian package."""
    fetch = [str(ROOT / "bin" / "get-debian"), "systemd-analyze", "systemd"]
    done = subprocess.run(fetch, capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def _analyze(program: Path, unit: Path, *words: str) -> str:
    units = program.parent.parent / program.name / "lib" / "systemd" / "system"
    done = subprocess.run(
        [str(program), *words, str(unit)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ | ({"SYSTEMD_UNIT_PATH": f"{units}:"} if units.is_dir() else {}),
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stderr


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with the command of this environment, because verify checks that it exists."""
    here = str(Path(sys.executable).parent / "dstash-peer")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/dstash/bin/dstash-peer", here))
    return copy


def test_systemd_accepts_the_unit(analyze: Path, unit: Path) -> None:
    assert unit.name not in _analyze(analyze, unit, "verify", "--man=no")


def test_unit_is_hardened(analyze: Path, unit: Path) -> None:
    _analyze(analyze, unit, "security", "--offline=true", "--threshold=20", "--no-pager")


def test_unit_waits_for_the_peer_to_drain() -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # the documented way
    parser.read_string(UNIT.read_text())
    assert float(parser["Service"]["TimeoutStopSec"]) > DRAIN
    assert parser["Service"]["Type"] == "notify"


def test_unit_shows_the_peer_the_files_of_its_metrics() -> None:
    lines = UNIT.read_text().splitlines()
    assert not [line for line in lines if line.startswith("ProcSubset=")]  # hides /proc/stat
    assert "ProtectProc=invisible" in lines


def test_documentation_sets_the_data_directory_before_it_starts_the_unit() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text()
    steps = [
        "peer.toml /etc/dstash",
        "set `data_dir = ",
        "systemctl daemon-reload && systemctl enable",
    ]
    places = [text.index(step) for step in steps]
    assert places == sorted(places)
    assert text.count("systemctl enable") == 1


def _system_calls(program: Path, group: str) -> set[str]:
    """Return the system calls in a group of systemd."""
    listed = subprocess.run(
        [str(program), "syscall-filter", "--no-pager", group],
        capture_output=True,
        text=True,
        check=True,
    )
    found = set()
    for line in listed.stdout.splitlines():
        word = line.strip()
        if word.startswith("@") and word != group:
            found |= _system_calls(program, word)
        elif word and word[0] not in "#@":
            found.add(word)
    return found


def _allowed(program: Path) -> set[str]:
    """Return the system calls that the unit allows."""
    allowed: set[str] = set()
    for line in UNIT.read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "SystemCallFilter":
            groups = (_system_calls(program, group) for group in value.lstrip("~").split())
            calls = set().union(*groups)
            allowed = allowed - calls if value.startswith("~") else allowed | calls
    return allowed


def _seccomp(program: Path) -> str:
    """Return libseccomp of this machine, or of the package that systemd-analyze is from."""
    unpacked = (str(path) for path in program.parent.parent.rglob("libseccomp.so.2"))
    found = ctypes.util.find_library("seccomp") or next(unpacked, None)
    assert found is not None, "libseccomp.so.2 was not found; install libseccomp2"
    return found


def test_peer_serves_under_the_system_call_filter(analyze: Path, tmp_path: Path) -> None:
    with Peers.local(tmp_path) as peers:
        peer = peers.make("a", [*peers.options, "--zone", "a", "--min-peers", "1"])
        peers.all["a"] = peer
        calls = " ".join(sorted(_allowed(analyze)))
        peer.before = [sys.executable, "-c", CONFINE, _seccomp(analyze), calls]
        peer.start()
        peer.wait_ready()
        client = peers.client()
        client.put("i", "k", 1)
        assert client.lookup("i", "k") == 1
        status = (Path("/proc") / str(peer.process.pid) / "status").read_text()  # type: ignore[union-attr]
        assert "Seccomp:\t2" in status
