"""PostgreSQL: statement-level triggers with transition tables, jsonb arrays for replay, LISTEN/NOTIFY to wake."""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import psycopg.errors
from sqlalchemy import event, text
from sqlalchemy.engine import URL, Connection, Engine, create_engine
from sqlalchemy.pool import NullPool

from common.dialects import postgresql_ddl
from common.dialects.base import (
    KEEPALIVE,
    OUTBOX_COLUMNS,
    QUICK_CURSOR,
    Run,
    Stoppable,
    TableWriter,
    ToldByTriggers,
    Trigger,
    Waker,
    fitting,
    read_plainly,
)
from common.dialects.json_writer import json_text
from common.dialects.postgresql_capture import triggers
from common.dialects.postgresql_cursor import QuickCursors, QuickScript
from common.dialects.postgresql_install import PostgresqlInstalling
from common.dialects.postgresql_schema import tables
from common.dialects.postgresql_snapshot import PostgresqlSnapshot
from common.dialects.postgresql_waker import CHANNEL, NotifyWaker
from common.dialects.postgresql_writer import PostgresqlWriter, quote
from common.dialects.script import SMALL, Script
from common.errors import Misconfigured, NotApplicable, StsyncError, Unavailable
from common.schema import Column, ListedTable, Table

_PINNED = (
    "SET timezone = 'UTC'; SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; SET extra_float_digits = 1;"
    " SET bytea_output = 'hex'; SET xmloption = 'content'; SET lc_monetary = 'C'; SET standard_conforming_strings = on;"
    # What is published must not be lost afterwards: at least the server's own disk has it.
    " SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
)
# SQLSTATE classes that say that the server, not the change, is the trouble: connection, authorization, transaction state and
# rollback (deadlock), resources, not in prerequisite state (lock time-out), operator intervention, system and internal errors.
_AWAY = frozenset({"08", "25", "28", "3D", "40", "53", "55", "57", "58", "F0", "XX"})
_DATA = "22"  # the class of errors about values, which quote them, each language in its own way
_QUOTED = re.compile(r'[:：]? ?["„“”«»‹›「」].*["„“”«»‹›「」]', re.DOTALL)
_NO_RIGHT = (
    "the primary's writer had foreign keys switched off (session_replication_role = replica), and this node's user may not do"
    " that: GRANT SET ON PARAMETER session_replication_role TO it, on every node"
)
_NOT_UTF8 = (
    "database.url: the database {name} is encoded in {encoding}, which cannot hold all texts of another node; make it anew: CREATE"
    " DATABASE … ENCODING 'UTF8' TEMPLATE template0"
)
_REFUSED = ("password authentication failed", "no password supplied", "does not exist", "invalid connection option")
_LOCK_KEY = 0x5354_5359_4E43  # "STSYNC"

# With the number of the table: a restored dump makes the very same triggers, after it has made other rows.
_INSTALLED_SQL = """
SELECT t.tgname, c.relname,
       concat_ws(E'\\n', c.oid, t.tgenabled, t.tgtype, p.proname, p.prosecdef, p.proconfig::text, p.prosrc)
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid
WHERE NOT t.tgisinternal
 AND (t.tgname LIKE 'stsync\\_%%' OR t.tgname LIKE '!stsync\\_%%') AND c.relnamespace = current_schema()::regnamespace
"""
# Bytes of a row of the outbox: where one such stands, more may, and all of them may be too much to take at once.
_LONG = 64 << 10
_TAKE_SQL = (
    "DELETE FROM stsync_outbox WHERE id IN (SELECT id FROM stsync_outbox ORDER BY id LIMIT %s) RETURNING "
    + OUTBOX_COLUMNS.replace("rows_json", f"CASE WHEN octet_length(rows_json) < {_LONG} THEN rows_json END")
)


class Postgresql(PostgresqlSnapshot, PostgresqlInstalling, ToldByTriggers):
    """The PostgreSQL dialect (15 and later)."""

    name = "postgresql"
    remove_sql = "DELETE FROM stsync_outbox WHERE id IN (SELECT json_array_elements_text(%s)::bigint)"
    replay_mark = "current_setting('stsync.replay', true) = 'on'"
    one_writer = False
    removes_late = False
    looks_freely = False
    wake = f"NOTIFY {CHANNEL}"
    errors: tuple[type[BaseException], ...] = (psycopg.Error,)

    def quote(self, name: str) -> str:
        """See Dialect."""
        return quote(name)

    def json_value(self, value: Any) -> str:
        """See Dialect."""
        return json_text(value, true='"true"', false='"false"')

    def json_key(self, value: Any, column: Column) -> str:
        """See Dialect: a number and its text are one already."""
        del column
        return self.json_value(value)

    def engine(self, url: URL, connect_timeout_s: float, *, read_only: bool = False) -> Engine:
        """See EngineDialect."""
        isolation = "REPEATABLE READ" if read_only else "READ COMMITTED"
        engine = create_engine(
            url,
            poolclass=NullPool,
            pool_reset_on_return=None,  # closing rolls back; saying so to a dead server would only fail
            hide_parameters=True,
            connect_args={
                "prepare_threshold": None,  # else psycopg, after a rollback, deallocates all there are, QuickCursors' too
                "connect_timeout": max(1, round(connect_timeout_s)),
                "application_name": "stsync",
                "client_encoding": "UTF8",  # else it is the database's, and QuickCursors' is this
                "keepalives_idle": KEEPALIVE.idle_s,
                "keepalives_interval": KEEPALIVE.interval_s,
                "keepalives_count": KEEPALIVE.count,
                "tcp_user_timeout": KEEPALIVE.total_s * 1000,
            },
            isolation_level=isolation,
        )

        @event.listens_for(engine, "do_connect")
        def connect(_dialect: Any, _record: Any, arguments: Sequence[Any], named: dict[str, Any]) -> Any:
            connection = psycopg.connect(*arguments, **named)
            encoding = connection.info.parameter_status("server_encoding")
            if encoding != "UTF8":
                connection.close()
                raise Misconfigured(_NOT_UTF8.format(name=url.database, encoding=encoding))
            return connection

        @event.listens_for(engine, "connect")
        def pin(connection: Any, record: Any) -> None:
            before = connection.autocommit
            connection.autocommit = True
            connection.execute(f"SET default_transaction_isolation = '{isolation.lower()}'; {_PINNED}")
            connection.autocommit = before
            record.info[QUICK_CURSOR] = QuickCursors(connection, isolation)

        return engine

    def refused(self, exc: BaseException) -> bool:
        """See EngineDialect. libpq tells no SQLSTATE of a connection that did not come to be, only words."""
        return any(words in str(exc) for words in _REFUSED)

    def lock(self, connection: Connection) -> bool:
        """See EngineDialect: an advisory lock of the session."""
        found = connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK_KEY}).scalar_one()
        connection.commit()
        return bool(found)

    def check(self, connection: Connection) -> None:
        """See EngineDialect: a server does not change behind a connection."""

    def tidy(self, engine: Engine) -> None:
        """See EngineDialect: dead rows would be read again and again until the server's own vacuum comes (once a minute)."""
        connection = engine.raw_connection()
        try:
            driver: Any = connection.driver_connection
            driver.autocommit = True
            driver.execute("VACUUM (TRUNCATE false, INDEX_CLEANUP on) stsync_outbox")
        finally:
            connection.invalidate()

    def script(self, connection: Connection, size: int) -> Script:
        """See EngineDialect."""
        return QuickScript(connection) if size <= SMALL else Script(connection)

    def take_sql(self) -> str | None:
        """See EngineDialect: a DELETE neither sees nor waits for what is not committed."""
        return _TAKE_SQL

    def read_outbox(
        self, cursor: Any, after: int, limit: int, max_bytes: int | None = None, without: Sequence[Run] = ()
    ) -> Sequence[tuple[Any, ...]]:
        """See EngineDialect."""
        count = fitting(cursor, "octet_length(rows_json)", after, limit, max_bytes, without)
        return read_plainly(cursor, after, count, without)

    def read_alike(
        self, cursor: Any, like: Sequence[Any], limit: int, without: Sequence[Run] = ()
    ) -> tuple[int, str] | None:
        """See EngineDialect: triggers write one row for many changes."""

    def waker(self, engine: Engine, stop: Stoppable, poll_s: tuple[float, float]) -> Waker:
        """See EngineDialect."""
        del poll_s
        return NotifyWaker(engine, stop)

    def prepare(self, connection: Connection) -> list[str]:
        """See CaptureDialect."""
        del connection
        return []

    def storage(self, table: str) -> list[str]:
        """See CaptureDialect. What is read once and deleted at once, and what is sealed, is not worth its compression."""
        column = {"stsync_outbox": "rows_json", "stsync_journal": "message"}.get(table)
        return [] if column is None else [f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTERNAL"]

    def tables(self, connection: Connection) -> dict[str, Table]:
        """See CaptureDialect."""
        return tables(connection)

    def same_name(self, left: str, right: str) -> bool:
        """Exactly, or as PostgreSQL folds an unquoted name."""
        return left == right or left.lower() == right

    def installed(self, connection: Connection) -> list[Trigger]:
        """See CaptureDialect."""
        return [
            Trigger(name, table, (), (f"DROP FUNCTION IF EXISTS {quote(name)}() CASCADE",), definition)
            for name, table, definition in connection.exec_driver_sql(_INSTALLED_SQL)
        ]

    def row(self, columns: Sequence[tuple[str, Column]]) -> str:
        """See CaptureDialect."""
        return (
            "pg_catalog.array_to_json(ARRAY["
            + ", ".join(f"CAST({ref} AS {c.type})::text" for ref, c in columns)
            + "])::text"
        )

    def triggers(self, table: ListedTable) -> list[Trigger]:
        """See CaptureDialect."""
        return triggers(table)

    def claim(self, connection: Connection, changed: Collection[str], dropped: Collection[str]) -> None:
        """See InstallDialect."""
        postgresql_ddl.claim(connection, list(map(quote, changed)), list(map(quote, dropped)))

    def objection(self, connection: Connection, exc: BaseException) -> StsyncError | None:
        """See InstallDialect."""
        del connection
        return postgresql_ddl.objection(exc)

    def writer(self, table: ListedTable, columns: Sequence[str]) -> TableWriter:
        """See ReplayDialect."""
        return PostgresqlWriter(table, columns)

    def truncate(self, table: ListedTable) -> str:
        """See ReplayDialect."""
        return f"DELETE FROM {quote(table.name)}" + (f" WHERE ({table.where})" if table.where else "")

    def mark_session(self, connection: Connection) -> None:
        """See ReplayDialect. Its commits are not waited for until they are on disk, as with a subscription's (CREATE SUBSCRIPTION,
        synchronous_commit): what a crash of the server takes, it takes with the position, and the journal brings it again."""
        connection.exec_driver_sql("SELECT set_config('stsync.replay', 'on', false)")
        connection.exec_driver_sql("SET synchronous_commit = off")
        connection.commit()

    def wait_for_disk(self, connection: Connection) -> None:
        """See ReplayDialect."""
        connection.exec_driver_sql("SET synchronous_commit = on")
        connection.commit()

    def enter_at_once(self, connection: Connection, *, unordered: bool) -> None:
        """See ReplayDialect: what is deferrable is checked at each statement, as the schema has it; else the careful way follows."""

    def enter_replay(self, connection: Connection, *, deferred: bool) -> None:
        """See ReplayDialect; deferrable constraints are deferred to the end of the unit."""
        del deferred
        connection.exec_driver_sql("SELECT set_config('stsync.replay', 'on', true)")
        connection.exec_driver_sql("SET CONSTRAINTS ALL DEFERRED")

    @contextmanager
    def unchecked(self, connection: Connection) -> Iterator[None]:
        """See ReplayDialect. A savepoint that is rolled back ends it, too. NotApplicable where this user may not do that."""
        allowed = connection.exec_driver_sql(
            "SELECT has_parameter_privilege('session_replication_role', 'SET')"
        ).scalar_one()
        if not allowed:
            raise NotApplicable(_NO_RIGHT)
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        yield
        connection.exec_driver_sql("SET LOCAL session_replication_role = origin")

    def settle(self, connection: Connection) -> None:
        """See ReplayDialect."""
        connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
        connection.exec_driver_sql("SET CONSTRAINTS ALL DEFERRED")

    def leave_replay(self, connection: Connection) -> None:
        """See ReplayDialect: the mark ends with the transaction."""

    def translate(self, exc: BaseException) -> StsyncError:
        """See ReplayDialect: by SQLSTATE class (PostgreSQL manual, appendix A)."""
        state = getattr(exc, "sqlstate", None) or ""
        message = _message(exc)
        if isinstance(exc, psycopg.DataError) and not state:  # psycopg itself refuses a value: the server never saw it
            return NotApplicable(message)
        if not state or state[:2] in _AWAY or state == "42501":
            return Unavailable(f"the database: {message or type(exc).__name__}")
        return NotApplicable(message)


def _message(exc: BaseException) -> str:
    """The server's words without values, which may be secret: without its DETAIL (`Failing row contains (…)`, `Key (x)=(y)`), and
    without what it quotes where it speaks of a value (`invalid input syntax for type integer: "…"`)."""
    diagnosis = exc.diag if isinstance(exc, psycopg.Error) else None
    if diagnosis is None or not diagnosis.message_primary:
        return " ".join(str(exc).split("\nDETAIL")[0].split())
    words = diagnosis.message_primary
    if (diagnosis.sqlstate or "").startswith(_DATA):
        words = f"{_QUOTED.sub('', words).strip()} ({type(exc).__name__})"
    return " ".join(words.split())
