"""Rows of the outbox that the journal has and that are still to be removed.

Where removing a row costs nearly what writing it did (EngineDialect.removes_late), a long drain does not remove the long runs of
ids that it took: it notes them, in the transaction that writes its batches and moves the position, and nobody reads those rows again
(TRAPS 1, 8). They are removed bit by bit when nothing else is to be done.

A note holds as long as the last row of its run is there, which is removed last. Where it is not, somebody else has emptied the
outbox, whose ids may have begun anew: the note is dropped, and what stands there is read like any other row.
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


def take(script: Script, dialect: Dialect, ids: Sequence[int], known: Runs) -> Runs:
    """See to it, in the caller's transaction, that rows with these ids (ascending) are never read again: the shorter runs and what
    would be too much are removed. Returns what is to be removed later, once that transaction is committed.

    Raises Unavailable when the notes are not what this process knows.
    """
    runs = list(known)
    at_once: list[int] = []
    for first, last in outbox.runs(ids):
        rows = sum(end - begin + 1 for begin, end in runs) + last - first + 1
        before = next((run for run in runs if run[1] + 1 == first), None)
        if last - first + 1 < _LONG or rows > _MOST_ROWS or (before is None and len(runs) >= _MOST_RUNS):
            at_once += range(first, last + 1)
        elif before is not None:
            _write(script, f"UPDATE stsync_taken SET last_id = {last:d} WHERE {_is(before)}")
            runs[runs.index(before)] = (before[0], last)
        else:
            _write(script, f"INSERT INTO stsync_taken (first_id, last_id) VALUES ({first:d}, {last:d})")
            runs.append((first, last))
    outbox.remove(script, dialect, at_once)
    return tuple(runs)


def sweep(connection: Connection, dialect: Dialect, known: Runs) -> Runs:
    """Remove some of them, in a transaction of its own; what is left. Raises Unavailable as `take` does."""
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
    if connection.exec_driver_sql(f"SELECT 1 FROM stsync_outbox WHERE id = {run[1]:d}").first() is not None:
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
