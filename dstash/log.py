"""Logging: structlog to stderr, as text (console) or as one JSON object per line (json).

A log call neither raises nor blocks, even if stderr fails: see ``log_writer``.
"""

from __future__ import annotations

import atexit
import logging
import sys
import threading
from collections.abc import Sequence
from typing import Any, Final

import structlog
from structlog.typing import EventDict, Processor

from dstash.log_writer import LogWriter

_LEVELS: Final = ("debug", "info", "warning", "error")

#: Seconds that the end of a process waits for unwritten lines.
_FLUSH_TIMEOUT_S: Final = 1.0

#: Fields of every line; see ``identify``.
_identity: Final[dict[str, str]] = {}


def identify(**fields: str) -> None:
    """Add fields, such as the id of the peer, to every line of this process from now on."""
    _identity.update(fields)


def _identified(logger: Any, method: str, event: EventDict) -> EventDict:
    for name, value in _identity.items():
        event.setdefault(name, value)
    return event


_SHARED: Final[tuple[Processor, ...]] = (
    structlog.contextvars.merge_contextvars,
    _identified,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)

_writer: Final = LogWriter()


def configure(format: str = "console", level: str = "info") -> None:
    """Send all log events of this process to stderr.

    Args:
        format: ``console`` or ``json``.
        level: ``debug``, ``info``, ``warning`` or ``error``; events below it are dropped.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    processors = [*_SHARED, *_rendering(format)]
    _writer.stream = sys.stderr
    _writer.loss_line = lambda lost: _loss_line(processors, lost)
    structlog.configure(
        processors=processors,
        wrapper_class=_never_raising(structlog.make_filtering_bound_logger(threshold)),
        logger_factory=_Lines,
        cache_logger_on_first_use=False,
    )
    _adopt_standard_logging(format, threshold)
    atexit.unregister(flush)
    atexit.register(flush)


def adopt_hooks() -> None:
    """Log what Python writes to stderr by itself: warnings, and exceptions that nothing caught."""
    logging.captureWarnings(True)
    threading.excepthook = _thread_failed
    sys.unraisablehook = _unraisable


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    name = failed.thread.name if failed.thread is not None else ""
    error = (failed.exc_type, failed.exc_value, failed.exc_traceback)
    structlog.get_logger("dstash.threads").error("a thread failed", thread=name, exc_info=error)


def _unraisable(failed: sys.UnraisableHookArgs) -> None:
    text = failed.err_msg or "Exception ignored in"
    error = (failed.exc_type, failed.exc_value, failed.exc_traceback)
    structlog.get_logger("dstash").error(text, object=repr(failed.object), exc_info=error)


def say(text: str) -> None:
    """Write a line to stderr as it is, after all earlier log lines, without blocking."""
    _writer.put(text)


def flush(timeout: float = _FLUSH_TIMEOUT_S) -> bool:
    """Wait up to ``timeout`` seconds for queued lines; returns whether the queue is empty."""
    return _writer.flush(timeout)


class _Lines:
    """A logger of structlog that passes rendered lines to the writer."""

    def __init__(self, *names: Any) -> None:
        """Take the names that ``get_logger`` was called with; they are not shown."""

    def msg(self, line: str) -> None:
        """Write a line."""
        _writer.put(line)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def _never_raising(logger: type[Any]) -> type[Any]:
    """Return a wrapper class that replaces an event that cannot be rendered by a short line."""

    class NeverRaising(logger):  # type: ignore[misc]  # the base is made at run time
        def _proxy_to_logger(
            self, method: str, event: Any = None, /, *args: Any, **fields: Any
        ) -> Any:
            try:
                return super()._proxy_to_logger(method, event, *args, **fields)
            except Exception as error:
                _writer.put(_unrendered(event, error))

    return NeverRaising


def _unrendered(event: object, error: Exception) -> str:
    text = event if isinstance(event, str) else type(event).__name__
    return f"a log line could not be rendered ({type(error).__name__}): {text}"


def _loss_line(processors: Sequence[Processor], lost: int) -> str:
    line: Any = {"event": f"{lost} log lines were lost", "lost": lost}
    for processor in processors:
        line = processor(None, "warning", line)
    return str(line)


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


class _StandardHandler(logging.Handler):
    """Passes the records of ``logging`` to the writer."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            _writer.put(self.format(record))
        except Exception as error:
            _writer.put(_unrendered(record.msg, error))


def _adopt_standard_logging(format: str, threshold: int) -> None:
    """Format the records of libraries that use ``logging`` (urllib3, asyncio) alike."""
    processors: list[Any] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        *_rendering(format),
    ]
    handler = _StandardHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processors=processors, foreign_pre_chain=[*_SHARED])
    )
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.WARNING), force=True)
    logging.getLogger("dstash").setLevel(threshold)  # the debug events of ``logger``
