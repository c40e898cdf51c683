"""Rows of the outbox that the journal has and that are still to be removed.

Where removing a row costs nearly what writing it did (EngineDialect.removes_late), a long drain does not remove the long runs of
ids that it took: it notes them, in the transaction that writes its batches and moves the position, and nobody reads those rows again
(TRAPS 1, 8). They are removed bit by bit when nothing else is to be done.
"""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import select
from sqlalchemy.engine import Connection

from common.bookkeeping import taken
from common.dialects.base import Dialect, Run
from common.dialects.script import Script
from publisher import outbox

_LONG: Final = 1_000  # ids; a shorter run is removed at once
_MOST_RUNS: Final = 32  # each is a condition of every look
_MOST_ROWS: Final = 1_000_000
_SWEPT_ROWS: Final = 5_000

Runs = tuple[Run, ...]


def load(connection: Connection) -> Runs:
    """What an earlier process left to be removed."""
    rows = connection.execute(select(taken.c.first_id, taken.c.last_id).order_by(taken.c.first_id)).all()
    return tuple((int(first), int(last)) for first, last in rows)


def take(script: Script, dialect: Dialect, ids: Sequence[int], known: Runs) -> Runs:
    """See to it, in the caller's transaction, that rows with these ids (ascending) are never read again: the shorter runs and what
    would be too much are removed. Returns what is to be removed later, once that transaction is committed."""
    runs = list(known)
    at_once: list[int] = []
    for first, last in outbox.runs(ids):
        rows = sum(end - begin + 1 for begin, end in runs) + last - first + 1
        before = next((run for run in runs if run[1] + 1 == first), None)
        if last - first + 1 < _LONG or rows > _MOST_ROWS or (before is None and len(runs) >= _MOST_RUNS):
            at_once += range(first, last + 1)
        elif before is not None:
            script.promise(1)
            script.execute(f"UPDATE stsync_taken SET last_id = {last:d} WHERE first_id = {before[0]:d}")
            runs[runs.index(before)] = (before[0], last)
        else:
            script.promise(1)
            script.execute(f"INSERT INTO stsync_taken (first_id, last_id) VALUES ({first:d}, {last:d})")
            runs.append((first, last))
    outbox.remove(script, dialect, at_once)
    return tuple(runs)


def sweep(connection: Connection, dialect: Dialect, known: Runs) -> Runs:
    """Remove some of them, in a transaction of its own; what is left."""
    (first, last), *others = known
    upto = min(last, first + _SWEPT_ROWS - 1)
    script = Script(connection)
    outbox.remove(script, dialect, range(first, upto + 1))
    if upto == last:
        script.execute(f"DELETE FROM stsync_taken WHERE first_id = {first:d}")
        left: Runs = tuple(others)
    else:
        script.execute(f"UPDATE stsync_taken SET first_id = {upto + 1:d} WHERE first_id = {first:d}")
        left = ((upto + 1, last), *others)
    script.commit()
    return left
