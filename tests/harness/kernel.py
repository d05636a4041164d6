"""What the kernel of this machine supports, by its version."""

from __future__ import annotations

import platform
import re
from typing import Final

HAS_TIME_SLICES: Final = tuple(map(int, re.findall(r"\d+", platform.release())[:2])) >= (6, 12)
