"""Rows of the outbox that the journal has and that are still to be removed.

Where removing a row costs nearly what writing it did (EngineDialect.removes_late), a long drain does not remove the long runs of
ids that it took: it notes them, in the transaction that writes its batches and moves the position, and nobody reads those rows again
(TRAPS 1, 8). They are removed bit by bit when nothing else is to be done.

The last row of a run is marked (its `row_count` is 0) and is removed last. Where it is not there, or not marked, somebody else has
emptied the outbox, whose ids may have begun anew: the note is dropped, and what stands there is read like any other row.
"""

from collections.abc import Sequence
from typing import Final

import structlog
from sqlalchemy import select
from sqlalchemy.engine import Connection

from common.bookkeeping import taken
from common.dialects.base import Dialect, Run
from common.dialects.script import Script
from common.errors import Unavailable
from publisher import outbox

_LONG: Final = 1_000  # ids; a shorter run is removed at once
_MOST_RUNS: Final = 32  # each is a condition of every look
_MOST_ROWS: Final = 200_000
_SWEPT_ROWS: Final = 5_000

Runs = tuple[Run, ...]
_log = structlog.get_logger("relay")


def load(connection: Connection) -> Runs:
    """What an earlier process left to be removed."""
    rows = connection.execute(select(taken.c.first_id, taken.c.last_id).order_by(taken.c.first_id)).all()
    runs = [(int(first), int(last)) for first, last in rows]
    held = tuple(run for run in runs if _holds(connection, run))
    connection.commit()
    return held


class Taking:
    """What a long drain takes, page by page in the caller's transaction: noted up to a bound, removed above it.

    Its methods raise Unavailable when the notes are not what this process knows.
    """

    def __init__(self, script: Script, dialect: Dialect, known: Runs) -> None:
        self._script = script
        self._dialect = dialect
        self._known = known
        self._room = _MOST_ROWS - sum(last - first + 1 for first, last in known) if dialect.removes_late else 0
        self._runs: list[Run] = []

    def take(self, ids: Sequence[int]) -> None:
        """Rows with these ids, above all before, ascending: they are never read again."""
        if self._room < len(ids):
            outbox.remove(self._script, self._dialect, ids)
            return
        self._room -= len(ids)
        for run in outbox.runs(ids):
            goes_on = self._runs and self._runs[-1][1] + 1 == run[0]
            self._runs.append((self._runs.pop()[0], run[1]) if goes_on else run)

    def note(self) -> Runs:
        """Write the notes, and remove the shorter runs; what is to be removed later, once the transaction is committed."""
        runs = list(self._known)
        short: list[int] = []
        for first, last in self._runs:
            before = next((run for run in runs if run[1] + 1 == first and _holds(self._script.connection, run)), None)
            if last - first + 1 < _LONG:
                short += range(first, last + 1)
                continue
            if before is None and len(runs) >= _MOST_RUNS:
                outbox.remove(self._script, self._dialect, range(first, last + 1))
                continue
            _write(self._script, f"UPDATE stsync_outbox SET row_count = 0 WHERE id = {last:d}")
            if before is not None:
                _write(self._script, f"UPDATE stsync_taken SET last_id = {last:d} WHERE {_is(before)}")
                runs[runs.index(before)] = (before[0], last)
            else:
                _write(self._script, f"INSERT INTO stsync_taken (first_id, last_id) VALUES ({first:d}, {last:d})")
                runs.append((first, last))
        outbox.remove(self._script, self._dialect, short)
        return tuple(runs)


def sweep(connection: Connection, dialect: Dialect, known: Runs) -> Runs:
    """Remove some of them, in a transaction of its own; what is left. Raises Unavailable as Taking does."""
    run, *others = known
    if not _holds(connection, run):
        connection.commit()
        return tuple(others)
    first, last = run
    upto = min(last, first + _SWEPT_ROWS - 1)
    script = Script(connection)
    if upto == last:
        _write(script, f"DELETE FROM stsync_taken WHERE {_is(run)}")
    else:
        _write(script, f"UPDATE stsync_taken SET first_id = {upto + 1:d} WHERE {_is(run)}")
        others.insert(0, (upto + 1, last))
    outbox.remove(script, dialect, range(first, upto + 1))
    script.commit()
    return tuple(others)


def _holds(connection: Connection, run: Run) -> bool:
    """Whether the note still holds; else it is dropped, in the caller's transaction."""
    if (
        connection.exec_driver_sql(f"SELECT 1 FROM stsync_outbox WHERE id = {run[1]:d} AND row_count = 0").first()
        is not None
    ):
        return True
    connection.exec_driver_sql(f"DELETE FROM stsync_taken WHERE {_is(run)}")
    _log.warning("outbox_emptied", first=run[0], last=run[1], effect="what was written there since is read as usual")
    return False


def _is(run: Run) -> str:
    return f"first_id = {run[0]:d} AND last_id = {run[1]:d}"


def _write(script: Script, statement: str) -> None:
    script.execute(statement)
    if script.rowcount != 1:
        script.connection.rollback()
        raise Unavailable("the notes of taken outbox rows are not this service's any more; they are read again")
