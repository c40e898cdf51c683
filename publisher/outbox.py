"""The outbox: what the relay drains, and a small API for programs that record changes themselves.

A program that changes a table without triggers (or emits a change that no table shows) calls `insert`, `update`, `delete` or
`rekey` with its own SQLAlchemy connection, inside its own transaction: the change is replicated if and only if that
transaction commits. Values are what the driver takes for these columns; the database itself turns them into text.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import orjson
from sqlalchemy import insert as sql_insert
from sqlalchemy import text
from sqlalchemy.engine import Connection

from common.bookkeeping import rejected
from common.changes import SEPARATOR, Kind, printable
from common.dialects import dialect_for
from common.dialects.base import Dialect, Run, columns_json, raw_cursor
from common.dialects.script import Script
from common.errors import NotApplicable
from common.nodestate import now_ms
from common.schema import Column, Table

_AT_ONCE = 5_000
_SHORT = 100  # a run up to here is no statement of its own
FEW = 16  # they are read whatever their size
_PAGE_BYTES = 4 << 20
# So many characters are joined, or twice as many: the statement that rejects them is below any max_allowed_packet.
_ALIKE = 192 << 10
_TAKEN = 100
_BEFORE_ALL = -(2**63)


class Row(NamedTuple):
    """An outbox row as it stands, or several as one (a tuple, because a bulk change brings a hundred thousand of them)."""

    id: int
    table_name: str
    kind: str
    columns_json: str
    rows_json: str
    row_count: int
    canonical: int


head_of = attrgetter("table_name", "kind", "columns_json", "canonical")  # what a row is, but for its values


class Page(NamedTuple):
    """Neighbouring rows of the outbox, and the ids of all that they stand for, ascending."""

    rows: Sequence[Row]
    ids: Sequence[int]


def insert(connection: Connection, table: str, row: Mapping[str, Any]) -> None:
    """Record that `row` (column → value) was inserted into `table`."""
    _record(connection, table, Kind.INSERT, row)


def update(connection: Connection, table: str, row: Mapping[str, Any]) -> None:
    """Record that the row with `row`'s key now has `row`'s values."""
    _record(connection, table, Kind.UPDATE, row)


def delete(connection: Connection, table: str, key: Mapping[str, Any]) -> None:
    """Record that the row with this key was deleted."""
    _record(connection, table, Kind.DELETE, key)


def rekey(connection: Connection, table: str, old_key: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """Record that the row with `old_key` got another key; `row` holds its new key and values."""
    _record(connection, table, Kind.REKEY, row, old_key)


def _record(
    connection: Connection,
    name: str,
    kind: Kind,
    row: Mapping[str, Any],
    old_key: Mapping[str, Any] | None = None,
) -> None:
    dialect, _ = dialect_for(connection.engine.url.render_as_string(hide_password=True))
    table = next((t for key, t in dialect.tables(connection).items() if dialect.same_name(name, key)), None)
    if table is None:
        raise NotApplicable(f"table {name} does not exist in the database")
    given = [*_given(table, old_key or {}, "old key"), *_given(table, row, "row")]
    missing = [key for key in table.key if key not in row]
    if missing:
        raise NotApplicable(f"the key column {missing[0]} of table {table.name} is missing")
    references = [(f":p{i}", column) for i, (column, _) in enumerate(given)]
    bound = {f"p{i}": value for i, (_, value) in enumerate(given)}
    names = [column.name for column, _ in given[len(old_key or {}) :]]
    values = {"t": table.name, "k": kind.value, "c": columns_json(names)}
    connection.execute(
        text(
            "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json, row_count, canonical)"
            f" VALUES (:t, :k, :c, {dialect.row(references)}, 1, 0)"
        ),
        values | bound,
    )


def _given(table: Table, row: Mapping[str, Any], what: str) -> list[tuple[Column, Any]]:
    """The values given, the key's first in key order, as a frame wants them."""
    unknown = [name for name in row if table.column(name) is None]
    if unknown:
        raise NotApplicable(f"the {what} names column {unknown[0]}, which table {table.name} does not have")
    names = [key for key in table.key if key in row] + [name for name in row if name not in table.key]
    return [(column, row[name]) for name in names if (column := table.column(name)) is not None]


def pages(connection: Connection, dialect: Dialect, limit: int, without: Sequence[Run] = ()) -> Iterator[Page]:
    """Everything committed that stands in the outbox (but for the runs `without`), in id order, in pages of at most `limit` rows and
    about _PAGE_BYTES, but for the first, which is short (TRAPS 1).

    The connection must read one snapshot throughout: the caller's transaction is repeatable read where there is more than a page.
    """
    cursor = raw_cursor(connection)
    page = page_of(map(Row._make, dialect.read_outbox(cursor, _BEFORE_ALL, min(FEW, limit), without=without)))
    count, miss, plain = FEW, 1, 0
    while page.rows:
        yield page
        last, count = page.rows[-1], min(2 * count, limit)
        found = None if plain else _alike(cursor, dialect, page.rows[-2:], limit, without)
        if found is not None:
            page, miss = found, 1
            continue
        if plain:
            plain -= 1
        else:  # it was looked for in vain, which costs nearly as much as reading
            plain, miss = miss, 2 * miss
        page = page_of(map(Row._make, dialect.read_outbox(cursor, last.id, count, _PAGE_BYTES, without)))
    cursor.close()


def _alike(cursor: Any, dialect: Dialect, before: Sequence[Row], limit: int, without: Sequence[Run]) -> Page | None:
    """What follows a row in the outbox and differs from it in nothing but its values, as one row; `before`: the last two rows."""
    last = before[-1]
    count = min(limit, _ALIKE * last.row_count // max(1, len(last.rows_json)))
    if count < FEW or not last.canonical or head_of(before[0]) != head_of(last):
        return None
    found = dialect.read_alike(cursor, last, count, without)
    if found is None:
        return None
    number, rows = found
    if len(rows) > 2 * _ALIKE or not holds(rows, number):
        return None  # perhaps one of them is no row that a trigger wrote, and is to be told from the others
    joined = last._replace(id=last.id + number, rows_json=rows, row_count=number)
    return Page([joined], range(last.id + 1, joined.id + 1))


def holds(rows: str, count: int) -> bool:
    """Whether a row's `rows_json` begins so many arrays; it may be anything, for any program may write into the outbox."""
    if not rows.startswith("[") or rows.count(f"{SEPARATOR}[") != count - 1:
        return False
    # The former is much quicker to see, and nearly always so.
    return rows.count("\n") == count - 1 or rows.count(SEPARATOR) == count - 1


def page_of(rows: Iterable[Row]) -> Page:
    """These rows, each for itself."""
    found = list(rows)
    return Page(found, [row.id for row in found])


def peek(connection: Connection, dialect: Dialect, limit: int, without: Sequence[Run] = ()) -> list[Row] | None:
    """Everything committed that stands in the outbox (but for the runs `without`), in id order, read by one statement and so as one
    snapshot, outside of any transaction; None where there may be more than a few."""
    cursor = connection.connection.cursor()
    count = min(FEW, limit)
    found = list(map(Row._make, dialect.read_outbox(cursor, _BEFORE_ALL, count, without=without)))
    cursor.close()
    return found if len(found) < count else None


def take(connection: Connection, statement: str, limit: int) -> list[Row] | None:
    """Everything committed that stands in the outbox, in id order, removed in the caller's transaction as it is read (see
    Dialect.take_sql); None, for the caller to roll back, where there may be more than a few, or than `limit` rows, or any is long."""
    cursor = raw_cursor(connection)
    few = min(_TAKEN, limit)
    cursor.execute(statement, (few,))
    rows = sorted(map(Row._make, cursor.fetchall()))
    cursor.close()
    return rows if len(rows) < few and all(row.rows_json is not None for row in rows) else None


def remove(script: Script, dialect: Dialect, ids: Sequence[int]) -> None:
    """Delete exactly these rows (ascending ids) without ever touching a row between them that was not read (TRAPS 1).

    The last of a long run goes by itself: MariaDB locks the row at which a range ends, and behind a run that may be one of a
    transaction still open, for which the relay would then wait.
    """
    single: list[int] = []
    mark = script.mark
    script.promise(None)
    for first, last in runs(ids):
        if last - first < _SHORT:
            single += range(first, last + 1)
        else:
            single.append(last)
            script.execute(f"DELETE FROM stsync_outbox WHERE id BETWEEN {mark} AND {mark}", (first, last - 1))
    if len(single) == 1:
        script.execute(f"DELETE FROM stsync_outbox WHERE id = {mark}", single)
        single = []
    for start in range(0, len(single), _AT_ONCE):
        script.execute(dialect.remove_sql, (orjson.dumps(single[start : start + _AT_ONCE]).decode(),))


def runs(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending ids as runs without holes."""
    if ids and ids[-1] - ids[0] + 1 == len(ids):
        yield ids[0], ids[-1]
        return
    for _, group in groupby(enumerate(ids), key=lambda pair: pair[1] - pair[0]):
        members = [one for _, one in group]
        yield members[0], members[-1]


def reject(connection: Connection, rows: Sequence[tuple[Row, str]]) -> None:
    """Keep rows that are no change anybody could apply, with the reason, in the caller's transaction."""
    at = now_ms()
    for row, reason in rows:
        connection.execute(
            sql_insert(rejected).values(
                table_name=printable(row.table_name),
                kind=printable(row.kind),
                columns_json=printable(row.columns_json),
                rows_json=printable(row.rows_json),
                reason=reason,
                at_ms=at,
            )
        )
