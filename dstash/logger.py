"""Loggers for modules that a client loads too.

Peers and commands log through structlog. A program that only uses the client need not have it: its
events then go to the standard ``logging``, under the same names.
"""

from __future__ import annotations

import logging
import sys
from typing import Any


class Logger:
    """A logger that takes an event and its fields, like those of structlog."""

    def __init__(self, name: str) -> None:
        self._name = name

    def info(self, event: str, **fields: Any) -> None:
        """Log an event of normal operation."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Log an event that may need attention."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Log a failure; ``exc_info`` adds a traceback."""
        self._write("error", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Log a failure with the traceback of the exception that is being handled."""
        self._write("error", event, {"exc_info": True, **fields})

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        # Another thread may be importing it: then it is there without its functions.
        get_logger = getattr(sys.modules.get("structlog"), "get_logger", None)
        if get_logger is not None:
            getattr(get_logger(self._name), level)(event, **fields)
            return
        exc_info = fields.pop("exc_info", None)
        text = " ".join([event, *(f"{name}={value!r}" for name, value in fields.items())])
        logging.getLogger(self._name).log(
            logging.getLevelNamesMapping()[level.upper()], "%s", text, exc_info=exc_info
        )
