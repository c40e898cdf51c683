"""How rows get into SQLite's tables: JSON as its own values, bound to one statement that runs for each row."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import orjson

from common.changes import SEPARATOR
from common.dialects.base import Cursor
from common.dialects.json_writer import columns_for, written
from common.dialects.sqlite_capture import quote, typed
from common.errors import NotApplicable
from common.schema import ListedTable

UNFIT = (sqlite3.ProgrammingError, sqlite3.InterfaceError, OverflowError)  # it did not come to the database


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        ((tag, text),) = value.items()
        return float(text) if tag == "r" else bytes.fromhex(text)
    return value


def values(rows: str) -> list[list[Any]]:
    """The rows of a frame as SQLite's own values; NotApplicable when they are none."""
    try:
        parsed: list[list[Any]] = orjson.loads(f"[{rows}]")
        return [[_plain(v) for v in row] for row in parsed] if "{" in rows else parsed
    except (ValueError, TypeError) as exc:
        raise NotApplicable("a row that is no list of values of SQLite") from exc


class SqliteWriter:
    """Frames through `executemany`: the database lives in this process, so binding is the cheapest exact way."""

    def __init__(self, table: ListedTable, names: Sequence[str]) -> None:
        places = written(table, columns_for(table, names))
        keys = list(table.key)
        width = len(keys)
        target, where = quote(table.name), table.where
        here = f" AND ({where})" if where else ""
        match = " AND ".join(f"{quote(c.name)} = ?{i + 1}" for i, c in enumerate(keys))

        def inside(offset: int) -> str:
            arriving = typed(table, {c.name: f"?{i + 1 + offset}" for i, c in places})
            return f" AND EXISTS (SELECT 1 FROM {arriving} WHERE ({where}))" if where else ""

        columns = ", ".join(quote(c.name) for _, c in places)
        marks = ", ".join(f"?{i + 1}" for i, _ in places)
        selected = f"INSERT INTO {target} ({columns}) SELECT {marks} WHERE 1{inside(0)}"
        free = [(i + 1, quote(c.name)) for i, c in enumerate(keys) if c.equality != "exact"]
        differ = " OR ".join(f"NOT ({name} IS ?{i} COLLATE BINARY AND typeof({name}) = typeof(?{i}))" for i, name in free)
        spelled = ", ".join(f"{name} = ?{i}" for i, name in free)
        self._respell = f"UPDATE {target} SET {spelled} WHERE {match} AND ({differ}){here}{inside(0)}" if free else ""
        self._respell_width = None if where else width  # the row filter looks at the whole row
        self._collations = table.table.uniques[0].collations  # of the primary key
        self._insert = selected if where else f"INSERT INTO {target} ({columns}) VALUES ({marks})"
        self._missing = f"{selected} AND NOT EXISTS (SELECT 1 FROM {target} WHERE {match})"
        sets = [f"{quote(c.name)} = ?{i + 1}" for i, c in (places[width:] or places)]
        self._update = f"UPDATE {target} SET {', '.join(sets)} WHERE {match}{here}{inside(0)}"
        self._delete = f"DELETE FROM {target} WHERE {match}{here}"
        moved = ", ".join(f"{quote(c.name)} = ?{i + 1 + width}" for i, c in places)
        self._rekey = f"UPDATE {target} SET {moved} WHERE {match}{here}{inside(width)}"

    def insert(self, cursor: Cursor, rows: str) -> int:
        """See TableWriter."""
        return _many(cursor, self._insert, rows)

    def update(self, cursor: Cursor, rows: str) -> int:
        """See TableWriter."""
        return _many(cursor, self._update, rows)

    def insert_missing(self, cursor: Cursor, rows: str) -> int:
        """See TableWriter."""
        return _many(cursor, self._missing, rows)

    def delete(self, cursor: Cursor, keys: str) -> int:
        """See TableWriter."""
        return _many(cursor, self._delete, keys)

    def rekey(self, cursor: Cursor, row: str) -> int:
        """See TableWriter."""
        return _many(cursor, self._rekey, row)

    def respell(self, cursor: Cursor, rows: str) -> int:
        """See TableWriter."""
        return _many(cursor, self._respell, rows, self._respell_width) if self._respell else 0

    def alike(self, cursor: Any, keys: Sequence[str]) -> Sequence[int | None]:
        """See TableWriter. Values come as the table stores them, so that its collations are all it takes: in a database in memory."""
        del cursor
        names = [f"k{place}" for place in range(len(self._collations))]
        columns = ", ".join(f"{name} COLLATE {quote(known)}" for name, known in zip(names, self._collations, strict=True))
        with closing(sqlite3.connect(":memory:")) as link:
            link.execute(f"CREATE TABLE k (place INTEGER PRIMARY KEY, {columns})")
            marks = ", ".join("?" for _ in names)
            found = values(SEPARATOR.join(f"[{key}]" for key in keys))
            try:
                link.executemany(f"INSERT INTO k VALUES (?, {marks})", [(place, *row) for place, row in enumerate(found)])
            except UNFIT as exc:
                raise NotApplicable(f"a key that does not fit its columns: {exc}") from exc
            numbered = link.execute(f"SELECT DENSE_RANK() OVER (ORDER BY {', '.join(names)}) FROM k ORDER BY place")
            return [number for (number,) in numbered]


def _many(cursor: Cursor, statement: str, rows: str, width: int | None = None) -> int:
    """`width`: of each row so many values only, for a statement that has no more parameters."""
    try:
        cursor.executemany(statement, [row[:width] for row in values(rows)] if width else values(rows))
    except UNFIT as exc:
        raise NotApplicable(f"a row that does not fit its columns: {exc}") from exc
    return cursor.rowcount
