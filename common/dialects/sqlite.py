"""SQLite (WAL): row triggers, typed values through bound parameters, `data_version` as a poll that costs microseconds."""

import fcntl
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from common.dialects.base import (
    Cursor,
    Stoppable,
    TableWriter,
    Trigger,
    Waker,
    by_name,
    columns_for,
    columns_json,
    written,
)
from common.dialects.polling import PollWaker
from common.errors import Misconfigured, NotApplicable, StsyncError, Unavailable
from common.schema import Column, ListedTable, Table

READ_ONLY = "stsync_read"
_BUSY_TIMEOUT_S = 30.0
_VIOLATIONS = "stsync_violations"
_DEFERRED_SQL = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND sql LIKE '%INITIALLY%DEFERRED%' LIMIT 1"
# Result codes that say that the database, not the change, is the trouble.
_AWAY = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)


def quote(name: str) -> str:
    """An identifier, quoted."""
    return '"' + name.replace('"', '""') + '"'


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _value(reference: str) -> str:
    """A value as JSON text that keeps its storage class: integers bare, reals and blobs tagged (TRAPS 30)."""
    return (
        f"CASE typeof({reference}) WHEN 'integer' THEN {reference} WHEN 'text' THEN json_quote({reference})"
        f" WHEN 'null' THEN 'null' WHEN 'real' THEN '{{\"r\":\"' || printf('%!.17g', {reference}) || '\"}}'"
        f" ELSE '{{\"x\":\"' || hex({reference}) || '\"}}' END"
    )


def _row(columns: Iterable[tuple[str, Column]]) -> str:
    return _json(f"{alias}.{quote(c.name)}" for alias, c in columns)


def _json(references: Iterable[str]) -> str:
    return "'[' || " + " || ',' || ".join(_value(one) for one in references) + " || ']'"


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
    except ValueError as exc:
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

        def arriving(offset: int) -> str:
            chosen = ", ".join(f"?{i + 1 + offset} AS {quote(c.name)}" for i, c in places)
            return f"(SELECT {chosen})"

        def inside(offset: int) -> str:
            return f" AND EXISTS (SELECT 1 FROM {arriving(offset)} WHERE ({where}))" if where else ""

        columns = ", ".join(quote(c.name) for _, c in places)
        filtered = f" WHERE ({where})" if where else " WHERE 1"
        self._width = width
        selected = f"INSERT INTO {target} ({columns}) SELECT {columns} FROM {arriving(0)}{filtered}"
        plain = f"INSERT INTO {target} ({columns}) VALUES ({', '.join(f'?{i + 1}' for i, _ in places)})"
        self._insert = selected if where else plain
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


def _many(cursor: Cursor, statement: str, rows: str) -> int:
    cursor.executemany(statement, values(rows))
    return cursor.rowcount


class Sqlite:
    """The SQLite dialect (3.40 and later)."""

    name = "sqlite"
    errors: tuple[type[BaseException], ...] = (sqlite3.Error,)
    read_options: Mapping[str, Any] = {READ_ONLY: True}

    def quote(self, name: str) -> str:
        """See Dialect."""
        return quote(name)

    def json_number(self, text: str) -> str:
        """See Dialect."""
        whole = text.lstrip("-").isdigit() and -(2**63) <= int(text) < 2**63
        return text if whole else f'{{"r":"{text}"}}'

    def json_boolean(self, value: bool) -> str:
        """See Dialect."""
        return "1" if value else "0"

    def engine(self, url: URL, connect_timeout_s: float) -> Engine:
        """See EngineDialect. Transactions begin with the write lock, but for connections with the option `stsync_read`."""
        del connect_timeout_s
        if not url.database or url.database == ":memory:":
            raise Misconfigured("database.url: a database file is needed, as in sqlite:////path/st.db")
        engine = create_engine(
            url,
            poolclass=NullPool,
            hide_parameters=True,
            connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False},
        )

        @event.listens_for(engine, "connect")
        def pin(connection: Any, _record: Any) -> None:
            connection.isolation_level = None
            for pragma in (
                "foreign_keys = ON",
                "synchronous = FULL",
                "recursive_triggers = OFF",
                "trusted_schema = ON",
            ):
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            reading = connection.get_execution_options().get(READ_ONLY)
            connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

        @event.listens_for(engine, "commit")
        def commit(connection: Connection) -> None:
            """SQLite keeps a transaction open whose commit a deferred constraint refused; SQLAlchemy takes it for ended."""
            try:
                connection.exec_driver_sql("COMMIT")
            except DBAPIError:
                connection.connection.rollback()
                raise

        return engine

    def lock(self, connection: Connection) -> bool:
        """See EngineDialect: a lock on a file beside the database."""
        path = Path(f"{connection.engine.url.database}-stsync.lock")
        handle = path.open("a")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            return False
        connection.info["stsync_lock"] = handle  # lives, and holds the lock, as long as the connection
        return True

    def tidy(self, engine: Engine) -> None:
        """See EngineDialect: a deleted row leaves nothing behind."""

    def waker(self, engine: Engine, stop: Stoppable, poll_s: tuple[float, float]) -> Waker:
        """See EngineDialect: `PRAGMA data_version` says whether any other connection committed."""
        connection = engine.raw_connection()
        driver: Any = connection.driver_connection
        seen = [-1]

        def pending() -> bool:
            try:
                version = driver.execute("PRAGMA data_version").fetchone()[0]
                if version == seen[0]:
                    return False
                found = driver.execute("SELECT 1 FROM stsync_outbox LIMIT 1").fetchone() is not None
            except sqlite3.Error as exc:
                raise self.translate(exc) from exc
            seen[0] = version
            return found

        return PollWaker(pending, connection.close, stop, poll_s)

    def prepare(self, connection: Connection) -> list[str]:
        """See CaptureDialect: WAL, so that readers and the writer do not block each other."""
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
        return [] if str(mode).lower() == "wal" else ["PRAGMA journal_mode = WAL"]

    def tables(self, connection: Connection) -> dict[str, Table]:
        """See CaptureDialect."""
        names = connection.exec_driver_sql(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
            " AND name NOT LIKE 'stsync\\_%' ESCAPE '\\' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        )
        return by_name([_describe(connection, name) for (name,) in names.all()])

    def same_name(self, left: str, right: str) -> bool:
        """SQLite compares ASCII letters without case."""
        return left.lower() == right.lower()

    def installed(self, connection: Connection) -> list[Trigger]:
        """See CaptureDialect."""
        rows = connection.exec_driver_sql(
            "SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'stsync\\_%' ESCAPE '\\'"
        )
        return [Trigger(name, table, (), (f"DROP TRIGGER IF EXISTS {quote(name)}",)) for name, table in rows]

    def row(self, columns: Sequence[tuple[str, Column]]) -> str:
        """See CaptureDialect."""
        return _json(reference for reference, _ in columns)

    def triggers(self, table: ListedTable) -> list[Trigger]:
        """See CaptureDialect."""
        insert = _emit(table, "I", _row([("NEW", c) for c in table.columns]), table.columns)
        delete = _emit(table, "D", _row([("OLD", c) for c in table.key]), table.key)
        update = _emit(table, "U", _row([("NEW", c) for c in table.columns]), table.columns)
        rekey = _emit(
            table,
            "K",
            _row([*(("OLD", c) for c in table.key), *(("NEW", c) for c in table.columns)]),
            table.columns,
        )
        old, new = _inside(table, "OLD"), _inside(table, "NEW")
        same_key, same_rest = _same(table.key), _same(table.columns[len(table.key) :])
        found = [
            *_replaced(table),
            _trigger(table, "stsync_i_", "INSERT", [new], _emit_replaced(table) + insert),
            _trigger(table, "stsync_d_", "DELETE", [old], delete),
            _trigger(table, "stsync_u_", "UPDATE", [old, new, same_key, f"NOT ({same_rest})"], update),
            _trigger(table, "stsync_k_", "UPDATE", [old, new, f"NOT ({same_key})"], rekey),
        ]
        if table.where:
            found.append(_trigger(table, "stsync_o_", "UPDATE", [old, f"NOT {new}"], delete))
            found.append(_trigger(table, "stsync_c_", "UPDATE", [new, f"NOT {old}"], insert))
        return found

    def writer(self, table: ListedTable, columns: Sequence[str]) -> TableWriter:
        """See ReplayDialect."""
        return SqliteWriter(table, columns)

    def truncate(self, table: ListedTable) -> str:
        """See ReplayDialect."""
        return f"DELETE FROM {quote(table.name)}" + (f" WHERE ({table.where})" if table.where else "")

    def enter_replay(self, connection: Connection, *, deferred: bool) -> None:
        """See ReplayDialect: a row that only this transaction can see, for it has the write lock."""
        connection.exec_driver_sql("INSERT INTO stsync_replaying (id) VALUES (1)")
        connection.info.pop(_VIOLATIONS, None)
        if deferred:  # a cascading key update is captured child first: its triggers fire before the parent's own
            connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        elif connection.exec_driver_sql(_DEFERRED_SQL).first() is not None:
            connection.info[_VIOLATIONS] = _violations(connection)

    def settle(self, connection: Connection) -> None:
        """See ReplayDialect: SQLite tells of deferred foreign keys at the commit only, and there is but a costly way to look
        earlier; it is gone where each change is judged by itself, if the schema has such keys."""
        before = connection.info.get(_VIOLATIONS)
        if before is not None and _violations(connection) > before:
            raise NotApplicable("FOREIGN KEY constraint failed (a deferred one)")

    def leave_replay(self, connection: Connection) -> None:
        """See ReplayDialect."""
        connection.exec_driver_sql("DELETE FROM stsync_replaying")

    def translate(self, exc: BaseException) -> StsyncError:
        """See ReplayDialect: by result code."""
        code = getattr(exc, "sqlite_errorcode", None)
        if code is None or code & 0xFF in _AWAY:
            return Unavailable(f"the database: {exc}")
        return NotApplicable(str(exc))


def _violations(connection: Connection) -> int:
    return len(connection.exec_driver_sql("PRAGMA foreign_key_check").all())


def _describe(connection: Connection, name: str) -> Table:
    columns, keys = [], []
    for _, column, kind, notnull, default, key, hidden in connection.exec_driver_sql(
        f"PRAGMA table_xinfo({quote(name)})"
    ).all():
        columns.append(Column(column, kind or "", hidden in (2, 3), bool(notnull) and default is None))
        if key:
            keys.append((key, column))
    parents = {row[2] for row in connection.exec_driver_sql(f"PRAGMA foreign_key_list({quote(name)})").all()}
    indexes = connection.exec_driver_sql(f"PRAGMA index_list({quote(name)})").all()
    uniques = tuple(_indexed(connection, row[1]) for row in indexes if row[2] and row[3] != "pk" and not row[4])
    return Table(
        name, tuple(columns), tuple(column for _, column in sorted(keys)), frozenset(parents), tuple(filter(None, uniques))
    )


def _indexed(connection: Connection, index: str) -> tuple[str, ...]:
    """The columns of an index; none when it is over an expression."""
    names = [row[2] for row in connection.exec_driver_sql(f"PRAGMA index_info({quote(index)})").all()]
    return () if None in names else tuple(names)


def _emit(table: ListedTable, kind: str, row: str, columns: Iterable[Column]) -> str:
    names = columns_json(c.name for c in columns)
    return (
        "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json, row_count, canonical)"
        f" VALUES ({_literal(table.name)}, '{kind}', {_literal(names)}, {row}, 1, 1);"
    )


def _replaced(table: ListedTable) -> list[Trigger]:
    """`INSERT OR REPLACE` deletes rows with an equal unique value and fires no delete trigger (TRAPS 2): they are noted before
    the insert. After it they are gone for certain, for the unique value is the new row's; an insert that was ignored or failed
    leaves a note that the next insert wipes."""
    if not table.table.uniques:
        return []
    equal = " OR ".join(
        "(" + " AND ".join(f"t.{quote(name)} = NEW.{quote(name)}" for name in columns) + ")"
        for columns in table.table.uniques
    )
    other = " AND ".join(f"t.{quote(c.name)} IS NEW.{quote(c.name)}" for c in table.key)
    inside = f" AND ({table.where})" if table.where else ""
    key = _row([("t", c) for c in table.key])
    note = (
        "DELETE FROM stsync_replaced; INSERT INTO stsync_replaced (key_json)"
        f" SELECT {key} FROM {quote(table.name)} t WHERE ({equal}) AND NOT ({other}){inside};"
    )
    return [_trigger(table, "stsync_r_", "INSERT", [], note, moment="BEFORE")]


def _emit_replaced(table: ListedTable) -> str:
    if not table.table.uniques:
        return ""
    names = columns_json(c.name for c in table.key)
    return (
        "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json, row_count, canonical)"
        f" SELECT {_literal(table.name)}, 'D', {_literal(names)}, key_json, 1, 1 FROM stsync_replaced;\n  "
        "DELETE FROM stsync_replaced;\n  "
    )


def _trigger(
    table: ListedTable, prefix: str, verb: str, conditions: Iterable[str], body: str, moment: str = "AFTER"
) -> Trigger:
    name = f"{prefix}{table.name}"
    when = " AND ".join(["NOT EXISTS (SELECT 1 FROM stsync_replaying)", *(c for c in conditions if c)])
    drop = f"DROP TRIGGER IF EXISTS {quote(name)}"
    create = (
        f"CREATE TRIGGER {quote(name)} {moment} {verb} ON {quote(table.name)} FOR EACH ROW WHEN {when}\nBEGIN\n  {body}\nEND"
    )
    return Trigger(name, table.name, (drop, create), (drop,))


def _inside(table: ListedTable, alias: str) -> str:
    if not table.where:
        return ""
    names = ", ".join(f"{alias}.{quote(c.name)} AS {quote(c.name)}" for c in table.table.columns)
    return f"COALESCE((SELECT ({table.where}) FROM (SELECT {names})), 0)"


def _same(columns: Iterable[Column]) -> str:
    """Equal to the byte, whatever the column's collation, and of the same storage class."""
    parts = []
    for column in columns:
        old, new = f"OLD.{quote(column.name)}", f"NEW.{quote(column.name)}"
        parts.append(f"{old} COLLATE BINARY IS {new} AND typeof({old}) = typeof({new})")
    return " AND ".join(parts) or "1"
