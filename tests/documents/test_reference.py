"""docs/api.md, docs/cli.md and docs/cli-json.md are up to date with the code."""

from __future__ import annotations

import pytest

from tests.documents.blocks import ROOT
from tests.documents.reference import PAGES


@pytest.mark.parametrize("page", PAGES)
def test_generated_page_is_up_to_date(page: str) -> None:
    assert (ROOT / page).read_text() == PAGES[page](), "run: make docs"
