"""The commands ``dstash store``: inspect the data directory of a stopped peer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dstash.cli import invocation
from dstash.cli.console import output
from dstash.cli.invocation import Output
from dstash.errors import CorruptStore, StoreError
from dstash.store.directory import DATA_FILE
from dstash.store.offline.integrity import reading
from dstash.store.offline.scrub import Scrubbed, scrub

app = typer.Typer(help="Inspect the data directory of a stopped peer.", no_args_is_help=True)

_MAX_LISTED_RECORDS = 20


@app.callback()
def _group() -> None:
    """Inspect the data directory of a stopped peer."""


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
