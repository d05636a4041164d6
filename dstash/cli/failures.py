"""The end of a command: an error becomes one line on stderr and an exit code."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import typer

from dstash.cli.advice import advice
from dstash.cli.console import output
from dstash.cli.invocation import Interrupted, Invocation
from dstash.errors import DStashError, UsageError

#: The exit code that shells report for a program ended by SIGPIPE.
PIPE_CLOSED: Final = 141


def code_of(command: Callable[[], Any]) -> int:
    """Run a command, explain its error if it fails, and return the exit code."""
    try:
        code = command()
        if code == Interrupted.exit_code:
            output.message("interrupted")
        return int(code or 0)
    except KeyboardInterrupt:  # before or after the command itself
        output.message("interrupted")
        return Interrupted.exit_code
    except Exception as error:
        if os.environ.get("DSTASH_DEBUG") == "1":
            raise
        return explain(error)


def explain(error: Exception) -> int:
    """Print an error in one line, and return its exit code."""
    if isinstance(error, DStashError):
        output.message(f"{error}{advice(error)}")
        return error.exit_code
    if isinstance(error, typer.TyperException):
        if text := error.format_message():  # empty if a group without command printed its help
            output.message(f"{text} (see {_help_for(error)})")
        return UsageError.exit_code
    if isinstance(error, typer.Abort):
        output.message("interrupted")
        return Interrupted.exit_code
    if isinstance(error, BrokenPipeError):
        return PIPE_CLOSED
    if isinstance(error, OSError):
        # An error without file name is about stdin or stdout: all others are translated. Only a
        # working directory that was removed has no name either.
        missing = isinstance(error, FileNotFoundError)
        unnamed = "the working directory" if missing else "reading stdin or writing stdout"
        where = error.filename or unnamed
        output.message(f"{where}: {error.strerror or error}")
    else:  # a bug in dstash
        name = type(error).__name__
        output.message(f"internal error: {name}: {error} (DSTASH_DEBUG=1 shows the traceback)")
    return 1


@contextmanager
def naming(file: str | os.PathLike[str]) -> Iterator[None]:
    """Add the name of a file to an ``OSError`` that has none, such as that of a full disk.

    A broken pipe stays as it is: it ends a command without a message.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), os.fspath(file)) from None
        raise


def _help_for(error: typer.TyperException) -> str:
    """Return the command that prints the help for the command in error."""
    context: typer.Context | None = getattr(error, "ctx", None)  # None if no command was found
    if context is None:
        return "dstash --help"
    path = context.command_path
    if isinstance(context.obj, Invocation) and context.obj.kept is not None:
        path = path.removeprefix("dstash").strip()  # in the shell, commands have no prefix
    return f"{path} --help".strip()
