"""``dstash store``: looking at a data directory while its peer is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dstash.cli import invocation
from dstash.cli.console import output
from dstash.cli.invocation import Output
from dstash.errors import CorruptStore, StoreError
from dstash.store.directory import DATA_FILE
from dstash.store.lmdb import LmdbStore
from dstash.store.scrub import Scrubbed, scrub

app = typer.Typer(help="Look at the data directory of a stopped peer.", no_args_is_help=True)

#: Damaged records named one by one.
_NAMED = 20


@app.callback()
def _group() -> None:
    """Look at the data directory of a stopped peer."""


@app.command()
def check(
    ctx: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A peer's data directory.")],
) -> None:
    """Read every record and check it. Changes nothing; exit status 1 if something is damaged."""
    run = invocation.of(ctx)
    if not (directory / DATA_FILE).exists():
        raise StoreError(f"{directory} is not a data directory: it has no {DATA_FILE}")
    store = LmdbStore(directory)
    try:
        *_, found = scrub(store)
    finally:
        store.close()
    _show(run, directory, found)
    if found.corrupt:
        raise CorruptStore(f"{directory}: {len(found.corrupt)} of {found.records} records damaged")


def _show(run: invocation.Invocation, directory: Path, found: Scrubbed) -> None:
    facts = {
        "directory": str(directory),
        "records": found.records,
        "tombstones": found.tombstones,
        "bytes": found.bytes,
        "indexes": dict(found.indexes),
        "corrupt": len(found.corrupt),
    }
    if run.output is Output.JSON:
        output.json_line(facts)
    else:
        output.table(("what", "value"), [(name, str(value)) for name, value in facts.items()])
    for text in found.corrupt[:_NAMED]:
        output.message(text)
