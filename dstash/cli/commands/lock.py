"""The command that holds a lock while another command runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Annotated, Final

import typer

from dstash.cli import invocation
from dstash.cli.arguments import Ttl, parse_duration
from dstash.cli.console import signals
from dstash.config import LOCK_TOKEN
from dstash.errors import UsageError

_DEFAULT_TTL_S: Final = 30.0
_DEFAULT_WAIT_S: Final = 10.0
_CHECK_INTERVAL_S: Final = 0.2
#: How long a command may take to end after SIGTERM.
_GRACE_S: Final = 10.0
#: As shells report a command that was ended by a signal.
_SIGNAL_EXIT_BASE: Final = 128


def lock(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the lock.")],
    command: Annotated[
        list[str],
        typer.Argument(metavar="-- COMMAND...", help="Command to run, with its arguments."),
    ],
    ttl: Ttl = None,
    wait: Annotated[
        float | None,
        typer.Option(
            "--wait",
            metavar="TIME",
            parser=parse_duration,
            help="How long to wait for the lock: 0, or 30s, 5m; 10s unless given.",
        ),
    ] = None,
    index: Annotated[
        str, typer.Option("--index", metavar="INDEX", help="Index of the lock.")
    ] = "@locks",
) -> None:
    """Run a command while holding a lock; its exit code is that of the command.

    The variable DSTASH_LOCK_TOKEN has the fencing token of the lock; see docs/locks.md. The lock is
    renewed while the command runs. If its holder dies, it is free after --ttl (default 30 s). If
    others hold it until --wait is over, the exit code is 4. If it is lost, the exit code is 4, too,
    and the command gets SIGTERM; so it does at Ctrl-C. After 10 s, or at a second signal, it gets
    SIGKILL.
    """
    _expect_executable(command[0])
    run = invocation.of(ctx)
    lasting = _DEFAULT_TTL_S if ttl is None else ttl
    waiting = _DEFAULT_WAIT_S if wait is None else wait
    with run.client() as client, client.lock(name, lasting, waiting, index) as held:
        code = _run(command, {**os.environ, LOCK_TOKEN: str(held.token)}, held.check)
    raise typer.Exit(code)


def _expect_executable(program: str) -> None:
    """Raise ``UsageError`` if a program cannot be run, as far as that is known before."""
    if shutil.which(program) is not None:
        return
    if not os.path.dirname(program) or not os.path.exists(program):
        raise UsageError(f"there is no command {program!r}")
    problem = "is a directory" if os.path.isdir(program) else "is not executable"
    raise UsageError(f"{program!r} {problem}; allowed is an executable file")


def _run(command: list[str], environment: dict[str, str], check: Callable[[], None]) -> int:
    """Run a command and return its exit code; end it if ``check`` raises, or at a signal."""
    with signals.remembered() as received:
        child = subprocess.Popen(command, env=environment)  # noqa: S603  # the user's command
        try:
            while _wait(child) is None and not received.numbers:
                check()
        finally:
            _end(child, received)
    return _SIGNAL_EXIT_BASE - child.returncode if child.returncode < 0 else child.returncode


def _wait(child: subprocess.Popen[bytes]) -> int | None:
    """Wait for the end of a command, but not for long; return its exit code if it has ended."""
    try:
        return child.wait(_CHECK_INTERVAL_S)
    except subprocess.TimeoutExpired:
        return None


def _end(child: subprocess.Popen[bytes], received: signals.Remembered) -> None:
    """End a command that still runs, before its lock may go to another holder.

    It gets SIGTERM, and SIGKILL after some time, or at the second signal to this process.
    """
    until = time.monotonic() + _GRACE_S
    child.terminate()
    while _wait(child) is None:
        if time.monotonic() >= until or len(received.numbers) > 1:
            child.kill()
