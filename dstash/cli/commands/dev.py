"""The commands ``dstash dev``: a cluster for development on this machine, without other servers."""

from __future__ import annotations

import errno
import functools
import json
import os
import shlex
import shutil
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dstash.cli import invocation
from dstash.cli.console import output
from dstash.cli.processes import STATE_FILE, DevCluster, Process, stop
from dstash.config.client import DEV_MEMBERSHIP
from dstash.errors import DStashError, TimedOut

if TYPE_CHECKING:
    from urllib.request import OpenerDirector

app = typer.Typer(help="Run a cluster for development on this machine.", no_args_is_help=True)

DEFAULT_ROOT: Final = DEV_MEMBERSHIP.parent
_DEFAULT_PEERS: Final = 3
_FIRST_PORT: Final = 5000
_FIRST_HTTP_PORT: Final = 5100
_STOP_TIMEOUT_S: Final = 10.0
_POLL_INTERVAL_S: Final = 0.05
_MAX_STATUS_BYTES: Final = 1 << 20
_IN_USE: Final = os.strerror(errno.EADDRINUSE)

Root = Annotated[Path, typer.Option("--dir", metavar="DIR", help="Directory of its data and logs.")]


@app.command()
def up(
    ctx: typer.Context,
    number: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--peers",
            min=1,
            max=32,
            help="Number of peers. Default: those of the last dev up; 3 for a new cluster.",
            show_default=False,
        ),
    ] = None,
    root: Root = DEFAULT_ROOT,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Fail if they are not ready by then.")
    ] = 60,
) -> None:
    """Start peers, and return when all of them are ready. Peers that already run are kept."""
    cluster = DevCluster(root.absolute())
    with cluster.locked():
        running = _up(cluster, number, wait)
    _report(ctx, cluster, running)


@app.command()
def down(
    ctx: typer.Context,
    root: Root = DEFAULT_ROOT,
    purge: Annotated[bool, typer.Option("--purge", help="Remove all data as well.")] = False,
) -> None:
    """Stop the peers. Their data is kept for the next dev up."""
    run = invocation.of(ctx)
    cluster = DevCluster(root.absolute())
    if not (cluster.root / STATE_FILE).exists():
        if run.as_json:
            output.json_line({"stopped": 0, "purged": False})
        output.message(f"there is no dev cluster in {root}")
        return
    with cluster.locked():
        running = [process for process in cluster.load() if process.runs()]
        for process in stop(running, _STOP_TIMEOUT_S):
            output.message(f"{process.id} did not end within {_STOP_TIMEOUT_S:.0f} s; killed")
        if purge:
            _purge(cluster)
    if run.as_json:
        output.json_line({"stopped": len(running), "purged": purge})
    output.message(f"stopped {len(running)} peers" + (f" and removed {root}" if purge else ""))


@app.command()
def status(ctx: typer.Context, root: Root = DEFAULT_ROOT) -> None:
    """Show the processes of the dev cluster."""
    cluster = DevCluster(root.absolute())
    columns = ("id", "pid", "address", "http", "state", "log")
    rows = [
        (
            peer.id,
            str(peer.pid),
            peer.address,
            peer.http,
            _state(cluster, peer),
            str(cluster.log(peer.id)),
        )
        for peer in cluster.load()
    ]
    if invocation.of(ctx).as_json:
        peers = [dict(zip(columns, row, strict=True)) for row in rows]
        output.json_line([peer | {"pid": int(peer["pid"])} for peer in peers])
    elif rows:
        output.table(columns, rows)
    if not rows:
        output.message(f"there is no dev cluster in {root}")


def _up(cluster: DevCluster, number: int | None, wait: float) -> list[Process]:
    """Start the peers that do not run, and return all once they are ready.

    A peer that was removed from the cluster would wait for ``dstash cluster add``, never ready. It
    only notes that when it is started again; then this starts over without it.
    """
    while True:
        known = {process.id: process for process in cluster.load()}
        removed = {peer for peer in known if cluster.is_removed(peer)}
        kept = len(known) - len(removed)
        wanted = number or kept or _DEFAULT_PEERS
        _explain_number(wanted, kept)
        options = _options(cluster, wanted)
        names = _names(max(wanted, kept), removed)
        running = [
            _start(cluster, peer, known.get(peer), ports, options)
            for peer, ports in zip(names, _ports(known), strict=False)
        ]
        running = _await_ready(cluster, running, options, wait)
        removed_now = [peer for peer in running if cluster.is_removed(peer.id)]
        if not removed_now:
            return running
        stop(removed_now, _STOP_TIMEOUT_S)
        for peer in removed_now:
            output.message(f"{peer.id} was removed from the cluster; it is not started any more")


def _explain_number(wanted: int, known: int) -> None:
    """Say what happens if another number of peers is wanted than there is."""
    if known and wanted < known:
        output.message(
            f"there are {known} peers, not {wanted}, and all are started: they are members and "
            "hold data. To have fewer, use dstash cluster remove, or dstash dev down --purge"
        )
    elif known and wanted > known:
        output.message(f"there are {known} peers, not {wanted}: more are added")


def _names(number: int, removed: Collection[str]) -> list[str]:
    """Return the names of the first peers, without those that were removed from the cluster."""
    names = (f"peer{n}" for n in count(1))
    return list(islice((name for name in names if name not in removed), number))


def _options(cluster: DevCluster, number: int) -> list[str]:
    options = ["--membership", "local", "--local-dir", str(cluster.membership)]
    return [*options, "--min-peers", str(number), "--log-format", "json"]


def _ports(known: dict[str, Process]) -> Iterator[tuple[int, int]]:
    taken = {port for peer in known.values() for port in (peer.port, peer.http_port)}
    for n in range(1000):
        ports = (_FIRST_PORT + n, _FIRST_HTTP_PORT + n)
        if taken.isdisjoint(ports):
            yield ports


def _start(
    cluster: DevCluster,
    peer: str,
    before: Process | None,
    preferred: tuple[int, int],
    options: Sequence[str],
) -> Process:
    """Start a peer unless it runs: on its earlier ports, its preferred ports, or any free ports."""
    if before is not None and before.runs():
        return before
    port, http_port = (before.port, before.http_port) if before else preferred
    return cluster.start(peer, _free(port), _free(http_port), options)


def _free(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        chosen: int = probe.getsockname()[1]
        return chosen


def _await_ready(
    cluster: DevCluster, processes: Sequence[Process], options: Sequence[str], wait: float
) -> list[Process]:
    """Return the peers once all of them are ready, or were removed from the cluster."""
    deadline = time.monotonic() + wait
    peers = list(processes)
    while True:
        peers = [peer if peer.runs() else _start_again(cluster, peer, options) for peer in peers]
        late = [
            peer.id for peer in peers if not _is_ready(peer) and not cluster.is_removed(peer.id)
        ]
        if not late:
            return peers
        if time.monotonic() > deadline:
            names = ", ".join(late)
            raise TimedOut(f"not ready within {wait:g} s: {names}; logs: {cluster.root}", advice="")
        time.sleep(_POLL_INTERVAL_S)


def _start_again(cluster: DevCluster, process: Process, options: Sequence[str]) -> Process:
    """Start a peer on other ports if another process took one of its ports in the meantime."""
    port, http_port = _free(process.port), _free(process.http_port)
    reason = _last_log_line(cluster, process)
    # The port may be free again by now, so look at the log, too.
    if (port, http_port) == (process.port, process.http_port) and _IN_USE not in reason:
        raise DStashError(f"{process.id} ended: {reason}")
    return cluster.start(process.id, port, http_port, options)


@functools.cache
def _direct() -> OpenerDirector:
    """Return what opens URLs without the proxy that the environment may name."""
    from urllib.request import ProxyHandler, build_opener  # slow to load

    return build_opener(ProxyHandler({}))


def _is_ready(process: Process) -> bool:
    # Not /readyz: a foreign peer may answer there if it took the port first.
    try:
        with _direct().open(f"{process.http}/status", timeout=1) as answer:
            status = json.loads(answer.read(_MAX_STATUS_BYTES))
    except (OSError, ValueError):
        return False  # not listening yet, or not a peer
    return bool(status.get("pid") == process.pid and status.get("ready"))


def _last_log_line(cluster: DevCluster, process: Process) -> str:
    log = cluster.log(process.id)
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return f"{lines[-1] if lines else 'no log output'} (log: {log})"


def _state(cluster: DevCluster, process: Process) -> str:
    if not process.runs():
        return "removed" if cluster.is_removed(process.id) else "stopped"
    return "ready" if _is_ready(process) else "starting"


def _purge(cluster: DevCluster) -> None:
    """Remove the files that ``dev up`` created, and no others."""
    for process in cluster.load():
        shutil.rmtree(cluster.data(process.id), ignore_errors=True)
        cluster.log(process.id).unlink(missing_ok=True)
    shutil.rmtree(cluster.membership, ignore_errors=True)
    for name in (STATE_FILE, "dev.lock"):
        (cluster.root / name).unlink(missing_ok=True)
    if not any(cluster.root.iterdir()):
        cluster.root.rmdir()


def _report(ctx: typer.Context, cluster: DevCluster, processes: Sequence[Process]) -> None:
    peers = ",".join(process.address for process in processes)
    if invocation.of(ctx).as_json:
        output.json_line({"peers": peers.split(","), "dir": str(cluster.root)})
        return
    output.message(f"{len(processes)} peers are ready; data and logs are in {cluster.root}")
    if cluster.membership == DEV_MEMBERSHIP.absolute():
        output.message("dstash in this directory uses them; try: dstash put myIndex myKey myValue")
    output.message(f"dashboard: {processes[0].http}/")
    output.message("in other directories, run:")
    output.line(f"export DSTASH_PEERS={shlex.quote(peers)}")
