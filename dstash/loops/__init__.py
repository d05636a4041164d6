"""Loops over many keys and records: compiled where that was possible, else in Python.

``pure.py`` describes them. ``DSTASH_PURE=1`` in the environment selects it in any case.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import TYPE_CHECKING


def _choose() -> ModuleType:
    if os.environ.get("DSTASH_PURE") != "1":
        try:
            return importlib.import_module("dstash.loops._compiled")
        except ImportError:  # no compiler was there when dstash was installed
            pass
    return importlib.import_module("dstash.loops.pure")


if TYPE_CHECKING:
    from dstash.loops import pure as _chosen
else:
    _chosen = _choose()

#: Whether the compiled functions are used.
IS_COMPILED: bool = _chosen.__name__.endswith("._compiled")

add_pairs = _chosen.add_pairs
are_plain = _chosen.are_plain
are_sound = _chosen.are_sound
join_heads = _chosen.join_heads
join_live = _chosen.join_live
locate = _chosen.locate
pack_keys = _chosen.pack_keys
pick = _chosen.pick
put_at = _chosen.put_at
read_heads = _chosen.read_heads
seal = _chosen.seal
sort_places = _chosen.sort_places
sum_hashes = _chosen.sum_hashes
total_size = _chosen.total_size
unchecked = _chosen.unchecked


def description() -> str:
    """Return in words which functions are used."""
    return "compiled loops" if IS_COMPILED else "loops in Python"
