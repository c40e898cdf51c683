"""Changes that could not be applied here: kept with their reason, retried, given up when overtaken (TRAPS 29)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import delete, select, update
from sqlalchemy.engine import Connection

from common.bookkeeping import quarantine
from common.changes import Frame, Kind, keys_of
from common.dialects.base import without_old_key
from common.errors import MessageRefused
from common.nodestate import now_ms
from common.schema import ListedTable
from consumer.plan import Step, single
from consumer.replay import Failed, Replayer, Unit

RETRIED_AT_ONCE = 500


@dataclass(frozen=True)
class Entry:
    """A quarantined change."""

    id: int
    epoch: int
    sequence: int
    step: Step
    key: str
    reason: str
    attempts: int
    first_ms: int
    last_ms: int


def add(connection: Connection, replayer: Replayer, failed: Iterable[Failed]) -> None:
    """Store changes that failed, in the transaction that applied the others."""
    at = now_ms()
    rows = [
        {
            "epoch": one.epoch,
            "sequence": one.sequence,
            "table_name": one.step.table,
            "kind": one.step.kind.value,
            "columns_json": orjson.dumps(one.step.columns).decode(),
            "key_json": replayer.key(one.step),
            "row_json": one.step.rows,
            "reason": one.reason,
            "attempts": 1,
            "first_ms": at,
            "last_ms": at,
        }
        for one in failed
    ]
    if rows:
        connection.execute(quarantine.insert(), rows)


def whole(units: Iterable[Unit], reason: str) -> list[Failed]:
    """Every change of these units as failed: the database refused them together, at the commit."""
    return [Failed(unit.epoch, unit.sequence, step, reason) for unit in units for step in single(unit.frames())]


def entries(connection: Connection, ids: Sequence[int] = ()) -> list[Entry]:
    """The quarantined changes, or those with these ids, in the order in which they failed."""
    statement = select(quarantine).order_by(quarantine.c.id)
    if ids:
        statement = statement.where(quarantine.c.id.in_(ids))
    return [
        Entry(
            id=row.id,
            epoch=row.epoch,
            sequence=row.sequence,
            step=Step(row.table_name, Kind(row.kind), tuple(orjson.loads(row.columns_json)), 1, row.row_json),
            key=row.key_json,
            reason=row.reason,
            attempts=row.attempts,
            first_ms=row.first_ms,
            last_ms=row.last_ms,
        )
        for row in connection.execute(statement)
    ]


def retry(connection: Connection, replayer: Replayer, ids: Sequence[int] = ()) -> int:
    """Try again, in order, in the caller's transaction; the number that went. What fails keeps its newest reason.

    A truncation is never tried again: it would delete rows that came after it.
    """
    waiting = [entry for entry in entries(connection, ids) if entry.step.kind is not Kind.TRUNCATE]
    waiting = sorted(waiting, key=lambda entry: (entry.last_ms, entry.id))[:RETRIED_AT_ONCE]
    waiting.sort(key=lambda entry: entry.id)
    results = replayer.retry(connection, [entry.step for entry in waiting])
    at = now_ms()
    done = [entry.id for entry, reason in zip(waiting, results, strict=True) if reason is None]
    for entry, reason in zip(waiting, results, strict=True):
        if reason is not None:
            connection.execute(
                update(quarantine)
                .where(quarantine.c.id == entry.id)
                .values(reason=reason, attempts=quarantine.c.attempts + 1, last_ms=at, requested=0)
            )
    discard(connection, done)
    return len(done)


def request_retry(connection: Connection, ids: Sequence[int]) -> None:
    """Ask the running service to retry these."""
    connection.execute(update(quarantine).where(quarantine.c.id.in_(ids)).values(requested=1))


def requested(connection: Connection) -> list[int]:
    """What the service was asked to retry."""
    return list(connection.execute(select(quarantine.c.id).where(quarantine.c.requested == 1)).scalars())


def discard(connection: Connection, ids: Sequence[int]) -> int:
    """Give changes up; the number that stood there."""
    if not ids:
        return 0
    return connection.execute(delete(quarantine).where(quarantine.c.id.in_(ids))).rowcount


def overtaken(connection: Connection, frames: Iterable[Frame], listed: Mapping[str, ListedTable]) -> int:
    """Give up quarantined changes whose row these later frames set or delete, or whose table they empty; the number.

    A later change carries the whole row: applying the older one after it would bring back what is past. That holds even where
    the later change fails itself; it is then added after this.
    """
    waiting = entries(connection)
    tables = {entry.step.table for entry in waiting}
    later: dict[tuple[str, str], list[tuple[Kind, frozenset[str]]]] = {}
    emptied: set[str] = set()
    for frame in frames:
        table = listed.get(frame.table)
        if frame.kind is Kind.TRUNCATE:
            emptied.add(frame.table)
        elif frame.table in tables and table is not None:
            for key in _keys(frame, table):
                later.setdefault((frame.table, key), []).append((frame.kind, frozenset(frame.columns)))
    gone: list[int] = []
    for entry in waiting:
        table = listed.get(entry.step.table)
        if entry.step.table in emptied:
            gone.append(entry.id)
        elif entry.step.kind is Kind.REKEY and table is not None:
            gone += _overtaken_rekey(connection, entry, table, later)
        elif any(
            kind is Kind.DELETE or columns >= frozenset(entry.step.columns)
            for kind, columns in later.get((entry.step.table, entry.key), ())
        ):
            gone.append(entry.id)
    return discard(connection, gone)


def _overtaken_rekey(
    connection: Connection, entry: Entry, table: ListedTable, later: Mapping[tuple[str, str], object]
) -> list[int]:
    """A key update has two rows: what a later change did to the one leaves the other still to be done.

    The new row set by a later change: the old one has to go all the same. The old key used anew: the new row is still due,
    but must not be made of the row that now has the old key.
    """
    width = len(table.key)
    old_key = _keys(Frame(entry.step.table, Kind.REKEY, entry.step.columns, 1, entry.step.rows), table)[0]
    old, new = (entry.step.table, old_key) in later, (entry.step.table, entry.key) in later
    if old and new:
        return [entry.id]
    if new:
        names = orjson.dumps([column.name for column in table.key]).decode()
        what = {"kind": Kind.DELETE.value, "columns_json": names, "key_json": old_key, "row_json": f"[{old_key}]"}
    elif old:
        what = {"kind": Kind.UPDATE.value, "row_json": without_old_key(entry.step.rows, width)}
    else:
        return []
    connection.execute(update(quarantine).where(quarantine.c.id == entry.id).values(**what))
    return []


def _keys(frame: Frame, table: ListedTable) -> list[str]:
    try:
        found = keys_of(frame, len(table.key))
    except MessageRefused:
        return []  # such a frame failed as a whole and overtakes nothing
    return [key if isinstance(key, str) else ",".join(key) for key in found]
