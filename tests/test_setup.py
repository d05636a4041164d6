"""``bin/setup``: which interpreter it uses."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("build", "run")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A project whose ``.venv`` is complete, and was made with the interpreter of the tests."""
    for name in ("bin", "requirements", ".venv/bin"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(ROOT / "bin" / "setup", tmp_path / "bin")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    for name in LOCKS:
        (tmp_path / f"requirements/{name}.txt").write_text(f"# {name}\n")
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    content = f"{tmp_path.resolve()}\n[project]\n" + "".join(f"# {name}\n" for name in LOCKS)
    stamp = hashlib.sha256(content.encode()).hexdigest()
    (tmp_path / ".venv/stamps").write_text(f"{stamp}\n")
    return tmp_path


def setup(clone: Path, python: str, folder: Path) -> tuple[int, str]:
    done = subprocess.run(
        [str(clone / "bin/setup")],
        cwd=folder,
        env=os.environ | {"PYTHON": python},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


def test_setup_does_nothing_if_venv_has_the_interpreter_of_python(clone: Path) -> None:
    before = (clone / ".venv/stamps").stat().st_ino
    for python in (sys.executable, "", os.path.relpath(sys.executable, clone)):
        assert setup(clone, python, clone) == (0, "")
    assert (clone / ".venv/stamps").stat().st_ino == before


@pytest.mark.parametrize("python", ["/nowhere/python", "no-such-python", "./also nowhere"])
def test_setup_refuses_a_python_that_cannot_be_used(clone: Path, python: str) -> None:
    code, said = setup(clone, python, clone)
    assert code == 1
    assert said.startswith("setup: PYTHON is ")
    assert said.endswith("which is not a Python >= 3.11 with the venv module\n")
    assert (clone / ".venv/stamps").exists()


def test_setup_makes_venv_again_with_another_python(clone: Path) -> None:
    other = clone / "python of another version"
    other.write_text(
        f'#!/bin/sh\n[ "$2" = venv ] && exit 7\n"{sys.executable}" "$@" | sed "s/^/another: /"\n'
    )
    other.chmod(0o755)
    code, said = setup(clone, "./python of another version", clone)
    assert (code, said) == (7, f"setup: making .venv with {clone}/./{other.name}\n")
    assert not (clone / ".venv").exists()
