"""The tree of commands: global options may follow a command, and hints for commands of others."""

from __future__ import annotations

import copy
import inspect
from typing import Any, Final

import typer
from typer.core import TyperGroup

from dstash.cli import invocation

#: Global options by the name of their parameter, and the attribute of ``Invocation`` or the setting
#: that each sets.
_GLOBAL: Final = {
    "config": "config",
    "form": "output",
    **{name: name for name in ("peers", "consul", "cluster", "timeout", "read", "write")},
}

#: Commands of other systems and shells, and what they are here.
_ELSEWHERE: Final = {
    **dict.fromkeys(("set", "insert", "store", "write"), "put"),
    **dict.fromkeys(("lookup", "read", "fetch", "cat", "mget"), "get"),
    **dict.fromkeys(("setnx",), "add"),
    **dict.fromkeys(("getset",), "swap"),
    **dict.fromkeys(("incrby", "increment"), "incr"),
    **dict.fromkeys(("decrby", "decrement"), "decr"),
    **dict.fromkeys(("delete", "rm", "remove", "unset"), "del"),
    **dict.fromkeys(("list", "ls", "range", "items"), "scan"),
    **dict.fromkeys(("keys",), "scan --keys"),
    **dict.fromkeys(("has", "contains"), "exists"),
    **dict.fromkeys(("expire", "persist"), "touch"),
    **dict.fromkeys(("size", "len", "dbsize"), "count"),
    **dict.fromkeys(("load",), "import"),
    **dict.fromkeys(("dump",), "export"),
    **dict.fromkeys(("info", "members", "nodes", "ping"), "status"),
    **dict.fromkeys(("up", "start"), "dev up"),
    **dict.fromkeys(("down", "stop"), "dev down"),
    **dict.fromkeys(("repair", "join", "leave", "forget", "replace"), "cluster"),
    **dict.fromkeys(("save", "restore", "snapshot"), "backup"),
}


class Commands(TyperGroup):
    """A group whose commands accept global options, too: ``dstash status -o json``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that is named first, and prepare it."""
        is_unknown = ctx.parent is None and args[0] not in self.commands
        here = _ELSEWHERE.get(args[0].lower())
        if is_unknown and here and not ctx.resilient_parsing:
            ctx.fail(f"No such command '{args[0]}'. Did you mean '{here}'?")
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            _accept_global_options(ctx.find_root().command, command)
            _prepare_help(command, ctx)
        return name, command, rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help of the group."""
        _prepare_help(self, ctx)
        super().format_help(ctx, formatter)


def _prepare_help(command: Any, ctx: Any) -> None:
    """Prepare a command for help on a terminal.

    Lines are joined, because the terminal wraps them at another width. A flag takes no value, so
    no type is shown for it.
    """
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    command.help = "\n\n".join(" ".join(lines.split()) for lines in paragraphs)
    for param in (*command.params, command.get_help_option(ctx)):
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""


def _accept_global_options(root: Any, command: Any) -> None:
    """Add the options of the root to a command, but those whose names it uses itself."""
    used = {opt for param in command.params for opt in (*param.opts, *param.secondary_opts)}
    for param in root.params:
        opts = [opt for opt in param.opts if opt not in used]
        if opts and param.name in _GLOBAL:
            command.params.append(_repeated(param, opts))


def _repeated(param: Any, opts: list[str]) -> Any:
    """Return a copy of a global option that sets it for the command that it follows."""

    def keep(ctx: typer.Context, option: Any, value: Any) -> None:
        if value is not None and not ctx.resilient_parsing:
            ctx.obj = invocation.of(ctx).given(_GLOBAL[param.name], value)

    repeated = copy.copy(param)
    repeated.name = f"global_{param.name}"
    repeated.opts = opts
    repeated.default = repeated.envvar = None
    repeated.hidden = True
    repeated.expose_value = False
    repeated.callback = keep
    return repeated
