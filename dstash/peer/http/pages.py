"""The pages of the dashboard: its files, and the data that they request once a second.

The files are served as they are; they need no build step and no other host. One answer serves all
browsers for half a second, so that its cost does not grow with their number.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from dstash.peer.core import PeerCore
from dstash.peer.http.dashboard import state
from dstash.peer.http.dashboard.alerts import alerts
from dstash.peer.http.dashboard.state import Known
from dstash.peer.http.server import Answer, Page
from dstash.peer.server import PeerServer, wall
from dstash.peer.telemetry.history import KEPT

_FILES: Final = Path(__file__).parent / "dashboard" / "static"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
#: How long (seconds) to wait for the socket's thread.
_CALL_TIMEOUT_S: Final = 1.0
#: How long (seconds) an answer is reused.
_MAX_AGE_S: Final = 0.5


class Dashboard:
    """The pages of one peer."""

    def __init__(self, server: PeerServer, core: PeerCore) -> None:
        self._server = server
        self._core = core

    def pages(self) -> dict[str, Page]:
        """Return the pages by path."""
        files = {f"/{file.name}": _file(file) for file in _FILES.iterdir() if file.suffix in _TYPES}
        return {
            **files,
            "/": files["/index.html"],
            "/dashboard": files["/index.html"],
            "/dashboard/cluster": _shared(self._cluster),
            "/dashboard/load": _shared(self._load),
        }

    def _cluster(self) -> Answer:
        known = self._known()
        if known is None:
            return Answer.json(200, self._hangs())
        shown = state.describe(known)
        shown["alerts"] = alerts(known, shown)
        shown["sets"] = state.shorten(shown["sets"])
        return Answer.json(200, shown)

    def _load(self) -> Answer:
        known = self._known()
        return Answer.json(200, {} if known is None else state.load(known, KEPT))

    def _hangs(self) -> dict[str, Any]:
        settings, quiet = self._core.settings, self._server.seconds_since_iteration()
        return state.unknown(settings.peer, settings.cluster, quiet)

    def _known(self) -> Known | None:
        return self._server.ask(self._look, _CALL_TIMEOUT_S)

    def _look(self) -> Known:
        """Copy the state of the core, on its own thread."""
        core, now = self._core, wall()
        core.observer.watch(now)
        sights = {
            peer: replace(sight, samples=sight.samples.copy())
            for peer, sight in core.observer.sights.items()
        }
        settings = core.settings
        return Known(
            settings.peer,
            settings.cluster,
            now,
            core.view,
            core.health.status(),
            core.history.since(0),
            sights,
        )


def _file(path: Path) -> Page:
    answer = Answer(200, path.read_bytes(), _TYPES[path.suffix])
    return lambda: answer


def _shared(page: Page) -> Page:
    """Return a page that reuses its last answer while that is new, for all threads."""
    lock = threading.Lock()
    kept: list[tuple[float, Answer]] = []

    def answer() -> Answer:
        with lock:
            if not kept or time.monotonic() - kept[0][0] > _MAX_AGE_S:
                kept[:] = [(time.monotonic(), page())]
            return kept[0][1]

    return answer
