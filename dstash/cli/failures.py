"""How a command ends: every error is one line on stderr, and an exit code."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import typer

from dstash.cli.advice import advice
from dstash.cli.console import output
from dstash.cli.invocation import Interrupted, Invocation
from dstash.errors import DStashError, UsageError

#: What a shell reports for a program that SIGPIPE ended.
PIPE_CLOSED: Final = 141


def code_of(command: Callable[[], Any]) -> int:
    """Run a command to its end, explain what went wrong, and return the exit code."""
    try:
        code = command()
        if code == Interrupted.exit_code:
            output.message("interrupted")
        return int(code or 0)
    except Exception as error:
        if os.environ.get("DSTASH_DEBUG") == "1":
            raise
        return explain(error)


def explain(error: Exception) -> int:
    """Say in one line what went wrong, and return the exit code."""
    if isinstance(error, DStashError):
        output.message(f"{error}{advice(error)}")
        return error.exit_code
    if isinstance(error, typer.TyperException):
        if text := error.format_message():  # empty: a group without command showed its help
            text = text.replace("Value error, ", "")  # pydantic's own word for it
            output.message(f"{text} ({_help_for(error)} lists what there is)")
        return UsageError.exit_code
    if isinstance(error, typer.Abort):
        output.message("interrupted")
        return Interrupted.exit_code
    if isinstance(error, BrokenPipeError):
        return PIPE_CLOSED
    if isinstance(error, OSError):
        # What has no name is stdin or stdout: all else that can fail so is translated.
        where = error.filename or "reading stdin or writing stdout"
        output.message(f"{where}: {error.strerror or error}")
    else:  # a defect: say so, and how to see more
        name = type(error).__name__
        output.message(f"internal error: {name}: {error} (DSTASH_DEBUG=1 shows the traceback)")
    return 1


def _help_for(error: typer.TyperException) -> str:
    """Return the words that show what is allowed where an error was made."""
    context: typer.Context | None = getattr(error, "ctx", None)  # none when no command was found
    if context is None:
        return "dstash --help"
    path = context.command_path
    if isinstance(context.obj, Invocation) and context.obj.kept is not None:
        path = path.removeprefix("dstash").strip()  # in the shell commands stand without it
    return f"{path} --help".strip()
