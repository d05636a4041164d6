"""The commands ``dstash store``: check or compact the data directory of a stopped peer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dstash.cli import invocation
from dstash.cli.console import output
from dstash.cli.console.progress import progress_bar
from dstash.cli.invocation import Output
from dstash.cli.units import size
from dstash.errors import CorruptStore, StoreError, StoreInUse
from dstash.store.directory import DATA_FILE
from dstash.store.offline.compaction import compact as compact_store
from dstash.store.offline.integrity import reading
from dstash.store.offline.scrub import Scrubbed, scrub

app = typer.Typer(
    help="Check or compact the data directory of a stopped peer.", no_args_is_help=True
)

_MAX_LISTED_RECORDS = 20


@app.callback()
def _group() -> None:
    """Check or compact the data directory of a stopped peer."""


@app.command()
def check(
    ctx: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A peer's data directory.")],
) -> None:
    """Check every record of a store; exit code 1 if any is corrupt.

    The store is not changed, and may be a copy that is read-only.
    """
    run = invocation.of(ctx)
    if not (directory / DATA_FILE).exists():
        raise StoreError(f"{directory} is not a data directory: it has no {DATA_FILE}")
    with reading(directory) as store:
        *_, found = scrub(store)
    _show(run, directory, found)
    if found.corrupt:
        raise CorruptStore(
            f"{directory}: {len(found.corrupt)} of {found.records} records are corrupt"
        )


@app.command()
def compact(
    ctx: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A peer's data directory.")],
) -> None:
    """Give the space of free and half-full pages back to the disk.

    The new file is written next to the old one, so the disk needs as much free space as the data
    takes. Whenever it is interrupted, the old store or the new one is there.
    """
    run = invocation.of(ctx)
    with progress_bar("Compacting", None) as progress:
        try:
            done = compact_store(directory, progress)
        except StoreInUse as error:
            raise StoreInUse(
                f"{error}; `dstash cluster compact PEER` compacts the store of a running peer"
            ) from None
    summary = {
        "directory": str(directory),
        "records": done.records,
        "before": done.before,
        "after": done.after,
    }
    if run.output is Output.JSON:
        output.json_line(summary)
    else:
        before, after = size(done.before), size(done.after)
        output.message(f"{directory}: {done.records:,} records, {before} before, {after} now")


def _show(run: invocation.Invocation, directory: Path, found: Scrubbed) -> None:
    summary = {
        "directory": str(directory),
        "records": found.records,
        "tombstones": found.tombstones,
        "bytes": found.bytes,
        "indexes": dict(found.indexes),
        "corrupt": len(found.corrupt),
    }
    if run.output is Output.JSON:
        output.json_line(summary)
    else:
        output.table(("what", "value"), [(name, str(value)) for name, value in summary.items()])
    for text in found.corrupt[:_MAX_LISTED_RECORDS]:
        output.message(text)
