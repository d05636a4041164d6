"""The tests that docs/consistency.md names for its promises: each of them exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs" / "consistency.md").read_text()

_ITEM = re.compile(r"^(\d+)\. (.*(?:\n    .*)*)", re.MULTILINE)
ITEMS: Final = dict(_ITEM.findall(PAGE[PAGE.index("\n## Tests\n") :]))


def named_in(text: str) -> list[str]:
    """Return the names between backticks."""
    return re.findall(r"`([^`]+)`", text)


def definitions(files: list[Path]) -> set[str]:
    """Return the names of the tests, and of the classes of tests, in files."""
    texts = [file.read_text() for file in files]
    return {
        name for text in texts for name in re.findall(r"^ *(?:def|class) ([tT]est\w+)", text, re.M)
    }


@pytest.mark.parametrize("number", ITEMS)
def test_named_tests_exist(number: str) -> None:
    names = named_in(ITEMS[number])
    paths = [ROOT / name for name in names if "/" in name]
    assert [str(path) for path in paths if not path.exists()] == []
    # "same file" refers to a file of an earlier item.
    earlier = [ROOT / name for text in ITEMS.values() for name in named_in(text) if "/" in name]
    files = [
        path for path in (earlier if "same file" in ITEMS[number] else paths) if path.is_file()
    ]
    known = definitions(files)
    for name in names:
        if name.lower().startswith("test_") or name.startswith("Test"):
            begin = name.removesuffix("...")
            is_short = begin != name
            found = begin in known or (is_short and any(test.startswith(begin) for test in known))
            assert found, f"{name} is in none of {[str(file) for file in files]}"


def test_every_promise_has_its_item_and_every_item_its_promise() -> None:
    promises = set(re.findall(r"\[(\d+)\]", PAGE[: PAGE.index("\n## Tests\n")]))
    assert promises == set(ITEMS)
