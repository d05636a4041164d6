"""The generated pages, and the functions that generate them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.documents.api import api
from tests.documents.commands import cli, json_forms

PAGES: Final[dict[str, Callable[[], str]]] = {
    "docs/api.md": api,
    "docs/cli.md": cli,
    "docs/cli-json.md": json_forms,
}
