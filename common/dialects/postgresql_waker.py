"""How PostgreSQL's triggers wake the relay: by NOTIFY, and only while it waits for one."""

import math
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from sqlalchemy.engine import Engine

from common.dialects.base import Stoppable
from common.errors import Unavailable

CHANNEL: Final = "stsync"
WAITING_KEY: Final = 0x5354_5359_4E57  # "STSYNW": the advisory lock that says that somebody waits to be told
# What a trigger does once it has written into the outbox.
TELL = (
    f"IF FOUND AND (CASE WHEN pg_catalog.pg_try_advisory_lock_shared({WAITING_KEY})"
    f" THEN NOT pg_catalog.pg_advisory_unlock_shared({WAITING_KEY}) ELSE true END) THEN NOTIFY {CHANNEL}; END IF;"
)
_DEAF_S = 0.02  # a pause from here on is worth two statements
# How often it is looked whether a transaction has ended that tells nobody: each thirtieth of the time it has been waited for, within:
_UNTOLD_S, _UNTOLD_MOST_S, _PART = 0.02, 0.2, 30
_TAKEN_S = 5.0  # the lock is free within a moment, or somebody else keeps it
_WAIT_SQL = f"LISTEN {CHANNEL}; SELECT CASE WHEN pg_try_advisory_lock({WAITING_KEY}) THEN pg_current_xact_id()::text END"
_REST_SQL = f"UNLISTEN {CHANNEL}; SELECT pg_advisory_unlock_all()"
_OLDER_SQL = "SELECT count(*) FROM pg_snapshot_xip(pg_current_snapshot()) x WHERE x < %s::xid8"


class NotifyWaker:
    """Woken by the triggers' NOTIFY; also waits for stop.

    Transactions that NOTIFY commit one after the other, each after the other's write to the disk, and one that is heard costs the
    server, and a little also the writer, more than a look at the outbox does. So triggers do it only while somebody holds a lock
    that says so, which whoever looks again by itself soon, as under a flood of changes, does not, nor does a service that is down.

    A transaction that found the lock free, and is still open when it is taken, will tell nobody: until all that were open then have
    ended, it is looked for that again and again (TRAPS 1). They are known by their numbers: theirs were given before that of the
    transaction that took the lock.
    """

    def __init__(self, engine: Engine, stop: Stoppable) -> None:
        self._stop = stop
        self._pool_connection = engine.raw_connection()
        driver: Any = self._pool_connection.driver_connection
        self._connection = driver
        self._connection.autocommit = True
        self._connection.add_notify_handler(self._hear)  # of what comes with an answer, which libpq then tells no more
        self._listening = self._again = self._heard = False
        self._before: str | None = None  # the transaction that took the lock; None while another program has it
        self._older = -1  # how many older than that are open, as last counted; 0 for good
        with _lost():
            self._begin()

    def wait(self, timeout_s: float) -> bool:
        """See Waker."""
        with _lost():
            if self._again:
                self._again = False
                return True
            if not self._listening:
                self._begin()
                return True  # there may be what nobody told of
            return self._wait(time.monotonic() + timeout_s)

    def _wait(self, until: float) -> bool:
        while not self._told():
            left = max(0.0, until - time.monotonic())
            pause = min(left, self._pause_s())
            readable, _, _ = select.select([self._connection.fileno(), self._stop.fileno()], [], [], pause)
            if self._stop.fileno() in readable or (not readable and pause == left):
                return False
            if not readable and self._ended():
                break
        return True

    def _pause_s(self) -> float:
        if not self._older:
            return math.inf
        return min(max(_UNTOLD_S, (time.monotonic() - self._since) / _PART), _UNTOLD_MOST_S)

    def found(self, again_s: float) -> None:
        """See Waker."""
        if self._listening and again_s >= _DEAF_S:
            with _lost():
                self._connection.execute(_REST_SQL)
            self._listening = False
        self._again = not self._listening

    def close(self) -> None:
        """See Waker."""
        self._pool_connection.invalidate()

    def _begin(self) -> None:
        self._since, self._warned = time.monotonic(), False
        self._listen()

    def _listen(self) -> None:
        answers = self._connection.execute(_WAIT_SQL)
        answers.nextset()
        (self._before,) = answers.fetchone()
        self._listening, self._older = True, -1

    def _ended(self) -> bool:
        """Whether a transaction that tells nobody may have ended since it was last asked, or one has told meanwhile."""
        if self._before is None:  # a writer was just looking at the lock, or another program took it
            self._listen()
            if self._before is None and not self._warned and time.monotonic() - self._since > _TAKEN_S:
                import structlog  # noqa: PLC0415 (loads for long, and commands have no use for it)

                self._warned = True
                log, held = structlog.get_logger("relay"), f"advisory lock {WAITING_KEY} of this database"
                log.warning("notify_lock_taken", held=held, effect="the outbox is looked at five times a second")
            return True
        self._heard = False
        before, (self._older,) = self._older, self._connection.execute(_OLDER_SQL, (self._before,)).fetchone()
        return self._heard or before != self._older

    def _told(self) -> bool:
        """Whether there was a notification; asked for each change, and so of libpq itself."""
        link, told = self._connection.pgconn, False
        link.consume_input()
        while link.notifies() is not None:
            told = True
        return told

    def _hear(self, _notification: object) -> None:
        self._heard = True


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as exc:
        raise Unavailable(f"the database connection that listens for changes was lost: {exc}") from exc
