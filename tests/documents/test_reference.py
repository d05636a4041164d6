"""docs/api.md, docs/cli.md and docs/cli-json.md are up to date with the code."""

from __future__ import annotations

import re

import pytest

import dstash
from tests.documents.blocks import ROOT
from tests.documents.reference import PAGES


def test_documented_names_are_names_of_the_package() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    classes = re.findall(r"^### (\w+)$", page, flags=re.M)
    errors = re.findall(r"^\| `(\w+)` \|", page, flags=re.M)
    assert {"Client", "Admin", "TypeRegistry"} <= set(classes)
    assert "TimedOut" in errors
    for name in (*classes, *errors):
        assert name in dstash.__all__
        assert getattr(dstash, name).__name__ == name


@pytest.mark.parametrize("page", PAGES)
def test_generated_page_is_up_to_date(page: str) -> None:
    assert (ROOT / page).read_text() == PAGES[page](), "run: make docs"
