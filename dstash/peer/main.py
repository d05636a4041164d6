"""``dstash-peer``: the daemon's command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer

from dstash import log
from dstash.config import load_peer, unknown_variables
from dstash.errors import DStashError, UsageError
from dstash.peer.daemon import Daemon
from dstash.peer.supervision.allocator import keep_freed_memory

_log = structlog.get_logger("dstash.peer")

#: How long (seconds) a thread may run while another thread waits for the interpreter.
_SWITCH_INTERVAL_S = 0.0005

#: Only the owner may access files of a peer, regardless of the umask of its parent.
_UMASK = 0o077

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def serve(
    data_dir: Annotated[str | None, typer.Argument(help="where the data is kept")] = None,
    bind: Annotated[str | None, typer.Argument(help="address to listen on")] = None,
    port: Annotated[int | None, typer.Argument(help="port to listen on; 0 for any")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file, see conf/peer.toml")] = None,
    id: Annotated[str | None, typer.Option(help="id; default: the directory's name")] = None,
    cluster: Annotated[str | None, typer.Option(help="name of the cluster")] = None,
    zone: Annotated[str | None, typer.Option(help="zone; default: the machine's name")] = None,
    weight: Annotated[float | None, typer.Option(help="share of the data, 1 = normal")] = None,
    membership: Annotated[str | None, typer.Option(help="local or consul")] = None,
    local_dir: Annotated[str | None, typer.Option(help="directory of the membership")] = None,
    consul: Annotated[str | None, typer.Option(help="URL of Consul; implies consul")] = None,
    replicas: Annotated[int | None, typer.Option(help="copies of each key (N)")] = None,
    min_peers: Annotated[int | None, typer.Option(help="members needed to serve")] = None,
    join: Annotated[str | None, typer.Option(help="auto or manual")] = None,
    durability: Annotated[str | None, typer.Option(help="sync, interval or none")] = None,
    http_port: Annotated[int | None, typer.Option(help="health and metrics; 0 for any")] = None,
    advertise: Annotated[str | None, typer.Option(help="host[:port] others connect to")] = None,
    curve: Annotated[bool | None, typer.Option("--curve", help="encrypt with CURVE")] = None,
    cert_file: Annotated[str | None, typer.Option(help="public key file")] = None,
    key_file: Annotated[str | None, typer.Option(help="secret key file")] = None,
    authorised_keys: Annotated[str | None, typer.Option(help="list of authorised keys")] = None,
    log_format: Annotated[str | None, typer.Option(help="console or json")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error")] = None,
) -> None:
    """Run one peer: its data in DATA_DIR, listening on BIND:PORT."""
    given = locals()
    os.umask(_UMASK)
    file = given.pop("config")
    flags: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if consul is not None:
        flags.setdefault("membership", "consul")
    settings = load_peer(file, flags, os.environ)
    log.configure(settings.log_format, settings.log_level)
    log.adopt_hooks()
    for name in unknown_variables(os.environ):
        structlog.get_logger("dstash.peer").warning(
            "unknown variable in the environment", name=name
        )
    # With the default interval, a commit of thousands of records would delay look-ups too long.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    keep_freed_memory()
    Daemon(settings).run()


def main() -> None:
    """Run the daemon; every error ends in one line on stderr and its exit status."""
    sys.exit(_run())


def _run() -> int:
    try:
        return int(app(prog_name="dstash-peer", standalone_mode=False) or 0)
    except DStashError as error:
        return _say(str(error), error.exit_code)
    except typer.TyperException as error:
        text = f"{error.format_message()} (dstash-peer --help lists what there is)"
        return _say(text, UsageError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", 130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}", 1)
    except Exception as error:
        _log.exception("the peer has failed because of a defect")
        return _say(f"internal error: {type(error).__name__}: {error}", 1)


def _say(text: str, status: int) -> int:
    log.say(f"dstash-peer: {text}")
    log.flush()
    return status
