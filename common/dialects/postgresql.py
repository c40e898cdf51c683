"""PostgreSQL: statement-level triggers with transition tables, jsonb arrays for replay, LISTEN/NOTIFY to wake."""

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import psycopg.errors
from sqlalchemy import event, text
from sqlalchemy.engine import URL, Connection, Engine, create_engine
from sqlalchemy.pool import NullPool

from common.changes import Kind
from common.dialects import postgresql_ddl
from common.dialects.base import (
    CANONICAL,
    KEEPALIVE,
    OUTBOX_COLUMNS,
    QUICK_CURSOR,
    UNCHECKED,
    Run,
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
from common.dialects.postgresql_cursor import QuickCursors, QuickScript
from common.dialects.postgresql_install import PostgresqlInstalling
from common.dialects.postgresql_snapshot import PostgresqlSnapshot
from common.dialects.postgresql_waker import CHANNEL, TELL, NotifyWaker
from common.dialects.postgresql_writer import PostgresqlWriter, quote
from common.dialects.script import SMALL, Script
from common.errors import Misconfigured, NotApplicable, StsyncError, Unavailable
from common.schema import Column, ListedTable, OtherTrigger, Table

ROWS_AN_OUTBOX_ROW = 1000
BYTES_AN_OUTBOX_ROW = 256 << 10
_PINNED = (
    "SET timezone = 'UTC'; SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; SET extra_float_digits = 1;"
    " SET bytea_output = 'hex'; SET xmloption = 'content'; SET lc_monetary = 'C'; SET standard_conforming_strings = on;"
    # What is published must not be lost afterwards: at least the server's own disk has it.
    " SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
)
_FUNCTION_SETTINGS = (
    "SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET extra_float_digits = 1"
    " SET bytea_output = 'hex' SET lc_monetary = 'C' SET standard_conforming_strings = on"
)
# The functions run with their owner's rights and take over the path of `install`: a writer's temporary tables, which come first
# where the path does not name them, must never stand for ours.
_PATH_SQL = (
    "SELECT set_config('search_path', current_setting('search_path') || CASE WHEN current_setting('search_path') LIKE '%pg_temp%'"
    " THEN '' ELSE ', pg_temp' END, true)"
)
# SQLSTATE classes that say that the server, not the change, is the trouble: connection, authorization, transaction state and
# rollback (deadlock), resources, not in prerequisite state (lock time-out), operator intervention, system and internal errors.
_AWAY = frozenset({"08", "25", "28", "3D", "40", "53", "55", "57", "58", "F0", "XX"})
_DATA = "22"  # the class of errors about values, which quote them, each language in its own way
_QUOTED = re.compile(r'[:：]? ?["„“”«»‹›「」].*["„“”«»‹›「」]', re.DOTALL)
_CANONICAL = f"CASE current_setting('session_replication_role') WHEN 'replica' THEN {UNCHECKED} ELSE {CANONICAL} END"
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

_TABLES_SQL = """
SELECT c.oid, c.relname,
       (SELECT array_agg(a.attname ORDER BY k.n)
          FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, n), pg_attribute a
         WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid AND a.attnum = k.attnum),
       (SELECT array_agg(DISTINCT p.relname) FROM pg_constraint f JOIN pg_class p ON p.oid = f.confrelid
         WHERE f.conrelid = c.oid AND f.contype = 'f'),
       CASE WHEN c.relkind = 'p' THEN 'is partitioned, and changes made in a partition itself would be missed'
            WHEN EXISTS (SELECT 1 FROM pg_inherits h WHERE c.oid IN (h.inhrelid, h.inhparent))
            THEN 'inherits or is inherited from, and changes made through the other table would be missed'
            WHEN EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate)
            THEN 'has a deferrable primary key, so that two rows may have one key for a while'
            WHEN EXISTS (SELECT 1 FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey::int2[])
             WHERE i.indrelid = c.oid AND i.indisprimary AND a.attgenerated <> '') THEN 'has a computed column in its primary key'
            WHEN EXISTS (SELECT 1 FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey::int2[])
             JOIN pg_type y ON y.oid = a.atttypid JOIN pg_type b ON b.oid = COALESCE(NULLIF(y.typbasetype, 0), y.oid)
             WHERE i.indrelid = c.oid AND i.indisprimary AND b.typtype = 'b' AND b.typelem = 0 AND NOT pg_type_is_visible(b.oid))
            THEN 'has a key whose type is in a schema outside of the search_path, so that its values cannot be compared; ALTER ROLE '
             || quote_ident(current_user) || ' SET search_path to one with it'
            WHEN c.relforcerowsecurity AND NOT (SELECT r.rolsuper OR r.rolbypassrls FROM pg_roles r WHERE r.rolname = current_user)
            THEN 'is under FORCE ROW LEVEL SECURITY, which hides rows from the user in database.url; give that user BYPASSRLS'
            WHEN c.relpersistence = 'u' THEN 'is UNLOGGED: a crash of the server empties it, and no other node knows; ALTER TABLE '
             || quote_ident(c.relname) || ' SET LOGGED, or take it from the list' END,
       NOT c.relhasrules AND NOT c.relrowsecurity
        -- with such a trigger the server's log quotes the row at which a COPY failed
        AND NOT EXISTS (SELECT 1 FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgtype & 3 = 3)
        AND NOT EXISTS (SELECT 1 FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
          AND (y.typnotnull OR EXISTS (SELECT 1 FROM pg_cast k WHERE k.castsource = 'text'::regtype AND k.castmethod = 'f'
            AND k.casttarget IN (y.oid, y.typbasetype) AND k.oid >= 16384))),
       (SELECT array_agg(a.attname) FROM pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
          AND (EXISTS (SELECT 1 FROM pg_constraint f WHERE f.conrelid = c.oid AND f.contype = 'f' AND (a.attnum = ANY (f.conkey)
              OR EXISTS (SELECT 1 FROM pg_attribute g
               WHERE g.attrelid = c.oid AND g.attgenerated <> '' AND g.attnum = ANY (f.conkey))))
            OR EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND (i.indisunique OR i.indisexclusion)
             AND (a.attnum = ANY (i.indkey::int2[]) OR i.indpred IS NOT NULL OR i.indexprs IS NOT NULL
              OR EXISTS (SELECT 1 FROM pg_attribute g
               WHERE g.attrelid = c.oid AND g.attgenerated <> '' AND g.attnum = ANY (i.indkey::int2[])))))),
       c.relhasrules OR EXISTS (SELECT 1 FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled = 'R')
FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
 AND c.relname NOT LIKE 'stsync\\_%%'
"""
_COLUMNS_SQL = """
SELECT a.attrelid, a.attname, quote_ident(n.nspname) || '.' || quote_ident(t.typname), a.attgenerated <> '',
       a.attnotnull AND NOT a.atthasdef AND a.attidentity = '', a.attidentity = 'a', false,
       CASE WHEN (t.typtype = 'e' OR COALESCE(NULLIF(t.typbasetype, 0), t.oid) = ANY ('{bool,bytea,"char",name,int8,int2,int4,'
         'text,oid,bpchar,varchar,date,time,timestamp,timestamptz,uuid,inet,cidr,macaddr,macaddr8}'::regtype[]::oid[]))
         AND COALESCE(l.collisdeterministic, true) THEN 'exact'
        WHEN t.typname = 'citext' THEN 'folded' ELSE 'unknown' END,
       COALESCE(NULLIF(l.collname, 'default'), ''), format_type(a.atttypid, a.atttypmod)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid LEFT JOIN pg_collation l ON l.oid = a.attcollation
 JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""
_OTHERS_SQL = """
SELECT t.tgrelid, t.tgname, pg_get_triggerdef(t.oid) || p.prosrc LIKE '%%stsync.replay%%', t.tgtype & 66 = 0,
       t.tgtype & 83 = 17 AND t.tgname::text COLLATE "C" < '!stsync_k_'
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid
WHERE NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND c.relnamespace = current_schema()::regnamespace
 AND t.tgname NOT LIKE 'stsync\\_%%' AND t.tgname NOT LIKE '!stsync\\_%%'
ORDER BY t.tgname
"""
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


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _name(what: str, table: str) -> str:
    """A trigger's name within PostgreSQL's 63 bytes."""
    full = f"{what}{table}"
    if len(full.encode()) <= 63:
        return full
    return f"{what}{table.encode()[:30].decode(errors='ignore')}_{hashlib.sha256(table.encode()).hexdigest()[:12]}"


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
        columns: dict[int, list[Column]] = {}
        for oid, *column in connection.exec_driver_sql(_COLUMNS_SQL):
            columns.setdefault(oid, []).append(Column(*column))
        others: dict[int, list[OtherTrigger]] = {}
        followed: set[int] = set()
        hindered: dict[int, str] = {}
        for oid, name, minds, after, earlier in connection.exec_driver_sql(_OTHERS_SQL):
            others.setdefault(oid, []).append(OtherTrigger(name, minds))
            if after:
                followed.add(oid)
            if earlier:
                hindered[oid] = (
                    f'has a trigger named "{name}": PostgreSQL runs it before ours, whose names begin with "!"; rename it'
                )
        rows = connection.exec_driver_sql(_TABLES_SQL).all()
        return by_name(
            Table(
                name,
                tuple(columns.get(oid, ())),
                tuple(key or ()),
                frozenset(parents or ()),
                triggers=tuple(others.get(oid, ())),
                obstacle=obstacle or hindered.get(oid),
                followed=oid in followed,
                copyable=copyable,
                guarded=frozenset(guarded or ()),
                answered=answered,
            )
            for oid, name, key, parents, obstacle, copyable, guarded, answered in rows
        )

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
        """See CaptureDialect.

        Statement-level, so that one outbox row holds many changes; key updates are captured row by row before the foreign
        keys cascade them and before other programs' row triggers (PostgreSQL fires them by name, and `!` comes before every
        letter and digit): TRAPS 4. They run for writers with session_replication_role = replica too; and whoever disables and
        enables all of a table's triggers leaves ours enabled in another way, by which it is seen.
        """
        return [
            self._trigger(table, "stsync_i_", "AFTER INSERT", "REFERENCING NEW TABLE AS stsync_new", _insert_body(table)),
            self._trigger(
                table,
                "stsync_u_",
                "AFTER UPDATE",
                "REFERENCING NEW TABLE AS stsync_new OLD TABLE AS stsync_old",
                _update_body(table),
            ),
            self._trigger(table, "stsync_d_", "AFTER DELETE", "REFERENCING OLD TABLE AS stsync_old", _delete_body(table)),
            self._trigger(table, "stsync_t_", "AFTER TRUNCATE", "", _outbox(table, "T", "'[]'", "1") + ";"),
            self._trigger(
                table,
                "!stsync_k_",
                "AFTER UPDATE",
                "",
                _rekey_body(table),
                row_when=_rekeyed(table, "OLD", "NEW"),
            ),
        ]

    def _trigger(
        self,
        table: ListedTable,
        prefix: str,
        when: str,
        referencing: str,
        body: str,
        row_when: str | None = None,
    ) -> Trigger:
        name = _name(prefix, table.name)
        each = f"FOR EACH ROW WHEN ({row_when})" if row_when else "FOR EACH STATEMENT"
        function = f"""CREATE OR REPLACE FUNCTION {quote(name)}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT {_FUNCTION_SETTINGS} AS $stsync$
#variable_conflict use_column
BEGIN
  IF current_setting('stsync.replay', true) = 'on' THEN RETURN NULL; END IF;
  {body}
  {TELL}
  RETURN NULL;
END $stsync$"""
        drop = f"DROP TRIGGER IF EXISTS {quote(name)} ON {quote(table.name)}"
        how = f"{when} ON {quote(table.name)} {referencing} {each} EXECUTE FUNCTION {quote(name)}()"
        create = f"CREATE OR REPLACE TRIGGER {quote(name)} {how}"  # its lock, unlike that of dropping, lets readers by
        always = f"ALTER TABLE {quote(table.name)} ENABLE ALWAYS TRIGGER {quote(name)}"
        return Trigger(
            name, table.name, (_PATH_SQL, function, create, always), (drop, f"DROP FUNCTION IF EXISTS {quote(name)}()")
        )

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


def _row(table: ListedTable, alias: str, columns: Iterable[Column] | None = None) -> str:
    values = ", ".join(f"{alias}.{quote(c.name)}::text" for c in (columns or table.columns))
    return f"pg_catalog.array_to_json(ARRAY[{values}])::text"


def _outbox(table: ListedTable, kind: str, rows: str, count: str, columns: Sequence[Column] | None = None) -> str:
    names = columns_json(c.name for c in (columns or table.columns))
    return (
        "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json, row_count, canonical)"
        f" SELECT {_literal(table.name)}, '{kind}', {_literal(names)}, {rows}, {count}, {_CANONICAL}"
    )


def _gathered(table: ListedTable, kind: str, rows: str, columns: Sequence[Column] | None = None) -> str:
    """One outbox row for up to ROWS_AN_OUTBOX_ROW changes and about BYTES_AN_OUTBOX_ROW; `rows` is a SELECT of the row's JSON
    text as j, which OFFSET 0 has made once, not at each place where it is read. A statement that changed one row, as most do, is
    spared the grouping."""
    changed = "stsync_old" if kind == Kind.DELETE else "stsync_new"
    one = f"{_outbox(table, kind, 'q.j', '1', columns)} FROM ({rows}) q;"
    number = f"(row_number() OVER w - 1) / {ROWS_AN_OUTBOX_ROW} AS g"
    size = f"sum(octet_length(q.j)) OVER w / {BYTES_AN_OUTBOX_ROW} AS b"
    many = (
        _outbox(table, kind, "string_agg(z.j, E',\\n')", "count(*)", columns)
        + f" FROM (SELECT q.j, {number}, {size} FROM ({rows} OFFSET 0) q WINDOW w AS (ROWS UNBOUNDED PRECEDING)) z"
        " GROUP BY z.g, z.b ORDER BY z.g, z.b;"
    )
    return f"IF EXISTS (SELECT FROM {changed} OFFSET 1) THEN {many} ELSE {one} END IF;"


def _inside(table: ListedTable, alias: str) -> str:
    return f"COALESCE((SELECT ({table.where}) FROM (SELECT {alias}.*) stsync_f), false)" if table.where else "true"


def _filtered(table: ListedTable) -> str:
    return f" WHERE ({table.where})" if table.where else ""


def _insert_body(table: ListedTable) -> str:
    rows = f"SELECT {_row(table, 'q')} AS j FROM stsync_new q{_filtered(table)}"
    if table.table.followed:
        rows = f"SELECT {_row(table, 's')} AS j FROM stsync_new n {_standing(table)} WHERE {_inside(table, 's')}"
    return _gathered(table, "I", rows)


def _delete_body(table: ListedTable) -> str:
    """With what stands under such a key by now: the same statement (MERGE, or a WITH that changes rows) or a trigger may have given it
    to another row, and that was captured before."""
    rows = f"SELECT {_row(table, 'q', table.key)} AS j FROM stsync_old q{_filtered(table)}"
    again = (
        _outbox(table, "I", _row(table, "s"), "1") + f" FROM stsync_old n {_standing(table)} WHERE {_inside(table, 's')};"
    )
    return "\n  ".join([_gathered(table, "D", rows, table.key), TELL, again])


def _standing(table: ListedTable) -> str:
    """Joins to n the rows as they stand, called s: a trigger of another program may have changed them again by now, and what
    that did was captured before (a statement's own triggers come after its row triggers and all that they do)."""
    keys = " AND ".join(f"s.{quote(c.name)} = n.{quote(c.name)}" for c in table.key)
    return f"JOIN {quote(table.name)} s ON {keys}"


def _rekeyed(table: ListedTable, old: str, new: str) -> str:
    """As texts, byte by byte, for to a collation two texts may be the same. And as values, where these are of the server's own types:
    the text of a float depends on settings, which where this is asked are the writer's. A dump has to be able to say all this."""
    differ = []
    for column in table.key:
        before, now = (f"{row}.{quote(column.name)}" for row in (old, new))
        if column.type.startswith("pg_catalog."):
            differ.append(f"{before} IS DISTINCT FROM {now}")
        differ.append(f'{before}::text COLLATE "C" IS DISTINCT FROM {now}::text')
    return " OR ".join(differ)


def _update_body(table: ListedTable) -> str:
    join = " AND ".join(f"n.{quote(c.name)} = o.{quote(c.name)}" for c in table.key)
    pairs = f"FROM stsync_new n JOIN stsync_old o ON {join} AND NOT ({_rekeyed(table, 'o', 'n')})"
    now = "n"
    if table.table.followed:
        pairs, now = f"{pairs} {_standing(table)}", "s"
    rest = table.columns[len(table.key) :]
    old, new = _inside(table, "o"), _inside(table, now)
    body = ""
    if rest:
        news, olds = (", ".join(f"{a}.{quote(c.name)}::text" for c in rest) for a in "no")
        # Byte by byte: texts of two collations cannot be compared at all.
        changed = f'ARRAY[{news}] COLLATE "C" IS DISTINCT FROM ARRAY[{olds}]'
        both = f" AND {old} AND {new}" if table.where else ""
        body = _gathered(table, "U", f"SELECT {_row(table, now)} AS j {pairs} WHERE {changed}{both}")
    if not table.where:
        return body or "PERFORM 1 WHERE false;"
    gone = f"SELECT {_row(table, 'o', table.key)} AS j {pairs} WHERE {old} AND NOT {new}"
    come = f"SELECT {_row(table, now)} AS j {pairs} WHERE {new} AND NOT {old}"
    return "\n  ".join([body, TELL, _gathered(table, "D", gone, table.key), TELL, _gathered(table, "I", come)])


def _rekey_body(table: ListedTable) -> str:
    olds = [f"OLD.{quote(c.name)}::text" for c in table.key]
    news = [f"NEW.{quote(c.name)}::text" for c in table.columns]
    both = f"array_to_json(ARRAY[{', '.join([*olds, *news])}])::text"
    rekey = _outbox(table, "K", both, "1") + ";"
    if not table.where:
        return rekey
    gone = _outbox(table, "D", _row(table, "OLD", table.key), "1", table.key)
    come = _outbox(table, "I", _row(table, "NEW"), "1")
    old, new = _inside(table, "OLD"), _inside(table, "NEW")
    return f"IF {old} AND {new} THEN {rekey} ELSIF {old} THEN {gone}; ELSIF {new} THEN {come}; ELSE RETURN NULL; END IF;"
