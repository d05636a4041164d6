"""Write the reference pages:   python -m tests.documents   (``make docs``)."""

from __future__ import annotations

from tests.documents.blocks import ROOT
from tests.documents.reference import PAGES

for page, make in PAGES.items():
    (ROOT / page).write_text(make())
