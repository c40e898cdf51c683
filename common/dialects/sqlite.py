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
from common.schema import Column, ListedTable, OtherTrigger, Table

_BUSY_TIMEOUT_S = 30.0
_OTHERS_SQL = """
SELECT tbl_name, name, sql FROM sqlite_master WHERE type = 'trigger' AND name NOT LIKE 'stsync\\_%' ESCAPE '\\' ORDER BY name
"""
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


def _text(raw: bytes) -> str:
    """Whatever a program stored as text: bytes that are no UTF-8 become lone surrogates, which the relay knows (TRAPS 30)."""
    return raw.decode("utf-8", "surrogateescape")


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
        match = " AND ".join(f"{quote(c.name)} IS ?{i + 1}" for i, c in enumerate(keys))  # SQLite allows NULL in a key

        def inside(offset: int) -> str:
            arriving = _typed(table, {c.name: f"?{i + 1 + offset}" for i, c in places})
            return f" AND EXISTS (SELECT 1 FROM {arriving} WHERE ({where}))" if where else ""

        columns = ", ".join(quote(c.name) for _, c in places)
        marks = ", ".join(f"?{i + 1}" for i, _ in places)
        selected = f"INSERT INTO {target} ({columns}) SELECT {marks} WHERE 1{inside(0)}"
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


def _typed(table: ListedTable, values: Mapping[str, str]) -> str:
    """Values as a row set whose columns have the table's own affinity and collation, so that a filter means the same over it.

    A compound SELECT takes both from its first part; the LIMIT keeps SQLite from taking it apart again.
    """
    names, given = ", ".join(map(quote, values)), ", ".join(values.values())
    return f"(SELECT {names} FROM {quote(table.name)} WHERE 0 UNION ALL SELECT {given} LIMIT -1)"


def _many(cursor: Cursor, statement: str, rows: str) -> int:
    cursor.executemany(statement, values(rows))
    return cursor.rowcount


class Sqlite:
    """The SQLite dialect (3.40 and later)."""

    name = "sqlite"
    replay_mark = "EXISTS (SELECT 1 FROM stsync_replaying)"
    errors: tuple[type[BaseException], ...] = (sqlite3.Error,)

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

    def engine(self, url: URL, connect_timeout_s: float, *, read_only: bool = False) -> Engine:
        """See EngineDialect. Transactions begin with the write lock, but for those that only read."""
        del connect_timeout_s
        if not url.database or url.database == ":memory:":
            raise Misconfigured("database.url: a database file is needed, as in sqlite:////path/st.db")
        engine = create_engine(
            url,
            poolclass=NullPool,
            pool_reset_on_return=None,  # closing rolls back; saying so to a dead server would only fail
            hide_parameters=True,
            connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False},
        )

        @event.listens_for(engine, "connect")
        def pin(connection: Any, _record: Any) -> None:
            connection.isolation_level = None
            if read_only:
                connection.text_factory = _text
            for pragma in (
                "foreign_keys = ON",
                "synchronous = FULL",
                "recursive_triggers = OFF",
                "trusted_schema = ON",
            ):
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

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
        others: dict[str, list[OtherTrigger]] = {}
        for table, trigger, sql in connection.exec_driver_sql(_OTHERS_SQL):
            others.setdefault(table.lower(), []).append(OtherTrigger(trigger, "stsync_replaying" in sql.lower()))
        return by_name([_describe(connection, name, others.get(name.lower(), ())) for (name,) in names.all()])

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
        """See CaptureDialect. Rows are captured as they stand, see `_standing`."""
        standing = _standing(table, _key_of(table, "NEW"))
        still = f"EXISTS (SELECT 1{_standing(table, _key_of(table, 'OLD'))})"
        row, old_key = [("s", c) for c in table.columns], [("OLD", c) for c in table.key]
        insert = _emit(table, "I", _row(row), table.columns, standing)
        delete = _emit(table, "D", _row(old_key), table.key, f" WHERE NOT {still}")
        update = _emit(table, "U", _row(row), table.columns, standing)
        old, new = _inside(table, "OLD"), _inside(table, "NEW")
        same_key, same_rest = _same(table.key), _same(table.columns[len(table.key) :])
        found = [
            *_replaced(table),
            *_rekeyed(table, [old, new, f"NOT ({same_key})"]),
            _trigger(table, "stsync_i_", "INSERT", [], _emit_replaced(table) + insert),
            _trigger(table, "stsync_d_", "DELETE", [old], delete),
            _trigger(table, "stsync_u_", "UPDATE", [old, new, same_key, f"NOT ({same_rest})"], update),
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


def _describe(connection: Connection, name: str, others: Sequence[OtherTrigger]) -> Table:
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
        name,
        tuple(columns),
        tuple(column for _, column in sorted(keys)),
        frozenset(parents),
        tuple(filter(None, uniques)),
        tuple(others),
    )


def _indexed(connection: Connection, index: str) -> tuple[str, ...]:
    """The columns of an index; none when it is over an expression."""
    names = [row[2] for row in connection.exec_driver_sql(f"PRAGMA index_info({quote(index)})").all()]
    return () if None in names else tuple(names)


def _emit(table: ListedTable, kind: str, row: str, columns: Iterable[Column], source: str = "") -> str:
    names = columns_json(c.name for c in columns)
    return (
        "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json, row_count, canonical)"
        f" SELECT {_literal(table.name)}, '{kind}', {_literal(names)}, {row}, 1, 1{source};"
    )


def _key_of(table: ListedTable, alias: str) -> list[str]:
    return [f"{alias}.{quote(c.name)}" for c in table.key]


def _standing(table: ListedTable, key: Iterable[str]) -> str:
    """FROM the row with this key as it stands inside the row filter, called s. A trigger of another program, which may be made
    at any time, may have changed it again by now, and that may have been captured before: the order of triggers is not defined."""
    keys = " AND ".join(f"s.{quote(c.name)} IS {value}" for c, value in zip(table.key, key, strict=True))
    columns = ", ".join(quote(c.name) for c in table.table.columns)
    inside = f" WHERE ({table.where})" if table.where else ""
    source = f"(SELECT {columns} FROM {quote(table.name)}{inside})" if table.where else quote(table.name)
    return f" FROM {source} s WHERE {keys}"


def _replaced(table: ListedTable) -> list[Trigger]:
    """`OR REPLACE` deletes rows with an equal key or unique value and fires no delete trigger (TRAPS 2): they are noted before,
    and those that do not stand afterwards, or not inside the row filter, are emitted. A note only says where to look, so one
    that is left by an insert that was ignored does no harm."""
    if not _may_lose(table):
        return []
    columns = {*table.table.key, *(name for names in table.table.uniques for name in names)}
    updating = [f"NOT ({_same(c for c in table.table.columns if c.name in columns)})"]
    return [
        _trigger(table, "stsync_r_", "INSERT", [], _note(table), moment="BEFORE"),
        _trigger(table, "stsync_q_", "UPDATE", updating, _note(table, f" AND NOT {_old_itself(table)}"), moment="BEFORE"),
        _trigger(table, "stsync_p_", "UPDATE", updating, _emit_replaced(table)),
    ]


def _rekeyed(table: ListedTable, conditions: Iterable[str]) -> list[Trigger]:
    """A key update takes its place in the outbox before it happens, for what other triggers do with the row's new key may be
    captured before ours comes; so does the delete of a row whose key it takes (`UPDATE OR REPLACE`). What stands there until
    then only says what is so already, and remains where the update is ignored."""
    key, columns = [c.name for c in table.key], [c.name for c in table.columns]
    old, new = ([(alias, c) for c in table.key] for alias in ("OLD", "NEW"))
    before, after = (_row([*old, *((alias, c) for c in table.columns)]) for alias in ("OLD", "NEW"))
    taken = " AND ".join(f"t.{quote(name)} = NEW.{quote(name)}" for name in key)
    inside = f" AND ({table.where})" if table.where else ""
    taken = f" FROM {quote(table.name)} t WHERE {taken} AND NOT {_old_itself(table)}{inside}"
    place = (
        f"(SELECT o.id FROM stsync_outbox o WHERE o.table_name = {_literal(table.name)} AND o.kind = 'K'"
        f" AND o.columns_json = {_literal(columns_json(columns))} AND o.rows_json = {before} ORDER BY o.id DESC LIMIT 1)"
    )
    places = (
        _emit(table, "U", _row(new), table.key, taken),
        _emit(table, "K", before, table.columns),
    )
    kept = (
        f"UPDATE stsync_outbox SET kind = 'D' WHERE id = {place} - 1 AND table_name = {_literal(table.name)} AND kind = 'U'"
        f" AND columns_json = {_literal(columns_json(key))} AND rows_json = {_row(new)};",
        f"UPDATE stsync_outbox SET rows_json = {after} WHERE id = {place};",
    )
    return [
        _trigger(table, "stsync_b_", "UPDATE", conditions, "\n  ".join(places), moment="BEFORE"),
        _trigger(table, "stsync_k_", "UPDATE", conditions, "\n  ".join(kept)),
    ]


def _old_itself(table: ListedTable) -> str:
    return "(" + " AND ".join(f"t.{quote(c.name)} IS OLD.{quote(c.name)}" for c in table.key) + ")"


def _may_lose(table: ListedTable) -> bool:
    return bool(table.table.uniques or table.where)


def _note(table: ListedTable, but: str = "") -> str:
    equal = [table.table.key, *table.table.uniques]
    met = " OR ".join("(" + " AND ".join(f"t.{quote(n)} = NEW.{quote(n)}" for n in columns) + ")" for columns in equal)
    inside = f" AND ({table.where})" if table.where else ""
    name, key = _literal(table.name), _row([("t", c) for c in table.key])
    known = f"SELECT 1 FROM stsync_replacing n WHERE n.table_name = {name} AND n.key_json = {key}"
    return (
        f"INSERT INTO stsync_replacing (table_name, key_json) SELECT DISTINCT {name}, {key} FROM {quote(table.name)} t"
        f" WHERE ({met}){but}{inside} AND NOT EXISTS ({known});"
    )


def _emit_replaced(table: ListedTable) -> str:
    if not _may_lose(table):
        return ""
    places = [f"'$[{place}]'" for place in range(len(table.key))]
    plain = _standing(table, [f"json_extract(n.key_json, {place})" for place in places])
    tagged = " OR ".join(f"json_type(n.key_json, {place}) = 'object'" for place in places)  # rare, and no index helps
    inside = f" AND ({table.where})" if table.where else ""
    same = f"SELECT 1 FROM {quote(table.name)} t WHERE {_row([('t', c) for c in table.key])} = n.key_json{inside}"
    gone = f"NOT EXISTS (SELECT 1{plain}) AND NOT (({tagged}) AND EXISTS ({same}))"
    done = f"DELETE FROM stsync_replacing WHERE table_name = {_literal(table.name)};"
    names = columns_json(c.name for c in table.key)
    return (
        "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json, row_count, canonical)"
        f" SELECT n.table_name, 'D', {_literal(names)}, n.key_json, 1, 1 FROM stsync_replacing n"
        f" WHERE n.table_name = {_literal(table.name)} AND {gone};\n  {done}\n  "
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
    values = {c.name: f"{alias}.{quote(c.name)}" for c in table.table.columns}
    return f"COALESCE((SELECT ({table.where}) FROM {_typed(table, values)}), 0)"


def _same(columns: Iterable[Column]) -> str:
    """Equal to the byte, whatever the column's collation, and of the same storage class."""
    parts = []
    for column in columns:
        old, new = f"OLD.{quote(column.name)}", f"NEW.{quote(column.name)}"
        parts.append(f"{old} COLLATE BINARY IS {new} AND typeof({old}) = typeof({new})")
    return " AND ".join(parts) or "1"
