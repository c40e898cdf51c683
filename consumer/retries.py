"""When quarantined changes are tried again: all of them after every progress and now and then, a few at a time (TRAPS 29)."""

import time
from collections.abc import Callable, Sequence
from itertools import islice

import structlog
from sqlalchemy.engine import Connection

from common.database import Database
from common.errors import NotApplicable
from common.live_lists import LiveLists
from consumer import quarantine
from consumer.replay import Replayer

_LOOK_S = 0.5
_SLICE_S = 0.05  # replay waits for about this
_REST = 9  # so many times what a slice took of which nothing went, others' changes go first


class Retries:
    """Goes through the quarantine in the order of the log, in slices as large as fit their time; for one thread.

    `replayer()` is one for the lists and the schema as `lists` has them, which are read again for each round. `every_s`: a new
    round begins so long after the last one began, or at progress since then.
    """

    def __init__(self, database: Database, lists: LiveLists, replayer: Callable[[], Replayer], every_s: float) -> None:
        self._database = database
        self._lists = lists
        self._replayer = replayer
        self._every_s = every_s
        self._after: int | None = None  # the last id that this round has tried; None between rounds
        self._began = self._looked = self._rested = 0.0
        self._slice = 10
        self._log = structlog.get_logger("quarantine")

    def work(self, connection: Connection, progress: float) -> bool:
        """Try what is due, in transactions of its own; whether anything may have changed. `progress`: when something was applied
        last."""
        now = time.monotonic()
        if asked := self._asked_for(connection, now):
            self._lists.reread()
            self._try(connection, list(asked))
            quarantine.answered(connection, asked)
            connection.commit()
            return True
        if now < self._rested:
            return False
        if self._after is None:
            if progress <= self._began and now - self._began <= self._every_s:
                return False
            self._after, self._began = 0, now
            self._lists.reread()
        ids = quarantine.beyond(connection, self._after, self._slice)
        connection.rollback()
        self._after = ids[-1] if len(ids) == self._slice else None
        went = bool(ids) and self._try(connection, ids)
        self._rested = now if went else now + (_REST + 1) * (time.monotonic() - now)
        return True

    def _asked_for(self, connection: Connection, now: float) -> dict[int, int]:
        if now - self._looked < _LOOK_S:
            return {}
        asked = dict(islice(quarantine.requested(connection).items(), self._slice))
        connection.rollback()  # reading the schema takes a connection of its own
        if not asked:
            self._looked = now
        return asked

    def _try(self, connection: Connection, ids: Sequence[int]) -> bool:
        """Whether any of them went."""
        began = time.monotonic()
        done = self._each(connection, ids)
        if done is None and len(ids) > 1:
            done = sum(self._each(connection, [one]) or 0 for one in ids)
        with self._database.guard():
            ends = quarantine.ends(connection, ids)
            connection.rollback()
        done = (done or 0) + sum(quarantine.together(connection, self._database, self._replayer(), last) for last in ends)
        fits = int(len(ids) * _SLICE_S / max(time.monotonic() - began, 0.001))
        self._slice = min(max(1, fits), 2 * self._slice, quarantine.RETRIED_AT_ONCE)
        if done:
            self._log.info("quarantine_retried", applied=done)
            self._began = 0.0  # others may have waited for it
        return bool(done)

    def _each(self, connection: Connection, ids: Sequence[int]) -> int | None:
        """The number that went; None, with nothing done, where the commit was refused."""
        replayer = self._replayer()
        try:
            with self._database.guard():
                done = quarantine.retry(connection, replayer, ids)
                connection.commit()
        except NotApplicable as exc:  # a constraint that is checked at the commit only
            connection.rollback()
            if len(ids) == 1:
                self._log.warning("quarantine_not_retried", id=ids[0], reason=str(exc))
                quarantine.refused(connection, ids[0], str(exc))
                connection.commit()
            return None
        return done
