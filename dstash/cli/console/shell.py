"""``dstash shell``: the same commands, one after the other, over one connection."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, TextIO

import typer

from dstash.cli import failures, invocation
from dstash.cli.invocation import Invocation
from dstash.errors import UsageError

_ENDS: Final = ("exit", "quit")
_PROMPT: Final = "dstash> "


def shell(ctx: typer.Context) -> None:
    """Take commands without dstash before them: put users ada 1815. Tab completes, exit ends.

    From a pipe it takes one command a line and goes on after an error; the exit code is that of
    the first error. A line that begins with # is a comment. In a terminal, a line that begins
    with a space is not kept in the history.
    """
    run = invocation.of(ctx)
    if run.kept is not None:
        raise UsageError("this is the shell already")
    with run.client() as client:
        session = Session(ctx.find_root().command, replace(run, kept=client))
        if sys.stdin.isatty():
            session.talk()
            return
        raise typer.Exit(session.obey(sys.stdin))


class Session:
    """One run of the shell.

    Args:
        root: the command of which each line is a run.
        kept: what all of them share.
    """

    def __init__(self, root: Any, kept: Invocation) -> None:
        self._root = root
        self._kept = kept

    def obey(self, lines: Iterable[str]) -> int:
        """Run every line; returns the exit code of the first that failed."""
        first = 0
        for line in lines:
            if line.strip() in _ENDS:
                break
            code = self.run(line)
            first = first or code
        return first

    def talk(self) -> None:
        """Ask for lines until the user has enough."""
        from dstash.cli.console.line_editor import line_editor  # slow to import

        prompt = line_editor(self._root, self._kept)
        self.run("status")
        while True:
            try:
                line = prompt.prompt(_PROMPT)
            except KeyboardInterrupt:
                continue  # as in other shells: the line is dropped
            except EOFError:
                return
            if line.strip() in _ENDS:
                return
            self.run(line)

    def run(self, line: str) -> int:
        """Run one line and return its exit code; errors are told and go no further."""
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
    """stdin while a command runs: what comes there is for the shell itself."""

    def __init__(self, stdin: TextIO) -> None:
        self._stdin = stdin

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdin, name)

    @property
    def buffer(self) -> Any:
        """Refuse: a command that reads it would swallow the lines that follow."""
        raise UsageError("in the shell, stdin is where commands come from; give a value or a file")


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
