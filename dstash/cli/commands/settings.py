"""The commands ``dstash config``: check settings files, show the settings, and print examples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from dstash.cli import invocation
from dstash.cli.console import output
from dstash.config import (
    ClientSettings,
    Layered,
    PeerSettings,
    SharedSettings,
    keys_of,
    layered,
)
from dstash.config.fields import Secret
from dstash.config.rules import rules_of
from dstash.errors import ConfigError
from dstash.wire.curve import KeyPair

app = typer.Typer(help="Check settings, and show the origin of each.", no_args_is_help=True)


class Kind(StrEnum):
    """The kind of settings in a file."""

    PEER = "peer"
    CLIENT = "client"


_MODELS: dict[Kind, type[SharedSettings]] = {Kind.PEER: PeerSettings, Kind.CLIENT: ClientSettings}

KindOption = Annotated[
    Kind | None, typer.Option("--kind", help="Kind of settings. Default: by the keys in the file.")
]


@app.command()
def check(
    ctx: typer.Context,
    named: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILE...", help="Settings file. Default: that of --config.", show_default=False
        ),
    ] = None,
    kind: KindOption = None,
) -> None:
    """Report every problem of settings files and of the environment."""
    run = invocation.of(ctx)
    wanted: Sequence[Path | None] = named or [run.config]
    found = {file: _problems(file, kind, run) for file in wanted}
    for file, wrong in found.items():
        _report(file, wrong, run)
    problems = [problem for wrong in found.values() for problem in wrong]
    for problem in problems[:-1]:
        output.message(problem)
    if problems:
        raise ConfigError(problems[-1])


@app.command()
def show(
    ctx: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Settings file. Default: that of --config."),
    ] = None,
    kind: KindOption = None,
) -> None:
    """Show every effective setting and its origin. Secrets are masked.

    If no setting names the peers of a client, it also shows where the client looks for them.
    """
    run = invocation.of(ctx)
    loaded = _load(file or run.config, kind, run)
    values = {key: _plain(getattr(loaded.settings, key)) for key in _keys(loaded)}
    origins = {key: loaded.origins.get(key, "default") for key in values}
    if isinstance(loaded.settings, ClientSettings) and (found := loaded.settings.fallback()):
        values[found.key] = _plain(found.value)
        origins[found.key] = f"fallback without peers and consul: {found.reason}"
    if run.as_json:
        output.json_line({key: {"value": values[key], "from": origins[key]} for key in values})
        return
    rows = [(key, _cell(value), origins[key]) for key, value in values.items()]
    output.table(("setting", "value", "from"), rows)


@app.command()
def example(
    ctx: typer.Context,
    kind: Annotated[
        Kind, typer.Argument(metavar="peer|client", help="Kind of settings.", show_default=False)
    ],
) -> None:
    """Print a settings file that explains every setting and its default."""
    run = invocation.of(ctx)
    text = files("dstash.config").joinpath("examples", f"{kind}.toml").read_text()
    if run.as_json:
        output.json_line({"kind": kind.value, "text": text})
        return
    output.line(text.removesuffix("\n"))


def _problems(file: Path | None, kind: Kind | None, run: invocation.Invocation) -> list[str]:
    try:
        _check_keys(_load(file, kind, run).settings)
    except ConfigError as error:
        problems: list[str] = error.details.get("problems", [str(error)])
        return problems
    return []


def _check_keys(settings: SharedSettings) -> None:
    if settings.cert_file and settings.key_file:
        KeyPair.load(settings.cert_file, settings.key_file)


def _report(file: Path | None, problems: list[str], run: invocation.Invocation) -> None:
    name = str(file or "environment")
    if run.as_json:
        output.json_line({"file": name, "ok": not problems, "problems": problems})
    elif not problems:
        output.line(f"{name}: ok")


def _load(
    file: Path | None, kind: Kind | None, run: invocation.Invocation
) -> Layered[SharedSettings]:
    keys = keys_of(file) if file else set[str]()
    kind = kind or _guess(file, keys)
    flags: dict[str, Any] = dict(run.flags) if kind is Kind.CLIENT else {}
    if kind is Kind.PEER and "data_dir" not in keys and "DSTASH_DATA_DIR" not in os.environ:
        flags["data_dir"] = "DATA_DIR"  # dstash-peer takes it as its first argument
    loaded: Layered[SharedSettings] = layered(_MODELS[kind], file, flags, os.environ)
    return loaded


def _guess(file: Path | None, keys: set[str]) -> Kind:
    """Return the kind of settings in a file: by its keys, else by its name."""
    peer, client = (len(keys & rules_of(_MODELS[kind]).keys()) for kind in Kind)
    if peer == client:
        return Kind.PEER if file is not None and "peer" in file.name else Kind.CLIENT
    return Kind.PEER if peer > client else Kind.CLIENT


def _keys(loaded: Layered[SharedSettings]) -> list[str]:
    return sorted(rules_of(type(loaded.settings)))


def _plain(value: Any) -> Any:
    if isinstance(value, Secret):
        return str(value)  # asterisks
    return str(value) if isinstance(value, Path | StrEnum) else value


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return ", ".join(value) if isinstance(value, list) else str(value)
