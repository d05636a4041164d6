"""The documentation site shows the structure that the pages have."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.documents.blocks import ROOT, pages

_ITEM = re.compile(r"( *)(?:[-*]|\d+\.) ")
#: The indentation by which mkdocs recognises the items of a nested list, in spaces.
_NESTING = 4


def misplaced(text: str) -> Iterator[str]:
    """Yield the list items that mkdocs shows as items of another list."""
    is_code = False
    for line in text.splitlines():
        is_code ^= line.lstrip().startswith("```")
        found = _ITEM.match(line)
        if found is not None and not is_code and len(found[1]) % _NESTING:
            yield line


@pytest.mark.parametrize("page", pages())
def test_nested_items_are_indented_by_four_spaces(page: str) -> None:
    assert list(misplaced((ROOT / page).read_text())) == []


def test_item_with_other_indentation_is_found() -> None:
    text = "1. a\n   - b\n    - c\n```yaml\n  - d\n```\n"
    assert list(misplaced(text)) == ["   - b"]
