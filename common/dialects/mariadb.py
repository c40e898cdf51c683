"""MariaDB: row triggers, JSON_TABLE for replay, a cheap poll to wake."""

import hashlib
import re
import socket
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import NoneType
from typing import Any

import orjson
import pymysql
from pymysql.converters import escape_string
from sqlalchemy import event, text
from sqlalchemy.engine import URL, Connection, Engine, create_engine
from sqlalchemy.pool import NullPool

from common.changes import SEPARATOR
from common.dialects import mariadb_ddl
from common.dialects.base import (
    CANONICAL,
    KEEPALIVE,
    UNCHECKED,
    Cursor,
    JsonWriter,
    Quote,
    Stoppable,
    TableWriter,
    ToldByTriggers,
    Trigger,
    Waker,
    by_name,
    columns_json,
    fitting,
    json_text,
    read_plainly,
)
from common.dialects.mariadb_script import Committing, CompoundScript
from common.dialects.polling import PollWaker
from common.dialects.script import SMALL, Script
from common.errors import NotApplicable, StsyncError, Unavailable
from common.schema import Column, Equality, HandedOn, ListedTable, OtherTrigger, Table

_SESSION = (
    "SET SESSION time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES,"
    "NO_ENGINE_SUBSTITUTION', foreign_key_checks = 1, unique_checks = 1, innodb_lock_wait_timeout = 20"
)
_LOOKS = 20
_TABLES_SQL = """
SELECT t.TABLE_NAME, IF(e.TRANSACTIONS = 'YES', NULL, COALESCE(t.ENGINE, 'unknown'))
FROM information_schema.TABLES t LEFT JOIN information_schema.ENGINES e ON e.ENGINE = t.ENGINE
WHERE TABLE_SCHEMA = DATABASE() AND TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') AND TABLE_NAME NOT LIKE 'stsync\\\\_%%'
"""
_COLUMNS_SQL = """
SELECT TABLE_NAME, COLUMN_NAME, COLUMN_TYPE, CHARACTER_SET_NAME, COLLATION_NAME, GENERATION_EXPRESSION IS NOT NULL,
       IS_NULLABLE = 'NO' AND COLUMN_DEFAULT IS NULL AND EXTRA NOT LIKE '%%auto_increment%%'
FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() ORDER BY TABLE_NAME, ORDINAL_POSITION
"""
# Without the end of a row's time, which a system-versioned table adds to its key.
_KEYS_SQL = """
SELECT k.TABLE_NAME, k.COLUMN_NAME FROM information_schema.STATISTICS k JOIN information_schema.COLUMNS c
  ON c.TABLE_SCHEMA = k.TABLE_SCHEMA AND c.TABLE_NAME = k.TABLE_NAME AND c.COLUMN_NAME = k.COLUMN_NAME
WHERE k.TABLE_SCHEMA = DATABASE() AND c.TABLE_SCHEMA = DATABASE() AND k.INDEX_NAME = 'PRIMARY'
  AND COALESCE(c.GENERATION_EXPRESSION, '') <> 'ROW END' ORDER BY k.TABLE_NAME, k.SEQ_IN_INDEX
"""
_PARENTS_SQL = """
SELECT r.TABLE_NAME, r.CONSTRAINT_NAME, r.REFERENCED_TABLE_NAME, k.COLUMN_NAME, k.REFERENCED_COLUMN_NAME,
       CASE r.DELETE_RULE WHEN 'CASCADE' THEN 'delete' WHEN 'SET NULL' THEN 'null' ELSE '' END,
       CASE r.UPDATE_RULE WHEN 'CASCADE' THEN 'follow' WHEN 'SET NULL' THEN 'null' ELSE '' END
FROM information_schema.REFERENTIAL_CONSTRAINTS r JOIN information_schema.KEY_COLUMN_USAGE k
  ON k.CONSTRAINT_SCHEMA = r.CONSTRAINT_SCHEMA AND k.TABLE_NAME = r.TABLE_NAME AND k.CONSTRAINT_NAME = r.CONSTRAINT_NAME
WHERE r.CONSTRAINT_SCHEMA = DATABASE() AND k.TABLE_SCHEMA = DATABASE() AND k.REFERENCED_TABLE_NAME IS NOT NULL
ORDER BY k.ORDINAL_POSITION
"""
# Columns in a unique or a foreign key, and all of a table where a unique key is over something computed.
_GUARDED_SQL = """
SELECT s.TABLE_NAME, IF(c.GENERATION_EXPRESSION IS NULL, s.COLUMN_NAME, NULL)
FROM information_schema.STATISTICS s JOIN information_schema.COLUMNS c
  ON c.TABLE_SCHEMA = s.TABLE_SCHEMA AND c.TABLE_NAME = s.TABLE_NAME AND c.COLUMN_NAME = s.COLUMN_NAME
WHERE s.TABLE_SCHEMA = DATABASE() AND c.TABLE_SCHEMA = DATABASE() AND s.NON_UNIQUE = 0
UNION SELECT TABLE_NAME, COLUMN_NAME FROM information_schema.KEY_COLUMN_USAGE
WHERE TABLE_SCHEMA = DATABASE() AND REFERENCED_TABLE_NAME IS NOT NULL
"""
_OTHERS_SQL = """
SELECT EVENT_OBJECT_TABLE, TRIGGER_NAME, ACTION_STATEMENT LIKE '%%@stsync_replay%%'
FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = DATABASE() AND TRIGGER_NAME NOT LIKE 'stsync\\\\_%%' ORDER BY TRIGGER_NAME
"""
_READ_SQL = (
    "SELECT CONCAT_WS(' ', id, row_count, canonical, CHAR_LENGTH(table_name), CHAR_LENGTH(kind),"
    " CONCAT(table_name, kind, columns_json)), rows_json FROM stsync_outbox WHERE id > %s ORDER BY id LIMIT %s"
)
# With the time when each was made: a restored dump makes the very same ones, after it has made other rows.
_INSTALLED_SQL = """
SELECT TRIGGER_NAME, EVENT_OBJECT_TABLE,
       CONCAT_WS('\\n', CREATED, ACTION_TIMING, EVENT_MANIPULATION, SQL_MODE, ACTION_STATEMENT)
FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = DATABASE() AND TRIGGER_NAME LIKE 'stsync\\\\_%%'
"""
_CANONICAL = f"IF(@@foreign_key_checks, {CANONICAL}, {UNCHECKED})"
_BINARY = ("binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob", "geometry", "point", "linestring", "polygon",
           "multipoint", "multilinestring", "multipolygon", "geometrycollection")  # fmt: skip
_INTEGER = ("tinyint", "smallint", "mediumint", "int", "bigint")
_NUMBER = re.compile(r"-?[0-9]+")
_TEXT = ("char", "varchar", "tinytext", "text", "mediumtext", "longtext", "enum", "set")
# What says that the server, not the change, is the trouble: connections, locks, files and space, shutdown, rights, read-only.
_AWAY = frozenset(
    {1016, 1020, 1021, 1023, 1024, 1026, 1030, 1034, 1035, 1037, 1038, 1040, 1041, 1042, 1043, 1044, 1045, 1053, 1077, 1078, 1079,
     1080, 1114, 1135, 1142, 1143, 1152, 1153, 1158, 1159, 1160, 1161, 1180, 1184, 1194, 1195, 1203, 1205, 1206, 1213, 1226, 1290,
     1317, 1412, 1637, 1698, 1836, 1927, 1969, 3024, 4031}
)  # fmt: skip


# What it quotes of a row, which may be secret: `Duplicate entry '…' for key`, `Incorrect integer value: '…' for column`.
_VALUE = re.compile(r"(entry|value:?) '.*'(?= for (?:key|column)|$)", re.DOTALL)
_WITHOUT = r"\1"
_SMALL = 256 << 10  # far below any max_allowed_packet in use, even when every character is escaped
_SLACK = 1024
_VALUE_HERE = "\0"


def quote(name: str) -> str:
    """An identifier, quoted."""
    return "`" + name.replace("`", "``") + "`"


def _literal(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _base(column: Column) -> str:
    return column.type.split("(")[0].split(" ")[0].lower()


def _text_of(column: Column, reference: str) -> str:
    """The column's exact text, independent of the writer's session (DESIGN §4, TRAPS 30)."""
    base = _base(column)
    if base in _BINARY:
        return f"HEX({reference})"
    if base == "timestamp":
        return f"CAST(IF({reference} = 0, 0, UNIX_TIMESTAMP({reference})) AS CHAR)"  # of zero it is NULL in a trigger
    if base == "bit":
        return f"CAST({reference} + 0 AS CHAR)"
    if base == "float":
        return f"CAST(CAST({reference} AS DOUBLE) AS CHAR)"
    if base == "longtext":  # which JSON is an alias of, and JSON_ARRAY would embed it as JSON: null for 'null'
        return f"CONCAT('', CONVERT({reference} USING utf8mb4))"
    if base in _TEXT:
        return f"CONVERT({reference} USING utf8mb4)"
    return f"CAST({reference} AS CHAR)"


def _equality(kind: str, collation: str | None) -> Equality:
    """Only a binary collation that does not pad either tells all texts apart; 0 and -0 are equal."""
    if kind.startswith(("float", "double")):
        return "unknown"
    return "exact" if collation is None or collation.endswith("_nopad_bin") else "folded"


def _row(columns: Iterable[tuple[str, Column]]) -> str:
    return _json((f"{alias}.{quote(c.name)}", c) for alias, c in columns)


def _json(columns: Iterable[tuple[str, Column]]) -> str:
    return "JSON_ARRAY(" + ", ".join(_text_of(c, reference) for reference, c in columns) + ")"


class MariadbWriter(JsonWriter):
    """Frames through JSON_TABLE; keys with their column's own type and collation, so that the join uses the index, and so the
    columns that the row filter names, so that it means the same as over the table."""

    def __init__(self, table: ListedTable, names: Sequence[str], quote: Quote) -> None:
        super().__init__(table, names, quote)
        written_names = ", ".join(quote(column.name) for _, column in self.places)
        self._table = quote(table.name)
        self._into = f"INSERT INTO {quote(table.name)} ({written_names}) VALUES "
        self._places = [(place, _from_text(column, _VALUE_HERE)) for place, column in self.places]
        self._keys_plain = all(map(_is_plain, self.keys)) and not self.where
        settable = self._places[len(self.keys) :] or self._places
        self._sets = [(f"{quote(self.columns[place].name)} = ", place, how) for place, how in settable]
        self._matches = [(f"{quote(c.name)} = ", _base(c) in _INTEGER) for c in self.keys]

    def execute(self, cursor: Cursor, statement: str, rows: str) -> int:
        """See JsonWriter."""
        if len(rows) > _SMALL:
            self._fit(cursor, len(escape_string(rows).encode()) + len(statement.encode()), rows)
        return super().execute(cursor, statement, rows)

    def insert(self, cursor: Cursor, rows: str) -> int:
        """See TableWriter. VALUES cost the server, and PyMySQL, much less than JSON_TABLE; rows that are not as our triggers write
        them, and those that the row filter has to judge, go the other way."""
        values = None if self.where else self._values(rows)
        if values is None:
            return super().insert(cursor, rows)
        statement = self._into + values
        if len(statement) > _SMALL:
            self._fit(cursor, len(statement.encode()), rows)
        cursor.execute(statement)
        return cursor.rowcount

    def update(self, cursor: Cursor, rows: str) -> int:
        """See TableWriter. JSON_TABLE makes a table on disk for each statement, which costs more than the change of a single row."""
        row = self._single(rows, len(self.columns))
        match = None if row is None else self._match(row)
        if row is None or match is None:
            return super().update(cursor, rows)
        sets = ", ".join([name + _spliced(how, row[place]) for name, place, how in self._sets])
        cursor.execute(f"UPDATE {self._table} SET {sets} WHERE {match}")
        return cursor.rowcount

    def delete(self, cursor: Cursor, keys: str) -> int:
        """See TableWriter; a single row as in `update`."""
        row = self._single(keys, len(self.keys))
        match = None if row is None else self._match(row)
        if match is None:
            return super().delete(cursor, keys)
        cursor.execute(f"DELETE FROM {self._table} WHERE {match}")
        return cursor.rowcount

    def _single(self, rows: str, width: int) -> list[str | None] | None:
        """The values of a single row; None where it is to go the other way."""
        if not self._keys_plain or len(rows) > _SMALL or SEPARATOR in rows:
            return None
        parsed = _parsed(rows, width)
        return None if parsed is None else parsed[0]

    def _match(self, row: list[str | None]) -> str | None:
        """The row with this key. Integers stand bare: compared with a text they would be compared as floats."""
        parts = []
        for (name, is_integer), value in zip(self._matches, row, strict=False):
            if value is None or (is_integer and not _NUMBER.fullmatch(value)):
                return None
            parts.append(name + (value if is_integer else f"'{escape_string(value)}'"))
        return " AND ".join(parts)

    def _values(self, rows: str) -> str | None:
        parsed = _parsed(rows, len(self.columns))
        if parsed is None:
            return None
        return ",".join([f"({','.join([_spliced(how, row[place]) for place, how in self._places])})" for row in parsed])

    def _fit(self, cursor: Cursor, size: int, rows: str) -> None:
        """The server cuts the connection for a statement above max_allowed_packet, so that is looked at before.

        Raises NotApplicable for several rows (fewer may go), Unavailable for one: nothing is lost, and it goes on when the server's
        operator has raised the variable.
        """
        asking: Any = cursor.direct if isinstance(cursor, Script) else cursor
        asking.execute("SELECT @@max_allowed_packet")
        packet = int(asking.fetchall()[0][0])
        if size + _SLACK > packet:
            reason = (
                f"a change of table {self.table.name} needs a statement of {size} bytes, and max_allowed_packet is {packet}"
            )
            raise NotApplicable(reason) if SEPARATOR in rows else Unavailable(f"the database: {reason}; raise it there")

    def source(self, columns: Iterable[tuple[int, Column, str]]) -> str:
        """See JsonWriter."""
        wanted, filtered = list(columns), self.where.lower()
        table = ", ".join(
            f"c{place} {_json_type(c, typed=c in self.keys or c.name.lower() in filtered)} PATH '$[{place}]' ERROR ON ERROR"
            for place, c, _ in wanted
        )
        values = ", ".join(f"{_from_text(c, f'c{place}')} AS {self.quote(name)}" for place, c, name in wanted)
        return f"SELECT {values} FROM JSON_TABLE(%s, '$[*]' COLUMNS ({table})) j"

    def update_sql(self) -> str:
        """See JsonWriter."""
        sets = self.assignments(with_key=False, prefix="t.")
        return f"UPDATE {self.target} t JOIN ({self.rows_in()}) x ON {self.key_match()} SET {sets} WHERE TRUE{self.local_filter()}"

    def delete_sql(self) -> str:
        """See JsonWriter."""
        return (
            f"DELETE t FROM {self.target} t JOIN ({self.keys_in()}) x ON {self.key_match()} WHERE TRUE{self.local_filter()}"
        )

    def rekey_sql(self) -> str:
        """See JsonWriter."""
        rows = self.rows_in(offset=len(self.keys), old_key=True)
        sets = self.assignments(with_key=True, prefix="t.")
        return f"UPDATE {self.target} t JOIN ({rows}) x ON {self.key_match('stsync_old_')} SET {sets} WHERE TRUE{self.local_filter()}"


def _parsed(rows: str, width: int) -> list[list[str | None]] | None:
    """Rows as our triggers write them; None for others."""
    try:
        parsed: list[list[str | None]] = orjson.loads(f"[{rows}]")
    except ValueError:
        return None
    if all(type(row) is list and len(row) == width and {str, NoneType}.issuperset(map(type, row)) for row in parsed):
        return parsed
    return None


def _is_plain(column: Column) -> bool:
    """Whether the column can be compared with a literal and mean what it means compared with a column of its own type."""
    return _base(column) in _INTEGER or _base(column) in {"char", "varchar"}


def _json_type(column: Column, *, typed: bool) -> str:
    base = _base(column)
    if (
        typed
        and base not in _BINARY
        and base not in {"timestamp", "bit", "enum", "set", "float", "double", "uuid", "inet6", "inet4"}
    ):
        return column.type
    return "LONGTEXT CHARACTER SET utf8mb4"


def _spliced(how: str, value: str | None) -> str:
    literal = "NULL" if value is None else f"'{escape_string(value)}'"
    return literal if how == _VALUE_HERE else how.replace(_VALUE_HERE, literal)


def _from_text(column: Column, value: str) -> str:
    base = _base(column)
    if base in _BINARY:
        # Without the conversion, in an UPDATE that joins JSON_TABLE, it is NULL or "too long" for some values (MariaDB 10.11).
        return f"UNHEX(CONVERT({value} USING ascii))"
    if base == "timestamp":
        seconds = f"CAST({value} AS DECIMAL(20,6))"
        return f"CAST(IF({seconds} = 0, '0000-00-00 00:00:00', FROM_UNIXTIME({seconds})) AS DATETIME(6))"
    if base == "bit":
        return f"CAST({value} AS UNSIGNED)"
    return value


class Mariadb(ToldByTriggers):
    """The MariaDB dialect (10.6 and later)."""

    name = "mariadb"
    remove_sql = (  # each by its key: a list of them may be found by a scan, which waits for every transaction that wrote there
        "DELETE o FROM JSON_TABLE(%s, '$[*]' COLUMNS (id BIGINT PATH '$')) x STRAIGHT_JOIN stsync_outbox o ON o.id = x.id"
    )
    replay_mark = "@stsync_replay IS NOT NULL"
    errors: tuple[type[BaseException], ...] = (pymysql.MySQLError,)

    def quote(self, name: str) -> str:
        """See Dialect."""
        return quote(name)

    def json_value(self, value: Any) -> str:
        """See Dialect."""
        return json_text(value, true='"1"', false='"0"')

    def engine(self, url: URL, connect_timeout_s: float, *, read_only: bool = False) -> Engine:
        """See EngineDialect."""
        engine = create_engine(
            url,
            poolclass=NullPool,
            pool_reset_on_return=None,  # closing rolls back; saying so to a dead server would only fail
            hide_parameters=True,
            connect_args={
                "connect_timeout": max(1, round(connect_timeout_s)),
                "read_timeout": connect_timeout_s,  # for the handshake too, which PyMySQL's connect_timeout does not cover
                "charset": "utf8mb4",
                "init_command": _SESSION,  # before SQLAlchemy looks at the session, at its sql_mode for one
            },
            isolation_level="REPEATABLE READ" if read_only else "READ COMMITTED",
        )

        if read_only:

            @event.listens_for(engine, "begin")
            def begin(connection: Connection) -> None:
                connection.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT")

        @event.listens_for(engine, "do_connect")
        def connect(_dialect: Any, _record: Any, arguments: Sequence[Any], named: dict[str, Any]) -> Any:
            return Committing(*arguments, **named)

        @event.listens_for(engine, "connect")
        def pin(connection: Any, _record: Any) -> None:
            _keep_alive(connection)
            if read_only:
                connection.autocommit(True)  # a single look needs no transaction, nor its end

        @event.listens_for(engine, "checkout")
        def patient(connection: Any, _record: Any, _proxy: Any) -> None:
            connection._read_timeout = None  # noqa: SLF001 (statements may take long; PyMySQL has no other way to say so)

        return engine

    def lock(self, connection: Connection) -> bool:
        """See EngineDialect: a named lock of the session."""
        found = connection.execute(text("SELECT GET_LOCK(CONCAT('stsync.', DATABASE()), 0)")).scalar_one()
        connection.commit()
        return bool(found == 1)

    def tidy(self, engine: Engine) -> None:
        """See EngineDialect: InnoDB purges by itself."""

    def script(self, connection: Connection, size: int) -> Script:
        """See EngineDialect."""
        return CompoundScript(connection) if size <= SMALL else Script(connection)

    def take_sql(self) -> str | None:
        """See EngineDialect: a DELETE would wait for every open transaction that wrote into the outbox."""
        return None

    def read_outbox(self, cursor: Any, after: int, limit: int, max_bytes: int | None = None) -> Sequence[tuple[Any, ...]]:
        """See EngineDialect. PyMySQL takes its time for each column, and here a change is a row: but two columns, and what repeats
        from row to row is taken apart once."""
        count = fitting(cursor, "length(rows_json)", after, limit, max_bytes)
        cursor.execute(_READ_SQL, (after, count))
        rows = cursor.fetchall()
        try:
            return self._apart(rows)
        except ValueError:  # together too long for max_allowed_packet, and so NULL
            return read_plainly(cursor, after, count)

    def _apart(self, rows: Iterable[tuple[str, str]]) -> list[tuple[Any, ...]]:
        heads: dict[str, tuple[Any, ...]] = {}
        found = []
        for described, rows_json in rows:
            number, _, head = described.partition(" ")
            known = heads.get(head)
            if known is None:
                known = heads[head] = _taken_apart(head)
            table, kind, columns, count, canonical = known
            found.append((int(number), table, kind, columns, rows_json, count, canonical))
        return found

    def waker(self, engine: Engine, stop: Stoppable, poll_s: tuple[float, float]) -> Waker:
        """See EngineDialect. To ask is a round trip here, as to look is; either is done less often."""
        del engine
        return PollWaker(None, lambda: None, stop, (4 * poll_s[0], 2 * poll_s[1]))

    def prepare(self, connection: Connection) -> list[str]:
        """See CaptureDialect."""
        del connection
        return []

    def storage(self, table: str) -> list[str]:
        """See CaptureDialect."""
        del table
        return []

    def tables(self, connection: Connection) -> dict[str, Table]:
        """See CaptureDialect."""
        found = by_name(self._tables(connection))
        for _ in range(_LOOKS):  # for a moment of ALTER TABLE the server knows nothing of the table, or not all
            before, found = found, by_name(self._tables(connection))
            if found == before:
                break
        return found

    def _tables(self, connection: Connection) -> list[Table]:
        columns: dict[str, list[Column]] = {}
        for table, name, kind, charset, collation, generated, required in connection.exec_driver_sql(_COLUMNS_SQL):
            full = f"{kind} CHARACTER SET {charset} COLLATE {collation}" if charset else kind
            columns.setdefault(table, []).append(
                Column(name, full, bool(generated), bool(required), equality=_equality(kind, collation))
            )
        keys: dict[str, list[str]] = {}
        for table, name in connection.exec_driver_sql(_KEYS_SQL):
            keys.setdefault(table, []).append(name)
        parents: dict[str, set[str]] = {}
        foreign: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        for table, constraint, parent, column, referred, on_delete, on_update in connection.exec_driver_sql(_PARENTS_SQL):
            parents.setdefault(table, set()).add(parent)
            if on_delete or on_update:
                foreign.setdefault((table, constraint, parent, on_delete, on_update), []).append((column, referred))
        silent: dict[str, set[HandedOn]] = {}
        for (table, _, parent, *rules), pairs in foreign.items():
            here, there = zip(*pairs, strict=True)
            silent.setdefault(table, set()).add(HandedOn(parent, here, there, *rules))
        guarded: dict[str, set[str | None]] = {}
        for table, column in connection.exec_driver_sql(_GUARDED_SQL):
            guarded.setdefault(table, set()).add(column)
        others: dict[str, list[OtherTrigger]] = {}
        for table, name, minds in connection.exec_driver_sql(_OTHERS_SQL):
            others.setdefault(table, []).append(OtherTrigger(name, bool(minds)))
        found = connection.exec_driver_sql(_TABLES_SQL).all()
        return [
            Table(
                name,
                tuple(columns.get(name, ())),
                tuple(keys.get(name, ())),
                frozenset(parents.get(name, ())),
                triggers=tuple(others.get(name, ())),
                silent=frozenset(silent.get(name, ())),
                guarded=_guarded(columns.get(name, []), guarded.get(name, set())),
                obstacle=None if engine is None else _without_transactions(name, engine),
            )
            for name, engine in found
        ]

    def same_name(self, left: str, right: str) -> bool:
        """Exactly: table names on Linux servers differ by case."""
        return left == right

    def installed(self, connection: Connection) -> list[Trigger]:
        """See CaptureDialect."""
        return [
            Trigger(name, table, (), (f"DROP TRIGGER IF EXISTS {quote(name)}",), definition)
            for name, table, definition in connection.exec_driver_sql(_INSTALLED_SQL)
        ]

    def row(self, columns: Sequence[tuple[str, Column]]) -> str:
        """See CaptureDialect."""
        return _json(columns)

    def triggers(self, table: ListedTable) -> list[Trigger]:
        """See CaptureDialect. Cascades fire no triggers here: they happen again on the secondary (TRAPS 2)."""
        insert = _emit(table, "I", _row([("NEW", c) for c in table.columns]), table.columns)
        delete = _emit(table, "D", _row([("OLD", c) for c in table.key]), table.key)
        return [
            _trigger(table, "stsync_i_", "INSERT", _when(table, "NEW", insert)),
            _trigger(table, "stsync_u_", "UPDATE", _update_body(table, insert, delete)),
            _trigger(table, "stsync_d_", "DELETE", _when(table, "OLD", delete)),
        ]

    def claim(self, connection: Connection, changed: Collection[str], dropped: Collection[str]) -> None:
        """See InstallDialect."""
        mariadb_ddl.claim(connection, changed, dropped)

    def objection(self, connection: Connection, exc: BaseException) -> StsyncError | None:
        """See InstallDialect."""
        return mariadb_ddl.objection(connection, exc)

    def writer(self, table: ListedTable, columns: Sequence[str]) -> TableWriter:
        """See ReplayDialect."""
        return MariadbWriter(table, columns, quote)

    def truncate(self, table: ListedTable) -> str:
        """See ReplayDialect."""
        return f"DELETE FROM {quote(table.name)}" + (f" WHERE ({table.where})" if table.where else "")

    def mark_session(self, connection: Connection) -> None:
        """See ReplayDialect."""
        self.enter_replay(connection, deferred=False)
        connection.commit()

    def enter_at_once(self, connection: Connection, *, unordered: bool) -> None:
        """See ReplayDialect."""

    def enter_replay(self, connection: Connection, *, deferred: bool) -> None:
        """See ReplayDialect: the session is marked, and stays so."""
        del deferred
        connection.exec_driver_sql("SET @stsync_replay = 1")

    @contextmanager
    def unchecked(self, connection: Connection) -> Iterator[None]:
        """See ReplayDialect."""
        connection.exec_driver_sql("SET SESSION foreign_key_checks = 0")
        try:
            yield
        finally:
            connection.exec_driver_sql("SET SESSION foreign_key_checks = 1")

    def settle(self, connection: Connection) -> None:
        """See ReplayDialect: InnoDB defers nothing."""

    def leave_replay(self, connection: Connection) -> None:
        """See ReplayDialect: a session that replays does nothing else."""

    def translate(self, exc: BaseException) -> StsyncError:
        """See ReplayDialect: by error number."""
        number = exc.args[0] if exc.args else 0
        message = str(exc.args[1]) if len(exc.args) > 1 else str(exc)
        system, client = number < 1000, 2000 <= number < 3000  # what the operating system and what the driver tells
        if system or client or number in _AWAY or isinstance(exc, pymysql.err.InterfaceError):
            return Unavailable(f"the database: {message or type(exc).__name__} ({number})")
        return NotApplicable(f"{_VALUE.sub(_WITHOUT, message)} ({number})")


def _taken_apart(head: str) -> tuple[str, str, str, int, int]:
    """What _READ_SQL put together."""
    count, canonical, of_table, of_kind, texts = head.split(" ", 4)
    kind = int(of_table)
    columns = kind + int(of_kind)
    return texts[:kind], texts[kind:columns], texts[columns:], int(count), int(canonical)


def _without_transactions(table: str, engine: str) -> str:
    return (
        f"is kept by the engine {engine}, which knows no transactions: what is rolled back, or cut short by a crash, stays in it; "
        f"ALTER TABLE {table} ENGINE = InnoDB, or take it from the list"
    )


def _keep_alive(connection: Any) -> None:
    """PyMySQL only switches keepalive on, with the kernel's two hours; a read time-out would also end long statements."""
    found = connection._sock  # noqa: SLF001 (the only way but making the socket ourselves)
    if found.family == socket.AF_UNIX:
        return
    for option, value in (
        (socket.TCP_KEEPIDLE, KEEPALIVE.idle_s),
        (socket.TCP_KEEPINTVL, KEEPALIVE.interval_s),
        (socket.TCP_KEEPCNT, KEEPALIVE.count),
        (socket.TCP_USER_TIMEOUT, KEEPALIVE.total_s * 1000),
    ):
        found.setsockopt(socket.IPPROTO_TCP, option, value)


def _trigger(table: ListedTable, prefix: str, verb: str, body: str) -> Trigger:
    name = f"{prefix}{table.name}"
    if len(name) > 64:
        name = f"{prefix}{table.name[:40]}_{hashlib.sha256(table.name.encode()).hexdigest()[:12]}"
    create = (  # replaced in one statement, which commits by itself: writers get by before it and after it, never in between
        f"CREATE OR REPLACE TRIGGER {quote(name)} AFTER {verb} ON {quote(table.name)} FOR EACH ROW\n"
        f"BEGIN\n  {_altered(table.name)}\n  IF @stsync_replay IS NULL THEN\n  {body}\n  END IF;\nEND"
    )
    return Trigger(name, table.name, (create,), (f"DROP TRIGGER IF EXISTS {quote(name)}",))


def _altered(table: str) -> str:
    """Columns that the trigger names are gone: the writer, who fails, is told more than that (in 128 characters at most)."""
    told = f"stsync: columns of {table} changed; run `stsync install` on every node"
    return f"DECLARE EXIT HANDLER FOR 1054 SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = {_literal(told[:128])};"


def _emit(table: ListedTable, kind: str, row: str, columns: Iterable[Column]) -> str:
    names = columns_json(c.name for c in columns)
    return (
        "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json, row_count, canonical)"
        f" VALUES ({_literal(table.name)}, '{kind}', {_literal(names)}, {row}, 1, {_CANONICAL});"
    )


def _when(table: ListedTable, alias: str, statement: str) -> str:
    if not table.where:
        return statement
    flag = f"stsync_{alias.lower()}"
    return f"BEGIN\n{_judge(table, alias)}\n  IF {flag} THEN {statement} END IF; END;"


def _judge(table: ListedTable, alias: str) -> str:
    """Sets the variable `stsync_old` or `stsync_new` to whether that row is inside the row filter.

    The filter's bare column names become variables of an inner block. (A derived table over OLD or NEW would read better, and
    crashes the server as soon as a text column is in it: MariaDB 10.11.19, Field_blob::store_field below mysql_handle_derived.)
    """
    where = (table.where or "").lower()
    named = [column for column in table.table.columns if column.name.lower() in where]
    declared = " ".join(f"DECLARE {quote(c.name)} {_variable(c, f'{alias}.{quote(c.name)}')};" for c in named)
    flag = f"stsync_{alias.lower()}"
    return f"  DECLARE {flag} BOOL DEFAULT FALSE;\n  BEGIN {declared} SET {flag} = COALESCE(({table.where}), FALSE); END;"


def _variable(column: Column, value: str) -> str:
    """The type and the value that a row filter sees: of a TIMESTAMP what it is in UTC, as in replay, whatever the writer's time zone
    (a trigger cannot have one of its own)."""
    if _base(column) != "timestamp":
        return f"{column.type} DEFAULT {value}"
    utc = f"TIMESTAMP '1970-01-01 00:00:00' + INTERVAL UNIX_TIMESTAMP({value}) SECOND"
    return f"datetime{column.type[len('timestamp') :]} DEFAULT IF({value} = 0, '0000-00-00 00:00:00', {utc})"


def _guarded(columns: Iterable[Column], named: Collection[str | None]) -> frozenset[str]:
    """See Table.guarded; of what is computed the database may not know the value yet, so that all columns stand for it."""
    return frozenset(c.name for c in columns if not c.generated and (None in named or c.name in named))


def _same(columns: Iterable[Column], other: str = "NEW") -> str:
    """Whether OLD and NEW (or another row) are equal to the byte in these columns."""
    parts = []
    for column in columns:
        old, new = f"OLD.{quote(column.name)}", f"{other}.{quote(column.name)}"
        if _base(column) in _TEXT:
            old, new = f"BINARY {old}", f"BINARY {new}"
        parts.append(f"{old} <=> {new}")
    return " AND ".join(parts) or "TRUE"


def _update_body(table: ListedTable, insert: str, delete: str) -> str:
    update = _emit(table, "U", _row([("NEW", c) for c in table.columns]), table.columns)
    rekey_row = _row([*(("OLD", c) for c in table.key), *(("NEW", c) for c in table.columns)])
    rekey = _emit(table, "K", rekey_row, table.columns)
    same_key = _same(table.key)
    changed = f"NOT ({_same(table.columns[len(table.key) :])})"
    body = f"IF NOT ({same_key}) THEN {rekey} ELSEIF {changed} THEN {update} END IF;"
    if table.where:
        body = (
            f"BEGIN\n{_judge(table, 'OLD')}\n  BEGIN\n{_judge(table, 'NEW')}\n"
            f"  IF stsync_old AND stsync_new THEN {body}\n  ELSEIF stsync_old THEN {delete}\n"
            f"  ELSEIF stsync_new THEN {insert} END IF;\n  END; END;"
        )
    return f"IF {_skipped(table)} THEN BEGIN END; ELSE {body} END IF;"


def _skipped(table: ListedTable) -> str:
    """Whether this update was not made: UPDATE IGNORE passes over rows that a unique or a foreign key refuses, and MariaDB calls
    triggers for them with values that are nowhere. The row then still stands as it was."""
    guarded = [column for column in table.table.columns if column.name in table.table.guarded]
    found = " AND ".join(f"s.{quote(c.name)} = OLD.{quote(c.name)}" for c in table.key)
    return (
        f"NOT ({_same(guarded)}) AND EXISTS (SELECT 1 FROM {quote(table.name)} s WHERE {found} AND {_same(guarded, 's')}"
        " LOCK IN SHARE MODE)"
    )
