"""The generated files, and the functions that generate them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.documents.api import api
from tests.documents.blocks import ROOT
from tests.documents.commands import cli, json_forms

PAGES: Final[dict[str, Callable[[], str]]] = {
    "docs/api.md": api,
    "docs/cli.md": cli,
    "docs/cli-json.md": json_forms,
    # The package contains the example settings, for installations without the sources.
    "dstash/config/examples/peer.toml": (ROOT / "conf" / "peer.toml").read_text,
    "dstash/config/examples/client.toml": (ROOT / "conf" / "client.toml").read_text,
}
