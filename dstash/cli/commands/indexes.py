"""The commands on whole indexes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dstash.cli import invocation
from dstash.cli.arguments import IndexName, Prefix
from dstash.cli.console import output
from dstash.cli.console.repairs import follow_drop
from dstash.cli.units import size
from dstash.errors import UsageError


def indexes(ctx: typer.Context) -> None:
    """List the indexes that have live records, with their approximate sizes.

    One replica of each partition is asked. A number with ~ is an estimate: peers count up to about
    100,000 records each.
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
        )
        for index in found
    )
    output.table(("index", "records", "size"), rows)


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


def _about(text: str, exact: bool) -> str:
    return text if exact else f"~{text}"
