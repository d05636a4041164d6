"""The commands ``dstash backup``: save, verify and restore the records of a running cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dstash.backup.folder import Folder
from dstash.backup.manifest import PIECES, BackupError, Manifest
from dstash.backup.restore_rules import Fate, as_of_backup, into_other, into_same
from dstash.backup.verify import Findings, verify
from dstash.cli import invocation
from dstash.cli.console import output
from dstash.cli.console.progress import progress_bar
from dstash.cli.invocation import Interrupted, Invocation, PartlyFailed
from dstash.cli.units import size
from dstash.errors import UsageError
from dstash.limits import check_index
from dstash.types import Level

if TYPE_CHECKING:
    from collections import Counter

    from dstash.backup.restore import Restore
    from dstash.backup.source import LiveCluster

app = typer.Typer(help="Save, verify and restore a running cluster.", no_args_is_help=True)

_CALL_TIMEOUT_S: Final = 20.0
#: How long a piece is retried when peers fail.
_RETRY_TIMEOUT_S: Final = 60.0

DirName = Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the backup.")]
Parallel = Annotated[
    int, typer.Option(metavar="N", min=1, max=64, help="Pieces copied at the same time.")
]


@app.callback()
def _group() -> None:
    """Save, verify and restore a running cluster."""


@app.command()
def save(ctx: typer.Context, directory: DirName, parallel: Parallel = 4) -> None:
    """Copy all records of the running cluster into a directory.

    The backup has every write that was acknowledged before the command started. If the command is
    interrupted, run it again with the same directory to continue. With CURVE, it needs a key with
    the role admin.
    """
    from dstash.backup.save import Save  # slow to import: it imports the client

    run = invocation.of(ctx)
    began = time.monotonic()
    with _cluster(run) as cluster, progress_bar("backup save", PIECES, lambda: job.done) as bar:
        retry_timeout = run.long_timeout(_RETRY_TIMEOUT_S) or run.settings().timeout
        job = Save(
            Folder(directory),
            cluster.topology(),
            cluster,
            parallel,
            retry_timeout,
            lambda job: bar(job.records),
        )
        try:
            manifest = job.run()
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; {job.done} of {PIECES} pieces are saved; "
                "run the same command again to continue"
            ) from None
    for text in job.corrupt:
        output.message(f"{text}; it was saved again")
    if run.as_json:
        output.json_line(_summary(directory, manifest) | {"pieces_kept": len(job.kept)})
    output.message(_saved(directory, manifest, len(job.kept), time.monotonic() - began))


@app.command("verify")
def verify_(ctx: typer.Context, directory: DirName) -> None:
    """Read a whole backup and check it; print each problem, and exit with 1 if there is any."""
    run = invocation.of(ctx)
    found = _verified(Folder(directory))
    if run.as_json:
        summary = {} if found.manifest is None else _summary(directory, found.manifest)
        indexes = {row[0]: dict(zip(_COLUMNS[1:], row[1:], strict=True)) for row in _rows(found)}
        ok = not found.problems
        output.json_line({"ok": ok, "problems": found.problems} | summary | {"indexes": indexes})
    elif not found.problems:
        rows = [
            (name, f"{records:,}", f"{deleted:,}", size(weight))
            for name, records, deleted, weight in _rows(found)
        ]
        output.table(_COLUMNS, rows)
    _expect_intact(directory, found)
    if found.manifest is not None:
        output.message(f"{directory} is intact: {_description(found.manifest)}")


@app.command()
def restore(
    ctx: typer.Context,
    directory: DirName,
    index: Annotated[
        list[str] | None,
        typer.Option("--index", metavar="NAME", help="Restore this index only; may be repeated."),
    ] = None,
    as_of: Annotated[
        bool,
        typer.Option(
            "--as-of-backup",
            help="Also overwrite newer records, and restore records deleted since the backup.",
        ),
    ] = False,
    parallel: Parallel = 4,
) -> None:
    """Write the records of a backup into the running cluster, which may have any number of peers.

    Newer records in the cluster are kept, and records deleted since the backup stay deleted. The
    backup is verified first; if it has a problem, nothing is written. The command may be repeated.
    """
    from dstash.backup.restore import Restore

    run = invocation.of(ctx)
    began = time.monotonic()
    wanted = index or []
    for name in wanted:
        check_index(name)
    manifest, expected = _usable(directory, wanted)
    with _cluster(run) as cluster, progress_bar("backup restore", expected) as bar:
        is_same = cluster.topology().cluster_id == manifest.cluster_id
        rule = as_of_backup if as_of else into_same if is_same else into_other
        folder = Folder(directory)

        def progress(job: Restore) -> None:
            bar(job.fates.total())

        fates = _finish(Restore(folder, manifest, cluster, rule, wanted, parallel, progress))
    if run.as_json:
        seconds = round(time.monotonic() - began, 3)
        output.json_line({fate.value: fates[fate] for fate in Fate} | {"seconds": seconds})
    text = f"restored {directory} in {time.monotonic() - began:.1f} s: {_counts(fates)}"
    if fates[Fate.CORRUPT]:
        raise PartlyFailed(text)
    output.message(text)


def _finish(job: Restore) -> Counter[Fate]:
    try:
        return job.run()
    except KeyboardInterrupt:
        so_far = _counts(job.fates)
        raise Interrupted(f"interrupted; {so_far}; the same command may be run again") from None


@contextmanager
def _cluster(run: Invocation) -> Iterator[LiveCluster]:
    from dstash.backup.source import LiveCluster

    settings = run.settings()
    with run.client() as client:
        yield LiveCluster(
            client,
            Level.parse(settings.write),
            run.long_timeout(_CALL_TIMEOUT_S) or settings.timeout,
        )


def _usable(directory: Path, wanted: Sequence[str]) -> tuple[Manifest, int]:
    """Return the manifest of an intact backup, and the number of its records in those indexes."""
    found = _verified(Folder(directory))
    manifest = _expect_intact(directory, found)
    indexes = found.indexes()
    unknown = [name for name in wanted if name not in indexes]
    if unknown:
        names = ", ".join(indexes) or "none"
        raise UsageError(f"{directory} has no index {unknown[0]!r}; its indexes are: {names}")
    return manifest, sum(
        indexes[name].records + indexes[name].tombstones for name in wanted or indexes
    )


def _verified(folder: Folder) -> Findings:
    total = None
    with suppress(BackupError):  # verify reports it
        total = folder.manifest().records
    with progress_bar("backup verify", total) as bar:
        try:
            return verify(folder, lambda found: bar(found.read))
        except KeyboardInterrupt:
            raise Interrupted("interrupted; nothing was changed") from None


def _expect_intact(directory: Path, found: Findings) -> Manifest:
    *first, last = found.problems or [""]
    for text in first:
        output.message(text)
    if found.problems or found.manifest is None:
        raise BackupError(last)
    return found.manifest


_COLUMNS: Final = ("index", "records", "deleted", "bytes")


def _rows(found: Findings) -> list[tuple[str, int, int, int]]:
    return [
        (name, count.records, count.tombstones, count.bytes)
        for name, count in found.indexes().items()
    ]


def _summary(directory: Path, manifest: Manifest) -> dict[str, Any]:
    names = ("cluster", "cluster_id", "epoch", "began", "ended")
    totals = ("records", "tombstones", "moving")
    values = {name: getattr(manifest, name) for name in (*names, *totals)}
    return {"directory": str(directory)} | values | {"bytes": manifest.weight}


def _saved(directory: Path, manifest: Manifest, kept: int, seconds: float) -> str:
    earlier = f", {kept} of {PIECES} pieces by an earlier save" if kept else ""
    moving = (
        f"; {manifest.moving} partitions changed each time they were copied"
        if manifest.moving
        else ""
    )
    return f"saved {_description(manifest)} into {directory} in {seconds:.1f} s{earlier}{moving}"


def _description(manifest: Manifest) -> str:
    live = manifest.records - manifest.tombstones
    deleted = f" and {manifest.tombstones:,} deletions" if manifest.tombstones else ""
    return (
        f"{live:,} records{deleted} of cluster '{manifest.cluster}' ({size(manifest.weight)}, "
        f"{manifest.began[:19]}Z)"
    )


_FATE_TEXTS: Final = {
    Fate.STORED: "stored",
    Fate.DELETED: "deleted",
    Fate.UNCHANGED: "unchanged",
    Fate.NEWER_KEPT: "newer kept",
    Fate.DELETED_KEPT: "deleted since and kept deleted",
    Fate.EXPIRED: "expired since",
    Fate.CORRUPT: "left corrupt (--as-of-backup overwrites them)",
}


def _counts(fates: dict[Fate, int]) -> str:
    """Return the counts as text, without those that are 0."""
    parts = [f"{fates[fate]:,} {text}" for fate, text in _FATE_TEXTS.items() if fates.get(fate)]
    return ", ".join(parts) or "nothing to restore"
