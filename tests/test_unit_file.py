"""The systemd unit: valid for systemd-analyze, and hardened."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from dstash.config import PeerSettings

ROOT: Final = Path(__file__).resolve().parent.parent
UNIT: Final = ROOT / "conf" / "systemd" / "dstash-peer.service"
PATIENCE: Final = 60.0
DRAIN: Final = PeerSettings.drain_seconds


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
