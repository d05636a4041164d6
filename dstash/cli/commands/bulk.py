"""The commands ``dstash import`` and ``dstash export``: whole files, in bounded memory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dstash.cli import invocation
from dstash.cli.arguments import STDIN, IndexName, IntKeys, Ttl
from dstash.cli.batches import BadLine, Importer, OnError
from dstash.cli.console import output
from dstash.cli.console.progress import progress_bar
from dstash.cli.console.skipped import SkippedValues
from dstash.cli.files import Source, expect_file, source, target
from dstash.cli.formats import Columns, Format, format_of, read_rows, writer
from dstash.cli.formats.delimited import parse_delimiter
from dstash.cli.invocation import Interrupted, PartlyFailed
from dstash.errors import DStashError, UndecodableValue, UsageError
from dstash.limits import check_index, check_ttl
from dstash.types import AnyOnError
from dstash.wire.keys import Key, show_key
from dstash.wire.values import Undecodable

if TYPE_CHECKING:
    from dstash.client.blocking import Client

#: The default timeout of calls is too short for a large batch.
_BATCH_TIMEOUT_S: Final = 60.0

FileName = Annotated[str, typer.Argument(metavar="FILE|-", help="A file; - is stdin or stdout.")]
FormatOption = Annotated[
    Format | None, typer.Option("--format", help="Default: by the suffix of the file.")
]
KeyColumn = Annotated[
    str | None,
    typer.Option(
        "--key", metavar="COLUMN", help="CSV, TSV, parquet: column of the key. Default: the first."
    ),
]
ValueColumn = Annotated[
    str | None,
    typer.Option(
        "--value",
        metavar="COLUMN",
        help="CSV, TSV, parquet: column of the value. Default: all other columns.",
    ),
]


def _parse_delimiter(text: str) -> str:
    try:
        return parse_delimiter(text)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


Delimiter = Annotated[
    str | None,
    typer.Option(
        "--delimiter",
        metavar="CHAR",
        parser=_parse_delimiter,
        help="CSV, TSV: the character between cells, or tab. Default: by the header; , for export.",
    ),
]


def import_(
    ctx: typer.Context,
    index: IndexName,
    file: FileName,
    form: FormatOption = None,
    key: KeyColumn = None,
    value: ValueColumn = None,
    delimiter: Delimiter = None,
    as_int: IntKeys = False,
    ttl: Ttl = None,
    on_error: Annotated[
        OnError, typer.Option(help="Reaction to a record that cannot be stored.")
    ] = OnError.STOP,
) -> None:
    """Store the records of a file; a key that exists gets the new value.

    jsonl: one {"key": ..., "value": ..., "ttl": seconds} per line; ttl is optional.
    csv, tsv: UTF-8 with a header line. msgpack: maps like those of jsonl. parquet: needs the extra
    parquet. A name that ends in .gz or .zst is decompressed; .zst needs Python 3.14 or the extra
    parquet. With --on-error skip, bad records are skipped and the exit code is 9.
    """
    check_index(index)
    check_ttl(ttl)
    expect_file(file)
    kind = format_of(file, form)
    noun = "record" if kind in (Format.MSGPACK, Format.PARQUET) else "line"
    run = invocation.of(ctx)
    began = time.monotonic()
    name = "stdin" if file == STDIN else file
    columns = Columns(key, value, as_int, delimiter)
    with source(file) as origin, run.client() as client:
        importer = Importer(client, index, ttl, on_error, noun, run.long_timeout(_BATCH_TIMEOUT_S))
        total = None if kind is Format.PARQUET else origin.size  # parquet is not read in order
        rows = read_rows(kind, origin.stream, columns)
        with (
            _progress_in_errors(importer, name),
            progress_bar(f"import {index}", total, _bytes_done(origin, importer)) as bar,
        ):
            importer.run(rows, bar)
    seconds = time.monotonic() - began
    if run.as_json:
        output.json_line({"index": index} | _counts(importer) | {"seconds": round(seconds, 3)})
    output.message(f"imported {_rate(importer.stored, seconds)} into index '{index}'")
    _expect_all(importer, name)


def export(
    ctx: typer.Context,
    index: IndexName,
    file: FileName,
    prefix: Annotated[str, typer.Option(help="Only keys with this prefix.")] = "",
    form: FormatOption = None,
    key: KeyColumn = None,
    value: ValueColumn = None,
    delimiter: Delimiter = None,
    with_ttl: Annotated[
        bool,
        typer.Option("--with-ttl", help="Also export the time to live. Slow: one request per key."),
    ] = False,
    on_error: Annotated[
        OnError, typer.Option(help="Reaction to a value that cannot be decoded or written.")
    ] = OnError.STOP,
) -> None:
    """Write the records of an index to a file that import can read.

    The file appears under its name only when it is complete; it replaces a regular file, whose mode
    it keeps. A symbolic link is followed; a device, a FIFO or a pipe is written to. The file has
    every record that a look-up at the level of --read would find. CSV and TSV turn every value into
    text, and parquet has a column for each name, if all values are maps with the same names. A name
    that ends in .gz or .zst is compressed. With --on-error skip, a value that cannot be decoded is
    left out, and the exit code is 9.
    """
    check_index(index)
    if os.path.isdir(file):
        expect_file(file)
    kind = format_of(file, form)
    run = invocation.of(ctx)
    began = time.monotonic()
    with run.client() as client, target(file) as destination:
        # Only for the progress bar, so the count of one replica is accurate enough.
        total = client.count(index, prefix, read="one") if sys.stderr.isatty() else None
        out = writer(kind, destination, Columns(key, value, delimiter=delimiter))
        number, skipped = 0, SkippedValues()
        with progress_bar(f"export {index}", total) as progress:
            for record_key, item, left in _records(client, index, prefix, with_ttl, on_error):
                if isinstance(item, Undecodable):
                    skipped.add(record_key, item.reason)
                    continue
                try:
                    out.write(record_key, item, left)
                except UsageError as error:
                    if "key" in error.details:  # of an earlier record of the same row group
                        raise
                    if on_error is OnError.STOP:
                        raise UsageError(f"key {show_key(record_key)}: {error}") from None
                    skipped.add(record_key, str(error))
                    continue
                number += 1
                progress(number)
        out.finish()
    seconds = time.monotonic() - began
    if run.as_json and file != STDIN:  # otherwise stdout has the records
        output.json_line({"index": index, "exported": number, "seconds": round(seconds, 3)})
    output.message(f"exported {_rate(number, seconds)} from index '{index}'")
    skipped.expect_none()


def _records(
    client: Client, index: str, prefix: str, with_ttl: bool, on_error: OnError
) -> Iterator[tuple[Key, Any, float | None]]:
    mode: AnyOnError = "raise" if on_error is OnError.STOP else "return"
    try:
        for key, value in client.items(index, prefix, on_error=mode):
            try:
                yield key, value, client.ttl(index, key) if with_ttl else None
            except KeyError:
                continue  # it expired after the scan returned it
    except UndecodableValue as error:
        error.details["advice"] = "; --on-error skip leaves such values out"
        raise


def _bytes_done(origin: Source, importer: Importer) -> Callable[[], int]:
    # More has been read than stored.
    return lambda: int(origin.position() * importer.settled())


@contextmanager
def _progress_in_errors(importer: Importer, file: str) -> Iterator[None]:
    """Add to every error of an import how many records have been stored."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {_so_far(importer)}") from None
    except PartlyFailed as error:
        raise PartlyFailed(f"{file}: {error}; {_so_far(importer)}") from None
    except BadLine as error:
        raise BadLine(f"{file}, {error}; {_so_far(importer)}") from None
    except UsageError as error:
        raise BadLine(f"{file}, {error}; {_so_far(importer)}") from None
    except (DStashError, OSError) as error:
        output.message(f"{file}: {_so_far(importer)}")
        raise error from None


def _so_far(importer: Importer) -> str:
    unconfirmed = (
        f", and possibly some of the next {importer.unconfirmed:,}" if importer.unconfirmed else ""
    )
    skipped = f", skipped {importer.skipped}" if importer.skipped.count else ""
    return f"stored {_counted(importer.stored)}{unconfirmed}{skipped}"


def _counts(importer: Importer) -> dict[str, int]:
    skipped, failed = importer.skipped.count, importer.failed.count
    return {"stored": importer.stored, "skipped": skipped, "failed": failed}


def _expect_all(importer: Importer, file: str) -> None:
    parts = (("skipped", importer.skipped), ("not stored", importer.failed))
    failures = [f"{verb} {lines}" for verb, lines in parts if lines.count]
    if failures:
        raise PartlyFailed(f"{file}: {'; '.join(failures)}")


def _rate(number: int, seconds: float) -> str:
    return f"{_counted(number)} in {seconds:.1f} s ({number / max(seconds, 1e-9):,.0f}/s)"


def _counted(number: int) -> str:
    return f"{number:,} {'record' if number == 1 else 'records'}"
