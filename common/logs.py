"""structlog set up once a process: events in snake_case, pretty for people, JSON for machines, on stderr."""

import logging
import sys
import time

import structlog
from structlog.types import EventDict, WrappedLogger

from common.settings import LogSettings


def configure(settings: LogSettings, *, node: str) -> None:
    """Send this process's log to stderr in the settings' form, every line naming the node."""
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    pretty = settings.format == "pretty" or (settings.format == "auto" and sys.stderr.isatty())
    renderer: structlog.types.Processor = structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            _naming(node),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # our own events tell what pika's say, once


class Seldom:
    """Which of several sorts of news are to be told: the first of each, and once more when it goes on an hour later."""

    def __init__(self, every_s: float = 3600.0) -> None:
        self._every_s = every_s
        self._told: dict[str, float] = {}

    def due(self, sort: str) -> bool:
        """Whether to tell it now."""
        now = time.monotonic()
        if now - self._told.get(sort, -self._every_s) < self._every_s:
            return False
        self._told[sort] = now
        return True


def _naming(node: str) -> structlog.types.Processor:
    """Every line names the node, whichever thread writes it."""

    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["node"] = node
        return event

    return add
