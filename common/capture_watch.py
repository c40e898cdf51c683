"""Tells the service's log, once, when changes are not captured any more (TRAPS 6)."""

import time

import structlog

from common import capture_check
from common.database import Database
from common.settings import Settings


class CaptureWatch:
    """Looks now and then; for one thread."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._log = structlog.get_logger("capture")
        self._told: list[str] = []
        self._next = 0.0

    def look(self) -> None:
        """Look, when it is time, and tell what was not told before; raises Unavailable."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._settings.intervals.capture_check_s
        with self._database.connect(read_only=True) as connection:
            found = capture_check.faults(self._database, connection, self._settings)
            connection.rollback()
        for reason in found:
            if reason not in self._told:
                self._log.error("capture_faulty", reason=reason)
        if self._told and not found:
            self._log.info("capture_in_order")
        self._told = found
