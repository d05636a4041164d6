"""The interactive shell ``dstash shell``: runs commands over one connection."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, TextIO

import typer

from dstash.cli import failures, invocation
from dstash.cli.console import signals
from dstash.cli.invocation import Invocation
from dstash.errors import UsageError

_ENDS: Final = ("exit", "quit")
_PROMPT: Final = "dstash> "


def shell(ctx: typer.Context) -> None:
    """Run commands interactively, without the word dstash: put users ada 1815.

    Tab completes, exit ends the shell. From a pipe, the shell reads one command per line and
    continues after an error; its exit code is that of the first error. A line that begins with # is
    a comment. In a terminal, a line that begins with a space is not kept in the history.
    """
    run = invocation.of(ctx)
    if run.kept is not None:
        raise UsageError("shell cannot be run inside the shell")
    with run.client() as client:
        session = Session(ctx.find_root().command, replace(run, kept=client))
        if sys.stdin.isatty():
            session.interact()
            return
        raise typer.Exit(session.run_all(sys.stdin))


class Session:
    """One run of the shell.

    Args:
        root: the top-level command, which runs each line.
        kept: the invocation that all lines share.
    """

    def __init__(self, root: Any, kept: Invocation) -> None:
        self._root = root
        self._kept = kept

    def run_all(self, lines: Iterable[str]) -> int:
        """Run every line, and return the exit code of the first that failed."""
        first = 0
        for number, line in enumerate(lines):
            if number == 0:
                line = line.removeprefix("\ufeff")  # editors of Windows write a byte order mark
            if line.strip() in _ENDS:
                break
            code = self.run(line)
            first = first or code
            if signals.has_ended():
                break
        return first

    def interact(self) -> None:
        """Prompt for lines and run them until the user ends the shell."""
        from dstash.cli.console.line_editor import line_editor  # slow to import

        prompt = line_editor(self._root, self._kept)
        self.run("status")
        while True:
            try:
                with signals.at_prompt():
                    line = prompt.prompt(_PROMPT)
            except KeyboardInterrupt:
                continue  # as in other shells, Ctrl-C drops the line
            except EOFError:
                return
            if line.strip() in _ENDS:
                return
            self.run(line)
            if signals.has_ended():
                return

    def run(self, line: str) -> int:
        """Run one line and return its exit code; an error is printed, not raised."""
        return failures.code_of(lambda: self._run(line))

    def _run(self, line: str) -> Any:
        words = _words(line)
        if not words:
            return 0
        words = ["-o", str(self._kept.output), *words]
        with _reserved_stdin():
            code = self._root.main(words, "dstash", standalone_mode=False, obj=self._kept)
        sys.stdout.flush()
        return code


class _Reserved:
    """A stdin for commands that refuses reads, because stdin holds the shell's own input."""

    def __init__(self, stdin: TextIO) -> None:
        self._stdin = stdin

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdin, name)

    @property
    def buffer(self) -> Any:
        """Refuse: a command that reads stdin would consume the lines that follow."""
        raise UsageError("commands in the shell cannot read stdin; give a value or a file")


@contextmanager
def _reserved_stdin() -> Iterator[None]:
    stdin = sys.stdin
    sys.stdin = _Reserved(stdin)
    try:
        yield
    finally:
        sys.stdin = stdin


def _words(line: str) -> list[str]:
    try:
        words = shlex.split(line, comments=line.lstrip().startswith("#"))
    except ValueError as error:
        raise UsageError(f"{line.strip()!r}: {str(error).lower()}") from None
    return ["--help", *words[1:]] if words[:1] == ["help"] else words
