"""bin/check-message: the check of commit messages."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "bin" / "check-message"


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(
    "message",
    [
        "store: order records with equal versions by their bytes",
        "tests/simulation: add clients that fork\n\nThe body says why.\n",
        "docs: " + "x" * 66,
        "fixup! anything at all",
    ],
)
def test_check_message_accepts(message: str, tmp_path: Path) -> None:
    (tmp_path / "message").write_text(message)
    done = check(str(tmp_path / "message"))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("Fix things", "allowed is 'area: summary'"),
        ("store:no space", "allowed is 'area: summary'"),
        ("docs: " + "x" * 67, "the subject has 73 characters; allowed are 72"),
        ("store: fix a merge.", "the subject ends in a full stop"),
        ("store: fix a merge\nthe body", "line 2 is 'the body'; it must be empty"),
    ],
)
def test_check_message_refuses(message: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "message").write_text(message)
    done = check(str(tmp_path / "message"))
    assert done.returncode == 1
    assert why in done.stderr


def test_check_message_without_arguments_prints_usage() -> None:
    done = check()
    assert done.returncode == 2
    assert "name a file with a commit message, or --range A..B" in done.stderr
