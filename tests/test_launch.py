"""The start of a command: interrupts during import, and closed streams."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.devcluster import DSTASH, clean_environment
from tests.harness.peers import DSTASH_PEER

ROOT = Path(__file__).resolve().parent.parent


def run(script: str) -> tuple[int, str]:
    """Run a shell command in which ``$0`` is ``dstash``; return the exit code and both outputs."""
    done = subprocess.run(
        ["sh", "-c", script, DSTASH],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        env=clean_environment(),
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("command", [[DSTASH, "import", "i", "-"], [DSTASH_PEER]])
def test_ctrl_c_during_import_prints_no_traceback(command: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", *command],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    ) as process:
        assert process.stderr is not None
        said = iter(process.stderr)
        assert any("typer" in line for line in said), "it tells what it has loaded"
        process.send_signal(signal.SIGINT)
        rest = "".join(line for line in said if not line.startswith("import time:"))
        process.communicate()
    # It may finish loading before the signal arrives.
    assert process.returncode in (-signal.SIGINT, 130, 2)
    assert "Traceback" not in rest
    assert "KeyboardInterrupt" not in rest


@pytest.mark.parametrize("start", ["dstash.cli.start", "dstash.peer.start"])
def test_start_imports_little_before_ctrl_c_is_handled(start: str) -> None:
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {start}; print(*sys.modules)"
    # -S: without the hooks of an installation for development, which import more.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "dstash.launch" in loaded
    assert not loaded & {"signal", "enum", "typing", "re", "dstash.errors"}


@pytest.mark.parametrize("command", [DSTASH, DSTASH_PEER])
def test_start_imports_no_optional_library(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", command, "--unknown"],
        capture_output=True,
        text=True,
        env=clean_environment(),
    )
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 2, done.stderr
    assert "structlog.dev" in loaded
    assert not loaded & {"rich.console", "prometheus_client.core", "requests.api", "pyarrow.lib"}


def test_closed_stdout_is_an_error_for_commands_with_output() -> None:
    code, said = run('"$0" --version 2>&1 >&-')
    assert (code, said) == (1, "dstash: reading stdin or writing stdout: Bad file descriptor\n")


def test_closed_stdin_is_an_error_for_commands_with_input() -> None:
    code, said = run('"$0" put index key <&-')
    assert (code, said) == (1, "dstash: reading stdin or writing stdout: Bad file descriptor\n")


def test_closed_stderr_keeps_the_exit_code() -> None:
    assert run('"$0" put "" key value 2>&-') == (2, "")
    assert run('"$0" put "" key value 2>/dev/full') == (2, "")


def test_public_names_exist() -> None:
    script = "import dstash; dstash.errors.TimedOut; dstash.types.Level; "
    script += "[getattr(dstash, name) for name in dstash.__all__]; dstash.Nothing"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        "AttributeError: module 'dstash' has no attribute 'Nothing'"
    )
