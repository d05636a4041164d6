"""Logging: structlog to stderr, for people (console) or machines (one JSON object a line)."""

from __future__ import annotations

import logging
import sys
from typing import Any, Final

import structlog
from structlog.typing import Processor

_LEVELS: Final = ("debug", "info", "warning", "error")

_SHARED: Final[tuple[Processor, ...]] = (
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def configure(format: str = "console", level: str = "info") -> None:
    """Send all log events of this process to stderr.

    Args:
        format: ``console`` or ``json``.
        level: ``debug``, ``info``, ``warning`` or ``error``; what is below is dropped.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*_SHARED, *_rendering(format)],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    _adopt_standard_logging(format, threshold)


def _rendering(format: str) -> list[Processor]:
    # Local variables stay out of tracebacks: they may hold keys, values and tokens.
    if format == "json":
        transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [
            structlog.processors.ExceptionRenderer(transformer),
            structlog.processors.JSONRenderer(default=str),
        ]
    return [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    ]


def _adopt_standard_logging(format: str, threshold: int) -> None:
    """Give libraries that use ``logging`` (urllib3, asyncio) the same form."""
    processors: list[Any] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        *_rendering(format),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processors=processors, foreign_pre_chain=[*_SHARED])
    )
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.WARNING), force=True)
