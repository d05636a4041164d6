"""The commands on whole indexes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, cast

import typer

from dstash.cli import invocation
from dstash.cli.arguments import IndexName, Prefix
from dstash.cli.console import output
from dstash.cli.console.repairs import follow_drop
from dstash.cli.units import duration, parse_time, size
from dstash.cluster.topology.indexes.settings import NAMES
from dstash.errors import UsageError
from dstash.limits import check_index

if TYPE_CHECKING:
    from dstash.client.calls import SettingsOptions
    from dstash.client.operations.indexes.sizes import IndexDefaults

app = typer.Typer(
    help="Show and change the settings of indexes.",
    no_args_is_help=True,
)


def indexes(ctx: typer.Context) -> None:
    """List the indexes that have live records, with their approximate sizes.

    One replica of each partition is asked. A number with ~ is an estimate: peers count up to about
    100,000 records each. "dstash index show" explains ttl and max ttl.
    """
    run = invocation.of(ctx)
    with run.client() as client:
        found = client.indexes()
    if run.as_json:
        for index in found:
            output.json_line(index._asdict())
        return
    rows = (
        (
            index.name,
            _about(f"{index.records:,}", index.exact),
            _about(size(index.bytes), index.exact),
            _time(index.ttl),
            _time(index.max_ttl),
        )
        for index in found
    )
    output.table(("index", "records", "size", "ttl", "max ttl"), rows)


def drop(
    ctx: typer.Context,
    index: IndexName,
    prefix: Prefix = "",
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask for confirmation.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show how the peers remove the records, until done.")
    ] = False,
) -> None:
    """Drop an index, or the keys of it with a prefix, however many there are.

    When the command returns, reads at level quorum find none of the records that were there.
    Writes that are made afterwards stay. The peers remove the records from their disks in the
    background; "dstash status" shows how far they are.
    """
    run = invocation.of(ctx)
    what = f"all keys of index '{index}'"
    if prefix:
        what = f"the keys of index '{index}' that begin with '{prefix}'"
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("drop asks for confirmation on a terminal; in a script, use --yes")
        typer.confirm(f"Drop {what}?", abort=True, err=True)
    with run.client() as client:
        client.drop(index, prefix)
        if run.as_json:
            output.json_line({"index": index, "prefix": prefix, "dropped": True})
        if watch:
            follow_drop(client, as_json=run.as_json)


@app.command("set")
def set_(
    ctx: typer.Context,
    index: IndexName,
    settings: Annotated[
        list[str],
        typer.Argument(metavar="NAME=TIME...", help="ttl=1h, max_ttl=7d; ttl=none removes it."),
    ],
) -> None:
    """Change the settings of an index, which peers apply to the writes of all clients.

    A put without a time to live gets ttl. A put or touch with a longer time to live than max_ttl,
    or with none, is cut to max_ttl. Settings that are not given stay, and stored records keep their
    expiry. The command prints the settings that the index has now.
    """
    times = _parse_settings(settings)
    run = invocation.of(ctx)
    with run.client() as client:
        client.admin.set_index(index, **times)
        found = client.index_settings()
    _show(run, found, index)


@app.command()
def show(
    ctx: typer.Context,
    index: Annotated[
        str, typer.Argument(metavar="INDEX", help="Name of the index; all that have settings.")
    ] = "",
) -> None:
    """Show the settings of an index, or of all indexes that have any.

    A put without a time to live gets ttl; max ttl is the longest that a put or touch may have.
    """
    if index:
        check_index(index)
    run = invocation.of(ctx)
    with run.client() as client:
        found = client.index_settings()
    _show(run, found, index)


def _parse_settings(texts: Sequence[str]) -> SettingsOptions:
    """Return the settings of arguments such as ``max_ttl=1d``, in seconds."""
    times: dict[str, float | None] = {}
    for text in texts:
        name, equals, time = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in NAMES:
            raise UsageError(
                f"{text!r} is not a setting; allowed are ttl=TIME and max_ttl=TIME, "
                "where TIME is like 90, 15m, 12h, 7d, or none"
            )
        if name in times:
            raise UsageError(f"{name} is given twice")
        times[name] = None if time.strip().lower() == "none" else parse_time(time)
    return cast("SettingsOptions", times)


def _show(run: invocation.Invocation, found: Iterable[IndexDefaults], index: str) -> None:
    """Print the settings of an index, or of all if ``index`` is empty."""
    rows = [known._asdict() for known in found if index in ("", known.name)]
    if index and not rows:
        rows = [{"name": index, "ttl": None, "max_ttl": None}]
    if run.as_json:
        for row in rows:
            output.json_line(row)
        return
    cells = ((row["name"], _time(row["ttl"]), _time(row["max_ttl"])) for row in rows)
    output.table(("index", "ttl", "max ttl"), cells)


def _time(seconds: float | None) -> str:
    if seconds is not None and seconds != int(seconds):
        return f"{seconds:.3f}s"
    return duration(seconds)


def _about(text: str, exact: bool) -> str:
    return text if exact else f"~{text}"
