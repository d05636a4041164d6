"""Whether the kernel knows of turns, by its number."""

from __future__ import annotations

import platform
import re
from typing import Final

KERNEL_KNOWS: Final = tuple(map(int, re.findall(r"\d+", platform.release())[:2])) >= (6, 12)
