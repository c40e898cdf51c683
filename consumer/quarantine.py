"""Changes that could not be applied here: kept with their reason, retried, given up when overtaken (TRAPS 29)."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import delete, select, update
from sqlalchemy.engine import Connection

from common.bookkeeping import quarantine
from common.changes import Frame, Kind
from common.nodestate import now_ms
from common.schema import ListedTable
from consumer.overtaking import Later, row_keys
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


def entries(connection: Connection, ids: Sequence[int] = (), tables: Collection[str] = ()) -> list[Entry]:
    """The quarantined changes, or those with these ids, or of these tables, in the order in which they failed."""
    statement = select(quarantine).order_by(quarantine.c.id)
    if ids:
        statement = statement.where(quarantine.c.id.in_(ids))
    if tables:
        statement = statement.where(quarantine.c.table_name.in_(tables))
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


def overtaken(
    connection: Connection, frames: Iterable[Frame], failed: Iterable[Failed], listed: Mapping[str, ListedTable]
) -> None:
    """Cut quarantined changes down to what these later frames leave of them: mostly nothing (see consumer.overtaking).

    That holds even where the later change failed itself; it is then added after this.
    """
    tables = set(connection.execute(select(quarantine.c.table_name).distinct()).scalars())
    failed_keys: dict[str, set[str]] = {}
    for one in failed:
        if one.step.table in tables and (table := listed.get(one.step.table)) is not None:
            failed_keys.setdefault(table.name, set()).update(row_keys(one.step, table))
    later = Later()
    met = set()
    for frame in frames:
        if frame.table in tables:
            met.add(frame.table)
            later.see(frame, listed.get(frame.table), failed=frozenset(failed_keys.get(frame.table, ())))
    gone: list[int] = []
    for entry in entries(connection, tables=met) if met else ():
        left = later.left_of(entry.step, listed.get(entry.step.table))
        if left is None:
            gone.append(entry.id)
        elif left is not entry.step:
            _store(connection, entry, left, listed[left.table])
    discard(connection, gone)


def _store(connection: Connection, entry: Entry, left: Step, table: ListedTable) -> None:
    values = {
        "kind": left.kind.value,
        "columns_json": orjson.dumps(left.columns).decode(),
        "key_json": next(iter(row_keys(left, table)), entry.key),
        "row_json": left.rows,
    }
    connection.execute(update(quarantine).where(quarantine.c.id == entry.id).values(**values))
