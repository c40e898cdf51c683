"""SQLite (WAL): row triggers, typed values through bound parameters, `data_version` as a poll that costs microseconds."""

import fcntl
import os
import re
import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from common.dialects.base import OUTBOX_COLUMNS, Run, Stoppable, TableWriter, Trigger, Waker, outside, raw_cursor
from common.dialects.json_writer import JsonNumber, json_text
from common.dialects.polling import PollWaker
from common.dialects.script import Script
from common.dialects.sqlite_capture import quote, row_json, triggers
from common.dialects.sqlite_install import SqliteInstalling
from common.dialects.sqlite_schema import tables
from common.dialects.sqlite_snapshot import SqliteSnapshot
from common.dialects.sqlite_writer import SqliteWriter, values
from common.errors import Fault, Misconfigured, NotApplicable, StsyncError, Unavailable
from common.schema import Cascade, Column, ListedTable, Table

_BUSY_TIMEOUT_S = 30.0
_RETRY_S, _RETRY_SLOWER, _LONGEST_RETRY_S = 0.0003, 1.1, 0.01
_PATIENT_SQL = f"PRAGMA busy_timeout = {round(_BUSY_TIMEOUT_S * 1000)}"
_ROWS_JSON = OUTBOX_COLUMNS.split(", ").index("rows_json")
# As what they are declared, whatever a program stored: a column of SQLite takes any value, and drivers store bytes as a BLOB.
_READ_SQL = "SELECT " + ", ".join(
    f"CAST({name} AS {'TEXT' if name in ('table_name', 'kind', 'columns_json', 'rows_json') else 'INTEGER'})"
    for name in OUTBOX_COLUMNS.split(", ")
)
_LOCK, _FILE = "stsync_lock", "stsync_file"  # in a connection's info
_VIOLATIONS = "stsync_violations"
_UNENFORCED = "stsync_unenforced"
_MARK_SQL = "INSERT INTO stsync_replaying (id) VALUES (1)"
_DEFER_SQL = "PRAGMA defer_foreign_keys = ON"
_TAGGED = {  # how values that JSON has no form for are written (TRAPS 30)
    "r": re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|Inf)"),
    "x": re.compile(r"(?:[0-9A-Fa-f]{2})*"),
}
_WHOLE = re.compile(r"[-+]?[0-9]{1,18}")
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


def check_file(name: str) -> None:
    """Raises Misconfigured for a database file that cannot serve. It is asked for once, when a process starts: what goes wrong
    with the file later may pass, and is waited for.

    It never opens the file: closing it again would drop all locks that SQLite holds on it for this process, and another process
    would then remove a write-ahead log that is in use (sqlite.org, "How To Corrupt An SQLite Database File", 2.2).
    """
    if name.startswith("file:"):
        return  # a URI is SQLite's own to read
    path = Path(name)
    try:
        if not path.parent.is_dir():
            raise _unfit(path, "its directory does not exist")
        if path.is_dir():
            raise _unfit(path, "is a directory, not a database file")
        for place in (path, path.parent, *(Path(f"{path}{beside}") for beside in ("-wal", "-shm"))):
            usable = os.access(place, os.R_OK | os.W_OK, effective_ids=True)
            if not usable and place.exists():
                raise _unfit(path, f"{place} cannot be written")
    except OSError as exc:
        raise _unfit(path, f"cannot be opened: {exc.strerror}") from exc


def _unfit(path: Path, why: str) -> Misconfigured:
    return Misconfigured(f"{path}: {why}; check database.url, and the rights of the database's file and directory")


def _text(raw: bytes) -> str:
    """Whatever a program stored as text: bytes that are no UTF-8 become lone surrogates, which the relay knows (TRAPS 30)."""
    return raw.decode("utf-8", "surrogateescape")


def _take_lock(link: Any) -> None:
    """Begin with the write lock. A program that writes one short transaction after the other leaves it free for moments only: SQLite's
    own busy handler, which soon sleeps for a tenth of a second, misses most of them. Raises the driver's error after the time-out.
    """
    until = time.monotonic() + _BUSY_TIMEOUT_S
    pause_s = _RETRY_S
    link.execute("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                link.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
            else:
                return
            time.sleep(pause_s)
            pause_s = min(pause_s * _RETRY_SLOWER, _LONGEST_RETRY_S)
    finally:
        link.execute(_PATIENT_SQL)


class Sqlite(SqliteSnapshot, SqliteInstalling):
    """The SQLite dialect (3.40 and later)."""

    name = "sqlite"
    remove_sql = "DELETE FROM stsync_outbox WHERE id IN (SELECT value FROM json_each(?))"
    replay_mark = "EXISTS (SELECT 1 FROM stsync_replaying)"
    one_writer = True
    removes_late = False
    looks_freely = False
    wake = ""
    errors: tuple[type[BaseException], ...] = (sqlite3.Error,)

    def quote(self, name: str) -> str:
        """See Dialect."""
        return quote(name)

    def json_value(self, value: Any) -> str:
        """See Dialect: numbers as SQLite stores them, and what JSON has no form for, tagged as our triggers write it."""
        if isinstance(value, JsonNumber):
            whole = value.lstrip("-").isdigit() and -(2**63) <= int(value) < 2**63
            return str(value) if whole else f'{{"r":"{value}"}}'
        if isinstance(value, dict) and len(value) == 1:
            ((tag, text),) = value.items()
            if tag in _TAGGED and type(text) is str and _TAGGED[tag].fullmatch(text):
                return f'{{"{tag}":"{text}"}}'
        return json_text(value, true="1", false="0")

    def json_key(self, value: Any, column: Column) -> str:
        """See Dialect: by the column's affinity (datatype3.html, 3.1 to 3.4), which makes a text a number, and a number a text."""
        if not isinstance(value, str):
            return self.json_value(value)
        kind = column.type.upper()
        if "INT" not in kind and any(word in kind for word in ("CHAR", "CLOB", "TEXT")):
            return self.json_value(str(value))
        number = value.strip(" ")
        return self.json_value(JsonNumber(int(number)) if "INT" in kind and _WHOLE.fullmatch(number) else value)

    def engine(self, url: URL, connect_timeout_s: float, *, read_only: bool = False) -> Engine:
        """See EngineDialect. Transactions begin with the write lock, but for those that only read."""
        del connect_timeout_s
        if not url.database or url.database == ":memory:":
            raise Misconfigured("database.url: a database file is needed, as in sqlite:////path/st.db")
        check_file(url.database)
        engine = create_engine(
            url,
            poolclass=NullPool,
            pool_reset_on_return=None,  # closing rolls back; saying so to a dead server would only fail
            hide_parameters=True,
            connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False},
        )

        event.listen(engine, "close", _release)

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
            if read_only:
                connection.exec_driver_sql("BEGIN")
            else:
                _take_lock(connection.connection.driver_connection)

        @event.listens_for(engine, "commit")
        def commit(connection: Connection) -> None:
            """SQLite keeps a transaction open whose commit a deferred constraint refused; SQLAlchemy takes it for ended."""
            try:
                connection.exec_driver_sql("COMMIT")
            except DBAPIError:
                connection.connection.rollback()
                raise

        return engine

    def refused(self, exc: BaseException) -> bool:
        """See EngineDialect: a file has none of them."""
        del exc
        return False

    def lock(self, connection: Connection) -> bool:
        """See EngineDialect: a lock on a file beside the database."""
        path = Path(f"{connection.engine.url.database}-stsync.lock")
        try:
            handle = path.open("a")
        except OSError as exc:
            raise _unfit(path, f"the service's lock file cannot be used: {exc.strerror}") from exc
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            return False
        except OSError as exc:
            handle.close()
            raise _unfit(path, f"the service's lock file cannot be locked: {exc.strerror}") from exc
        connection.info[_LOCK] = handle  # lives, and holds the lock, as long as the connection
        with suppress(OSError):  # it may be out of sight for a while; whoever uses it says so
            connection.info[_FILE] = _identity(connection)
        return True

    def check(self, connection: Connection) -> None:
        """See EngineDialect: a file that is replaced (a backup that is moved over it) lives on for those who have it open."""
        try:
            found = _identity(connection)
        except OSError:
            return
        if found != connection.info.setdefault(_FILE, found):
            raise Fault(
                f"{connection.engine.url.database}: the database's file was replaced or removed while the service had it open; start "
                "the service again, and replace the file only while it is stopped"
            )

    def tidy(self, engine: Engine) -> None:
        """See EngineDialect: notes that are left behind (common.dialects.sqlite_capture); no statement of anybody is under way."""
        with engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM stsync_replacing")

    def script(self, connection: Connection, size: int) -> Script:
        """See EngineDialect: there are no round trips."""
        del size
        return Script(connection)

    def take_sql(self) -> str | None:
        """See EngineDialect: a DELETE needs the write lock, and programs may hold that for long with nothing for us."""
        return None

    def read_outbox(
        self, cursor: Any, after: int, limit: int, max_bytes: int | None = None, without: Sequence[Run] = ()
    ) -> Sequence[tuple[Any, ...]]:
        """See EngineDialect. The driver's own way to read text is the quickest, but knows only UTF-8."""
        link: sqlite3.Connection = cursor.connection
        link.text_factory = str
        try:
            return _read_outbox(link, after, limit, max_bytes, without)
        except sqlite3.OperationalError as exc:
            if hasattr(exc, "sqlite_errorcode"):  # it is SQLite's own
                raise
            link.text_factory = _text
            return _read_outbox(link, after, limit, max_bytes, without)
        finally:
            link.text_factory = _text

    def read_alike(
        self, cursor: Any, like: Sequence[Any], limit: int, without: Sequence[Run] = ()
    ) -> tuple[int, str] | None:
        """See EngineDialect: reading costs little here."""

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

    def storage(self, table: str) -> list[str]:
        """See CaptureDialect."""
        del table
        return []

    def tables(self, connection: Connection) -> dict[str, Table]:
        """See CaptureDialect."""
        return tables(connection)

    def same_name(self, left: str, right: str) -> bool:
        """SQLite compares ASCII letters without case."""
        return left.lower() == right.lower()

    def installed(self, connection: Connection) -> list[Trigger]:
        """See CaptureDialect."""
        rows = connection.exec_driver_sql(
            "SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'stsync\\_%' ESCAPE '\\'"
        )
        return [Trigger(name, table, (), (f"DROP TRIGGER IF EXISTS {quote(name)}",), sql) for name, table, sql in rows]

    def row(self, columns: Sequence[tuple[str, Column]]) -> str:
        """See CaptureDialect."""
        return row_json(reference for reference, _ in columns)

    def triggers(self, table: ListedTable) -> list[Trigger]:
        """See CaptureDialect."""
        return triggers(table)

    def claim(self, connection: Connection, changed: Collection[str], dropped: Collection[str]) -> None:
        """See InstallDialect: a transaction has the whole database from its beginning, and holds up nobody until then."""

    def objection(self, connection: Connection, exc: BaseException) -> StsyncError | None:
        """See InstallDialect."""
        path, code = connection.engine.url.database, getattr(exc, "sqlite_errorcode", 0) & 0xFF
        if code not in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            return None
        return Misconfigured(
            f"database {path}: {exc}; this user needs to write the file and its directory: chown or chmod them"
        )

    def writer(self, table: ListedTable, columns: Sequence[str]) -> TableWriter:
        """See ReplayDialect."""
        return SqliteWriter(table, columns)

    def truncate(self, table: ListedTable) -> str:
        """See ReplayDialect."""
        return f"DELETE FROM {quote(table.name)}" + (f" WHERE ({table.where})" if table.where else "")

    def mark_session(self, connection: Connection) -> None:
        """See ReplayDialect: here each transaction is. Its commits are not waited for until they are on disk: what a loss of power
        takes, it takes with the position, and the journal brings it again. Up to 16 MiB of its pages are kept in memory: what a large
        transaction changed need not be written down on the way."""
        connection.rollback()
        driver: Any = connection.connection.driver_connection
        driver.execute("PRAGMA synchronous = NORMAL")
        driver.execute("PRAGMA cache_size = -16384")

    def wait_for_disk(self, connection: Connection) -> None:
        """See ReplayDialect."""
        connection.rollback()
        driver: Any = connection.connection.driver_connection
        driver.execute("PRAGMA synchronous = FULL")

    def enter_at_once(self, connection: Connection, *, unordered: bool) -> None:
        """See ReplayDialect. The PRAGMA has every statement prepared anew, which costs more than the statements."""
        cursor = raw_cursor(connection)
        cursor.execute(_MARK_SQL)
        if unordered:
            cursor.execute(_DEFER_SQL)
        cursor.close()
        connection.info.pop(_VIOLATIONS, None)

    def enter_replay(self, connection: Connection, *, deferred: bool) -> None:
        """See ReplayDialect: a row that only this transaction can see, for it has the write lock."""
        connection.exec_driver_sql(_MARK_SQL)
        connection.info.pop(_VIOLATIONS, None)
        if deferred:  # a cascading key update is captured child first: its triggers fire before the parent's own
            connection.exec_driver_sql(_DEFER_SQL)
        elif connection.exec_driver_sql(_DEFERRED_SQL).first() is not None:
            connection.info[_VIOLATIONS] = _violations(connection)

    def references(self, connection: Connection, *, enforced: bool) -> None:
        """See ReplayDialect: within a transaction the PRAGMA would do nothing."""
        if connection.info.get(_UNENFORCED, False) is enforced:
            driver: Any = connection.connection.driver_connection
            if driver.in_transaction:
                raise Fault("foreign keys cannot be switched within a transaction")
            driver.execute(f"PRAGMA foreign_keys = {'ON' if enforced else 'OFF'}")
            connection.info[_UNENFORCED] = not enforced

    def unchecked(self, connection: Connection) -> AbstractContextManager[None]:
        """See ReplayDialect: no trigger here could tell how the writer has it, so no change says so; see `left_behind`."""
        del connection
        return nullcontext()

    def changed_rows(self, connection: Connection) -> int:
        """See ReplayDialect."""
        driver: Any = connection.connection.driver_connection
        return int(driver.total_changes)

    def left_behind(
        self,
        connection: Connection,
        table: ListedTable,
        rows: str,
        cascade: Cascade,
        child: ListedTable,
        places: Mapping[str, int],
    ) -> bool:
        """See ReplayDialect. The comparison is the parent's (foreignkeys.html, section 3)."""
        keys = " AND ".join(f"p.{quote(c.name)} = ?{i + 1}" for i, c in enumerate(table.key))
        pairs = zip(cascade.parent_columns, cascade.columns, strict=True)
        met = " AND ".join(f"p.{quote(theirs)} = c.{quote(ours)}" for theirs, ours in pairs)
        children = f"(SELECT * FROM {quote(child.name)} WHERE ({child.where}))" if child.where else quote(child.name)
        other = " OR ".join(f"p.{quote(name)} IS NOT ?{i + 1}" for name, i in places.items())
        changed = f" AND ({other})" if places else ""
        statement = f"SELECT 1 FROM {quote(table.name)} p JOIN {children} c ON {met} WHERE {keys}{changed} LIMIT 1"
        cursor = raw_cursor(connection)
        width = max((len(table.key), *(place + 1 for place in places.values())))
        found = any(cursor.execute(statement, row[:width]).fetchone() is not None for row in values(rows))
        cursor.close()
        return found

    def settle(self, connection: Connection) -> None:
        """See ReplayDialect: SQLite tells of deferred foreign keys at the commit only, and there is but a costly way to look
        earlier; it is gone where each change is judged by itself, if the schema has such keys."""
        before = connection.info.get(_VIOLATIONS)
        if before is not None and _violations(connection) > before:
            raise NotApplicable("FOREIGN KEY constraint failed (a deferred one)")

    def leave_replay(self, connection: Connection) -> None:
        """See ReplayDialect."""
        cursor = raw_cursor(connection)
        cursor.execute("DELETE FROM stsync_replaying")
        cursor.close()

    def translate(self, exc: BaseException) -> StsyncError:
        """See ReplayDialect: by result code."""
        code = getattr(exc, "sqlite_errorcode", None)
        if code is not None and code & 0xFF == sqlite3.SQLITE_READONLY:
            return Unavailable(f"the database: {exc}; check the rights of its file and directory, and how they are mounted")
        if code is None or code & 0xFF in _AWAY:
            return Unavailable(f"the database: {exc}")
        return NotApplicable(str(exc))


def _identity(connection: Connection) -> tuple[int, int] | None:
    """Which file the database's name means now; None where there is none."""
    try:
        found = Path(str(connection.engine.url.database)).stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _release(_connection: Any, record: Any) -> None:
    """With the connection ends the lock that it held."""
    if (held := record.info.pop(_LOCK, None)) is not None:
        held.close()


def _read_outbox(
    link: sqlite3.Connection, after: int, limit: int, max_bytes: int | None, without: Sequence[Run]
) -> list[tuple[Any, ...]]:
    statement = f"{_READ_SQL} FROM stsync_outbox WHERE id > ?{outside(without)} ORDER BY id LIMIT ?"
    found: list[tuple[Any, ...]] = []
    room = max_bytes
    with closing(link.execute(statement, (after, limit))) as cursor:  # one that is left half read keeps its snapshot
        for row in cursor:
            if room is not None:
                room -= len(row[_ROWS_JSON])
                if found and room < 0:
                    break
            found.append(row)
    return found


def _violations(connection: Connection) -> int:
    return len(connection.exec_driver_sql("PRAGMA foreign_key_check").all())
