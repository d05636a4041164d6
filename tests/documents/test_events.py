"""The table of log events in docs/operations.md lists those of the code."""

from __future__ import annotations

import re

from dstash import events
from tests.documents.blocks import ROOT

NAMES = {name: text for name, text in vars(events).items() if name.isupper()}


def test_table_of_the_log_lists_the_events_of_the_code() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    table = page.partition("\n## The log\n")[2].partition("\n## ")[0]
    listed = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.M)))
    assert sorted(listed) == sorted(NAMES.values())


def test_each_event_is_logged_somewhere() -> None:
    code = "\n".join(
        file.read_text() for file in (ROOT / "dstash").rglob("*.py") if file.name != "events.py"
    )
    for name in NAMES:
        assert re.search(rf"\bevents\.{name}\b", code), name
