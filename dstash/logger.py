"""Loggers for modules that a client loads too.

Peers and commands log through structlog. A program that only uses the client need not have it: its
events then go to the standard ``logging``, under the same names.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final

_NUMBERS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class Logger:
    """A logger that takes an event and its fields, like those of structlog."""

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, event: str, **fields: Any) -> None:
        """Log what helps to find a fault.

        It goes to the standard ``logging`` in every program, which drops it by default: structlog
        would print it to stdout unless the program has configured it.
        """
        self._write_standard("debug", event, fields)

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
        else:
            self._write_standard(level, event, fields)

    def _write_standard(self, level: str, event: str, fields: dict[str, Any]) -> None:
        number, logger = _NUMBERS[level], logging.getLogger(self._name)
        if not logger.isEnabledFor(number):
            return
        exc_info = fields.pop("exc_info", None)
        text = " ".join([event, *(f"{name}={value!r}" for name, value in fields.items())])
        logger.log(number, "%s", text, exc_info=exc_info)
