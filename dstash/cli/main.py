"""The ``dstash`` command: its global options and its commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from dstash import loops
from dstash.cli import failures
from dstash.cli.command_tree import Commands
from dstash.cli.commands import (
    backup,
    bench,
    bulk,
    cert,
    cluster,
    data,
    dev,
    indexes,
    lock,
    operate,
    registers,
    settings,
    store,
)
from dstash.cli.console import output, shell, signals
from dstash.cli.invocation import Invocation, Output
from dstash.config import unknown_variables
from dstash.errors import UsageError

app = typer.Typer(
    name="dstash",
    cls=Commands,
    help="Read, write and operate a dstash cluster. Data goes to stdout, messages to stderr. The "
    "options may also follow the command.",
    epilog="Exit codes: 0 ok, 1 error, 2 usage, 3 key not found, "
    "4 conflict, or a lock is not held, 5 unavailable or no quorum, "
    "6 timeout, 7 not authorised, 8 unhealthy, 9 part of a batch failed, 130 Ctrl-C, "
    "143 SIGTERM.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

_COMMANDS: dict[str, Callable[..., None]] = {
    "put": data.put,
    "get": data.get,
    "del": data.delete,
    "exists": data.exists,
    "ttl": data.ttl,
    "touch": data.touch,
    "scan": data.scan,
    "count": data.count,
    "add": registers.add,
    "cas": registers.cas,
    "incr": registers.incr,
    "decr": registers.decr,
    "swap": registers.swap,
    "lock": lock.lock,
    "indexes": indexes.indexes,
    "drop": indexes.drop,
    "import": bulk.import_,
    "export": bulk.export,
    "status": operate.status,
    "health": operate.health,
    "where": operate.where,
    "bench": bench.bench,
    "shell": shell.shell,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(indexes.app, cls=Commands, name="index")
app.add_typer(cluster.app, cls=Commands, name="cluster")
app.add_typer(backup.app, cls=Commands, name="backup")
app.add_typer(dev.app, cls=Commands, name="dev")
app.add_typer(settings.app, cls=Commands, name="config")
app.add_typer(cert.app, cls=Commands, name="cert")
app.add_typer(store.app, cls=Commands, name="store")


def _print_version(wanted: bool) -> None:
    if wanted:
        from dstash.about import __version__  # slow to load

        output.line(f"dstash {__version__} ({loops.description()})")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def options(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            "-c",
            "--config",
            metavar="FILE",
            envvar="DSTASH_CONFIG",
            help="Settings file, such as conf/client.toml.",
        ),
    ] = None,
    peers: Annotated[
        str | None, typer.Option(metavar="HOST:PORT,...", help="One or more peers to connect to.")
    ] = None,
    consul: Annotated[
        str | None, typer.Option(metavar="URL", help="Consul that lists the peers.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the cluster.")
    ] = None,
    form: Annotated[
        Output, typer.Option("-o", "--output", help="Table for people, JSON for programs.")
    ] = (Output.TABLE),
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Timeout of each call.")
    ] = None,
    read: Annotated[
        str | None, typer.Option(metavar="one|quorum|all", help="Replicas that must answer a read.")
    ] = None,
    write: Annotated[
        str | None, typer.Option(metavar="one|quorum|all", help="Replicas that must store a write.")
    ] = None,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Keep the global options for the command that follows."""
    flags: dict[str, Any] = {"peers": peers, "consul": consul, "cluster": cluster}
    flags |= {"timeout": timeout, "read": read, "write": write}
    outer: Invocation | None = ctx.obj  # that of the shell, if this is a line of a shell
    ctx.obj = outer.within(flags, form) if outer else Invocation(config, flags, form)
    for name in unknown_variables():
        output.message(f"warning: {name} is not a setting of dstash; it has no effect")
    if ctx.invoked_subcommand is None:
        with redirect_stdout(sys.stderr):  # rich prints the help itself
            typer.echo(ctx.get_help())
        raise typer.Exit(UsageError.exit_code)


def main() -> None:
    """Run the command line; every error ends in one line on stderr and its exit code."""
    with signals.handled() as ending:
        code = ending.code(_run())
    try:
        sys.stdout.flush()
    except OSError as error:  # the reader has closed the pipe, or the disk is full
        code = code or failures.explain(error)
        output.discard(sys.stdout)
    sys.exit(code)


def _run() -> int:
    try:
        return failures.code_of(lambda: app(prog_name="dstash", standalone_mode=False))
    except SystemExit as end:  # raised by Typer after completion, or after a failed write
        if isinstance(end.__context__, OSError):
            return failures.PIPE_CLOSED
        raise


if __name__ == "__main__":
    main()
