"""The commands ``dstash cert``: key pairs for CURVE."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dstash.cli import invocation
from dstash.cli.console import output
from dstash.errors import ConfigError
from dstash.wire.curve import KeyPair, load_public

app = typer.Typer(help="Create keys for encrypted connections.", no_args_is_help=True)


@app.command()
def new(
    ctx: typer.Context,
    name: Annotated[
        Path,
        typer.Argument(
            metavar="NAME", help="Creates NAME.key (public) and NAME.key_secret (private)."
        ),
    ],
) -> None:
    """Create a key pair, and print the public key for authorised_keys and server_key."""
    if not name.parent.is_dir():
        raise ConfigError(f"directory {name.parent} does not exist")
    cert_file, key_file = Path(f"{name}.key"), Path(f"{name}.key_secret")
    if cert_file.exists():
        raise ConfigError(f"{cert_file} already exists; a key is not overwritten")
    keys = KeyPair.generate()
    keys.save(cert_file, key_file)
    if invocation.of(ctx).as_json:
        files = {"cert_file": str(cert_file), "key_file": str(key_file)}
        output.json_line({"public": keys.public} | files)
        return
    output.line(keys.public)
    output.message(f"cert_file = {str(cert_file)!r}, key_file = {str(key_file)!r}")


@app.command()
def show(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="NAME.key or NAME.key_secret.")],
) -> None:
    """Print the public key in a file."""
    public = load_public(file)
    if invocation.of(ctx).as_json:
        output.json_line({"public": public})
    else:
        output.line(public)
