"""MariaDB: row triggers, JSON_TABLE for replay, a cheap poll to wake."""

import re
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pymysql
from sqlalchemy import event, text
from sqlalchemy.engine import URL, Connection, Engine, create_engine
from sqlalchemy.pool import NullPool

from common.dialects import mariadb_ddl, mariadb_outbox
from common.dialects.base import KEEPALIVE, Run, Stoppable, TableWriter, ToldByTriggers, Trigger, Waker, by_name
from common.dialects.json_writer import json_text
from common.dialects.mariadb_capture import row_json, triggers
from common.dialects.mariadb_driver import Connection as Driver
from common.dialects.mariadb_install import MariadbInstalling
from common.dialects.mariadb_script import CompoundScript, PreparedScript
from common.dialects.mariadb_snapshot import MariadbSnapshot
from common.dialects.mariadb_values import quote
from common.dialects.mariadb_writer import MariadbWriter
from common.dialects.polling import PollWaker
from common.dialects.script import SMALL, Script
from common.errors import NotApplicable, StsyncError, Unavailable
from common.schema import Column, Equality, HandedOn, ListedTable, OtherTrigger, Table

_SESSION = (
    "SET SESSION time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES,"
    "NO_ENGINE_SUBSTITUTION', foreign_key_checks = 1, unique_checks = 1, innodb_lock_wait_timeout = 20, group_concat_max_len = 1048576"
)
_LOOKS = 20
_ROW_END = "ROW END"
_TABLES_SQL = """
SELECT t.TABLE_NAME, IF(e.TRANSACTIONS = 'YES', NULL, COALESCE(t.ENGINE, 'unknown'))
FROM information_schema.TABLES t LEFT JOIN information_schema.ENGINES e ON e.ENGINE = t.ENGINE
WHERE TABLE_SCHEMA = DATABASE() AND TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') AND TABLE_NAME NOT LIKE 'stsync\\\\_%%'
"""
_COLUMNS_SQL = """
SELECT TABLE_NAME, COLUMN_NAME, COLUMN_TYPE, CHARACTER_SET_NAME, COLLATION_NAME, GENERATION_EXPRESSION,
       IS_NULLABLE = 'NO' AND COLUMN_DEFAULT IS NULL AND EXTRA NOT LIKE '%%auto_increment%%'
FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() ORDER BY TABLE_NAME, ORDINAL_POSITION
"""
# Joined with the columns here: the server takes fifty times as long for that.
_KEYS_SQL = """
SELECT TABLE_NAME, COLUMN_NAME, INDEX_NAME = 'PRIMARY' FROM information_schema.STATISTICS
WHERE TABLE_SCHEMA = DATABASE() AND NON_UNIQUE = 0 ORDER BY TABLE_NAME, INDEX_NAME, SEQ_IN_INDEX
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
# With whatever a foreign key refers to: here that need not be a unique key.
_FOREIGN_SQL = """
SELECT TABLE_NAME, COLUMN_NAME FROM information_schema.KEY_COLUMN_USAGE
WHERE TABLE_SCHEMA = DATABASE() AND REFERENCED_TABLE_NAME IS NOT NULL
UNION SELECT REFERENCED_TABLE_NAME, REFERENCED_COLUMN_NAME FROM information_schema.KEY_COLUMN_USAGE
WHERE TABLE_SCHEMA = DATABASE() AND REFERENCED_TABLE_SCHEMA = DATABASE()
"""
_OTHERS_SQL = """
SELECT EVENT_OBJECT_TABLE, TRIGGER_NAME, ACTION_STATEMENT LIKE '%%@stsync_replay%%'
FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = DATABASE() AND TRIGGER_NAME NOT LIKE 'stsync\\\\_%%' ORDER BY TRIGGER_NAME
"""
# With the time when each was made: a restored dump makes the very same ones, after it has made other rows.
_INSTALLED_SQL = """
SELECT TRIGGER_NAME, EVENT_OBJECT_TABLE,
       CONCAT_WS('\\n', CREATED, ACTION_TIMING, EVENT_MANIPULATION, SQL_MODE, ACTION_STATEMENT)
FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = DATABASE() AND TRIGGER_NAME LIKE 'stsync\\\\_%%'
"""
# What says that the server, not the change, is the trouble: connections and what they keep, locks, files and space, shutdown, rights,
# read-only.
_AWAY = frozenset(
    {1016, 1020, 1021, 1023, 1024, 1026, 1030, 1034, 1035, 1037, 1038, 1040, 1041, 1042, 1043, 1044, 1045, 1053, 1077, 1078, 1079,
     1080, 1114, 1135, 1142, 1143, 1152, 1153, 1158, 1159, 1160, 1161, 1180, 1184, 1194, 1195, 1203, 1205, 1206, 1213, 1226, 1243,
     1290, 1317, 1412, 1615, 1637, 1698, 1836, 1927, 1969, 3024, 4031}
)  # fmt: skip

_REFUSED = frozenset({1044, 1045, 1049, 1698})  # no right to the database, wrong user or password, unknown database
# What it quotes of a row, which may be secret: `Duplicate entry '…' for key`, `Incorrect integer value: '…' for column`.
_VALUE = re.compile(r"(entry|value:?) '.*'(?= for (?:key|column)|$)", re.DOTALL)
_WITHOUT = r"\1"

# To Lithuanian and Roman y and i, v and u, j and i are the same letters; older character sets compare some signs as letters.
_FOLDED = re.compile("(utf8mb4|utf8mb3|utf8|latin1|ascii)_(?!.*(lithuanian|roman)_)")


def _equality(kind: str, collation: str | None) -> Equality:
    """Only a binary collation that does not pad either tells all texts apart; 0 and -0 are equal. Members of ENUM and SET are stored
    by number."""
    if kind.startswith(("float", "double")):
        return "unknown"
    if kind.startswith(("enum", "set")) or collation is None or collation.endswith("_nopad_bin"):
        return "exact"
    return "folded" if _FOLDED.match(collation) else "unknown"


class Mariadb(MariadbSnapshot, MariadbInstalling, ToldByTriggers):
    """The MariaDB dialect (10.6 and later)."""

    name = "mariadb"
    remove_sql = (  # each by its key: a list of them may be found by a scan, which waits for every transaction that wrote there
        "DELETE o FROM JSON_TABLE(%s, '$[*]' COLUMNS (id BIGINT PATH '$')) x STRAIGHT_JOIN stsync_outbox o ON o.id = x.id"
    )
    replay_mark = "@stsync_replay IS NOT NULL"
    one_writer = False
    removes_late = True
    looks_freely = True
    wake = ""
    errors: tuple[type[BaseException], ...] = (pymysql.MySQLError,)

    def quote(self, name: str) -> str:
        """See Dialect."""
        return quote(name)

    def json_value(self, value: Any) -> str:
        """See Dialect."""
        return json_text(value, true='"1"', false='"0"')

    def json_key(self, value: Any, column: Column) -> str:
        """See Dialect: a number and its text are one already."""
        del column
        return self.json_value(value)

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
            return Driver(*arguments, **named)

        @event.listens_for(engine, "connect")
        def pin(connection: Any, _record: Any) -> None:
            _keep_alive(connection)
            if read_only:
                connection.autocommit(True)  # a single look needs no transaction, nor its end

        @event.listens_for(engine, "checkout")
        def patient(connection: Any, _record: Any, _proxy: Any) -> None:
            connection._read_timeout = None  # noqa: SLF001 (statements may take long; PyMySQL has no other way to say so)

        return engine

    def refused(self, exc: BaseException) -> bool:
        """See EngineDialect. The server's words are in its own language."""
        return bool(exc.args) and exc.args[0] in _REFUSED

    def lock(self, connection: Connection) -> bool:
        """See EngineDialect: a named lock of the session."""
        found = connection.execute(text("SELECT GET_LOCK(CONCAT('stsync.', DATABASE()), 0)")).scalar_one()
        connection.commit()
        return bool(found == 1)

    def check(self, connection: Connection) -> None:
        """See EngineDialect: a server does not change behind a connection."""

    def tidy(self, engine: Engine) -> None:
        """See EngineDialect: InnoDB purges by itself."""

    def script(self, connection: Connection, size: int) -> Script:
        """See EngineDialect."""
        return CompoundScript(connection) if size <= SMALL else PreparedScript(connection)

    def take_sql(self) -> str | None:
        """See EngineDialect: a DELETE would wait for every open transaction that wrote into the outbox."""
        return None

    def read_outbox(
        self, cursor: Any, after: int, limit: int, max_bytes: int | None = None, without: Sequence[Run] = ()
    ) -> Sequence[tuple[Any, ...]]:
        """See EngineDialect."""
        return mariadb_outbox.read(cursor, after, limit, max_bytes, without)

    def read_alike(
        self, cursor: Any, like: Sequence[Any], limit: int, without: Sequence[Run] = ()
    ) -> tuple[int, str] | None:
        """See EngineDialect."""
        return mariadb_outbox.read_alike(cursor, like, limit, without)

    def waker(self, engine: Engine, stop: Stoppable, poll_s: tuple[float, float]) -> Waker:
        """See EngineDialect. To ask is a round trip here, as to look is; where nothing happens, either is done less often."""
        del engine
        return PollWaker(None, lambda: None, stop, (poll_s[0], 2 * poll_s[1]))

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
        computed: dict[tuple[str, str], str | None] = {}
        for table, name, kind, charset, collation, expression, required in connection.exec_driver_sql(_COLUMNS_SQL):
            full = f"{kind} CHARACTER SET {charset} COLLATE {collation}" if charset else kind
            generated = expression is not None
            columns.setdefault(table, []).append(
                Column(name, full, generated, bool(required), equality=_equality(kind, collation))
            )
            computed[table, name.casefold()] = expression
        keys, guarded = _keys(connection, computed)
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
        return row_json(columns)

    def triggers(self, table: ListedTable) -> list[Trigger]:
        """See CaptureDialect."""
        return triggers(table)

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

    def wait_for_disk(self, connection: Connection) -> None:
        """See ReplayDialect: it does, as the server's settings have it."""

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
        first = exc.args[0] if exc.args else 0
        number = first if isinstance(first, int) else 0  # the driver itself tells of some in words alone
        message = str(exc.args[1]) if len(exc.args) > 1 else str(exc)
        system, client = number < 1000, 2000 <= number < 3000  # what the operating system and what the driver tells
        if system or client or number in _AWAY or isinstance(exc, pymysql.err.InterfaceError):
            return Unavailable(f"the database: {message or type(exc).__name__} ({number})")
        return NotApplicable(f"{_VALUE.sub(_WITHOUT, message)} ({number})")


def _keys(
    connection: Connection, computed: Mapping[tuple[str, str], str | None]
) -> tuple[dict[str, list[str]], dict[str, set[str | None]]]:
    """By table: the columns of its primary key; and those in a unique or a foreign key, or to which one refers, None for all where
    such a key is over something computed. `computed`: of each table and column, in small letters, what it is computed from."""
    keys: dict[str, list[str]] = {}
    guarded: dict[str, set[str | None]] = {}

    def guard(table: str, name: str) -> None:
        if (here := (table, name.casefold())) in computed:
            guarded.setdefault(table, set()).add(name if computed[here] is None else None)

    for table, name, primary in connection.exec_driver_sql(_KEYS_SQL):
        guard(table, name)
        # Without the end of a row's time, which a system-versioned table adds to its key.
        if primary and computed.get((table, name.casefold()), _ROW_END) != _ROW_END:
            keys.setdefault(table, []).append(name)
    for table, name in connection.exec_driver_sql(_FOREIGN_SQL):
        guard(table, name)
    return keys, guarded


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


def _guarded(columns: Iterable[Column], named: Collection[str | None]) -> frozenset[str]:
    """See Table.guarded; of what is computed the database may not know the value yet, so that all columns stand for it."""
    return frozenset(c.name for c in columns if not c.generated and (None in named or c.name in named))
