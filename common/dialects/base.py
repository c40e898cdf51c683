"""What every database dialect gives, and what they share to read the outbox."""

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

import orjson
from sqlalchemy.engine import URL, Connection, Engine

from common.digests import Bucket
from common.errors import StsyncError
from common.schema import Cascade, Column, ForeignKey, ListedTable, Table

if TYPE_CHECKING:
    from common.dialects.script import Script

CANONICAL = 1  # of an outbox row: our triggers wrote it
Run = tuple[int, int]  # ids from the first to the last, without a hole
UNCHECKED = CANONICAL + 1  # the same, for a writer who had foreign keys switched off


@dataclass(frozen=True)
class Keepalive:
    """When a connection whose other end fell silent counts as dead (tcp(7)); seconds."""

    idle_s: int = 10
    interval_s: int = 5
    count: int = 4

    @property
    def total_s(self) -> int:
        """From the last word to the end."""
        return self.idle_s + self.interval_s * self.count


KEEPALIVE = Keepalive()


@dataclass(frozen=True)
class Trigger:
    """One trigger (or the function behind it): the statements that make and remove it.

    `definition`, of one that stands: all that the database shows of what it does and when; whether it runs at all, too.
    """

    name: str
    table: str
    create: tuple[str, ...]
    drop: tuple[str, ...]
    definition: str = ""


class Cursor(Protocol):
    """The part of a DBAPI cursor that replay uses."""

    @property
    def rowcount(self) -> int:
        """Rows matched by the last statement."""

    def execute(self, operation: str, parameters: Any = ..., /) -> Any:
        """Run one statement."""

    def executemany(self, operation: str, parameters: Any, /) -> Any:
        """Run one statement for each set of parameters."""


class TableWriter(Protocol):
    """Applies rows of one table and one set of columns; every method returns the number of rows it found or wrote.

    `rows` is the JSON text of changes.Frame. A driver's exception passes through: `Dialect.translate` knows it.
    """

    def insert(self, cursor: Cursor, rows: str) -> int:
        """Insert rows that are not there; a row with the same key or unique value is an error, after which some of the others may be
        there and the caller rolls back."""

    def update(self, cursor: Cursor, rows: str) -> int:
        """Set the columns of the rows with these keys; rows that are missing are not an error and not counted."""

    def insert_missing(self, cursor: Cursor, rows: str) -> int:
        """Insert those of the rows whose key is not there."""

    def delete(self, cursor: Cursor, keys: str) -> int:
        """Delete the rows with these keys (rows of a `delete` frame)."""

    def rekey(self, cursor: Cursor, row: str) -> int:
        """Give one row another key and its new values (one row of a `rekey` frame)."""

    def respell(self, cursor: Cursor, rows: str) -> int:
        """Give the rows with these keys the very keys, where they have another spelling of them."""

    def alike(self, cursor: Any, keys: Sequence[str]) -> Sequence[int | None]:
        """Of each of these keys (JSON texts of the values, joined by commas) a number, the same one where the database takes them for
        the same key; None for what cannot be a key."""


class CaptureDialect(Protocol):
    """What `install` needs: the database's tables, and triggers as SQL."""

    def tables(self, connection: Connection) -> dict[str, Table]:
        """Every table of the default schema but the bookkeeping ones."""

    def same_name(self, left: str, right: str) -> bool:
        """Whether two names mean the same table, as the database compares them."""

    def triggers(self, table: ListedTable) -> list[Trigger]:
        """What captures every change of the table into the outbox, in the writer's transaction."""

    def installed(self, connection: Connection) -> list[Trigger]:
        """The capture triggers that stand in the database now (their `create` is empty)."""

    def row(self, columns: Sequence[tuple[str, Column]]) -> str:
        """An SQL expression: the JSON text of a row whose values are the given references (SQL) to these columns."""

    def prepare(self, connection: Connection) -> list[str]:
        """Statements that `install` runs once before everything else."""

    def storage(self, table: str) -> list[str]:
        """Statements that `install` runs after it has made a bookkeeping table: how the database is to keep what is written most."""


class InstallDialect(Protocol):
    """How `install` and `uninstall` change tables that are in use."""

    def claim(self, connection: Connection, changed: Collection[str], dropped: Collection[str]) -> None:
        """Before triggers are made on and dropped from these tables: no writer may wait long for that. Raises Refused."""

    def objection(self, connection: Connection, exc: BaseException) -> StsyncError | None:
        """What an administrator has to do about the driver's error (Refused, Misconfigured); None where it is none of theirs."""


class ReplayDialect(Protocol):
    """What replay needs: writers of rows, and a session that is marked so that its changes are not captured."""

    def writer(self, table: ListedTable, columns: Sequence[str]) -> TableWriter:
        """A writer for frames with these columns; NotApplicable when the table has no such column."""

    def truncate(self, table: ListedTable) -> str:
        """The statement that removes every row inside the row filter."""

    def mark_session(self, connection: Connection) -> None:
        """Prepare a session that does nothing but replay: mark it (TRAPS 5), where a session can be marked, and spare it waiting for
        the disk at each commit, where the database can do that without ever losing one commit and not those after it. Commits."""

    def wait_for_disk(self, connection: Connection) -> None:
        """Have a session that `mark_session` prepared wait for the disk all the same: nobody brings again what it commits. Commits."""

    def enter_replay(self, connection: Connection, *, deferred: bool) -> None:
        """Mark this transaction as replay (TRAPS 5); `deferred`: what `settle` cannot look at may be left to the commit."""

    def enter_at_once(self, connection: Connection, *, unordered: bool) -> None:
        """As `enter_replay` in a marked session, for a transaction that is rolled back as a whole if anything fails; `unordered`:
        a row may come before the one that it refers to."""

    def references(self, connection: Connection, *, enforced: bool) -> None:
        """Before a transaction that replays: whether foreign keys are enforced in it, where that holds for whole transactions only."""

    def unchecked(self, connection: Connection) -> AbstractContextManager[None]:
        """Statements inside run as for a writer who has foreign keys switched off (Frame.unchecked)."""

    def changed_rows(self, connection: Connection) -> int:
        """How many rows this session has changed so far, by foreign keys and triggers too; asked where Table.cascades are."""

    def left_behind(
        self,
        connection: Connection,
        table: ListedTable,
        rows: str,
        cascade: Cascade,
        child: ListedTable,
        places: Mapping[str, int],
    ) -> bool:
        """Whether rows of the child, inside its row filter, refer to any of the rows whose keys `rows` begin with; where `places` are
        given, to one that has another value in these columns than stands there in `rows`."""

    def settle(self, connection: Connection) -> None:
        """Check now what the schema defers to the commit, while it can still be rolled back to a savepoint."""

    def leave_replay(self, connection: Connection) -> None:
        """Unmark, before the commit."""

    def translate(self, exc: BaseException) -> StsyncError:
        """The driver's exception as NotApplicable (the change's own fault) or Unavailable (TRAPS 29)."""


class SnapshotDialect(Protocol):
    """What a full synchronization reads of a table: digests to compare, and rows to send; of rows inside the row filter only.

    It reads in the connection's transaction, be that a read-only one or one that writes. `columns` are the synchronized ones by name,
    the key's first, in the primary's order; those that are excluded or computed here are passed over. A digest depends on their
    values, in this order, and on nothing else of the node. A key is the JSON text of its values, each as in a frame's row, joined
    by commas; what is no UTF-8 comes with surrogate escapes. NotApplicable where the table has no such column, and Unavailable where
    the server cannot give a row for its size. What yields may be closed at any time; between two portions the connection is free.
    """

    def count(self, connection: Connection, table: ListedTable) -> int:
        """How many rows there are."""

    def buckets(
        self,
        connection: Connection,
        table: ListedTable,
        columns: Sequence[str],
        number: int,
        wanted: Collection[int] | None = None,
    ) -> dict[int, Bucket]:
        """The rows in the wanted ones (None: in all) of so many buckets (from 0, by a hash of the key's text); those without rows are
        left out."""

    def row_digests(
        self, connection: Connection, table: ListedTable, columns: Sequence[str], number: int, wanted: Collection[int]
    ) -> Generator[list[tuple[str, bytes]], None, None]:
        """Key and digest of every row in the wanted ones of so many buckets, in portions and in any order."""

    def rows(
        self, connection: Connection, table: ListedTable, columns: Sequence[str], max_bytes: int
    ) -> Generator[tuple[int, str], None, None]:
        """Every row, in key order, in portions of so many characters (SQLite: bytes) and at most a row more: their number, and their
        text as in a frame of kind insert, the very one that the capture triggers write."""

    def rows_of(
        self, connection: Connection, table: ListedTable, columns: Sequence[str], keys: Sequence[str], max_bytes: int
    ) -> Generator[tuple[int, str], None, None]:
        """As `rows`, those with these keys, as `row_digests` spells them, in the order of the keys; keys that are not there, to the
        letter, are left out."""


class InstallingDialect(Protocol):
    """What the installation of a full synchronization needs besides replay: the foreign keys of all tables, and tables that are gone
    with the transaction or the session."""

    unenforced: bool  # where foreign keys are switched off for a session, no trigger is, and anybody may do that
    overriding: str  # what an INSERT … SELECT says to keep identity values as they are
    bounded_waits: str  # for a transaction that installs: that it waits for nobody's lock for long, and may wait for rows
    drop_scratch: str  # what removes a table that `scratch` made, which follows; empty where the end of the transaction does

    def foreign_keys(self, connection: Connection) -> list[ForeignKey]:
        """Those that refer to tables of the default schema."""

    def may_uncheck(self, connection: Connection) -> bool:
        """Whether this user may do what `unchecked` does."""

    def plain_columns(self, connection: Connection, table: str) -> list[str]:
        """The names of all columns of a table (SQL) that are not computed; asked where foreign keys are not `unenforced`."""

    def scratch(
        self, connection: Connection, name: str, table: str, columns: Mapping[str, str], index: Sequence[str]
    ) -> list[str]:
        """Statements that make an empty temporary table, without ending the transaction: each column (by its name there) has the type
        and the collation of one of the table's (SQL); with an index over some of them, if any."""

    def joined(self, target: str, sets: Mapping[str, str], sources: Sequence[str], condition: str) -> str:
        """The UPDATE of a table (SQL) that sets columns to what stands in rows of sources that meet a condition; the DELETE of these
        rows where nothing is set."""


class ToldByTriggers:
    """The part of ReplayDialect about foreign keys where our triggers tell how the writer had them (Frame.unchecked), and each
    statement may be replayed its own way; no table there has Table.cascades, which the last two are asked for."""

    def references(self, connection: Connection, *, enforced: bool) -> None:
        """See ReplayDialect: nothing to do."""

    def changed_rows(self, connection: Connection) -> int:
        """See ReplayDialect: never asked."""
        raise NotImplementedError

    def left_behind(self, *_arguments: Any, **_named: Any) -> bool:
        """See ReplayDialect: never asked."""
        raise NotImplementedError


class Waker(Protocol):
    """Waits until the outbox may hold something."""

    def wait(self, timeout_s: float) -> bool:
        """True as soon as there may be rows; False after the time, or when the process is to stop."""

    def found(self, again_s: float) -> None:
        """There were rows: more may follow soon. Whoever waits looks again by itself in so many seconds, and does not wait before."""

    def close(self) -> None:
        """Give back what waiting holds."""


class EngineDialect(Protocol):
    """What every process needs: connections with pinned session settings, the service's lock, a waker."""

    one_writer: bool  # a transaction that has written keeps every other from writing until it ends
    removes_late: bool  # removing rows of the outbox costs so much that many are removed when nothing else is to be done
    looks_freely: bool  # what the driver itself runs on a connection that only reads begins no transaction
    wake: str  # what ends the wait of `waker` though there are no rows, once committed; empty where nothing does

    def engine(self, url: URL, connect_timeout_s: float, *, read_only: bool = False) -> Engine:
        """An engine whose connections have the session settings that values need (DESIGN §4).

        `read_only`: every transaction on them reads one snapshot and blocks nobody. All of it is set as a connection begins: what
        is set for one use of it only, SQLAlchemy sets back at the end, and where the server died it logs a traceback.
        """

    def refused(self, exc: BaseException) -> bool:
        """Whether a server said no to user, password or the database's name, as the driver's exception tells when connecting."""

    def lock(self, connection: Connection) -> bool:
        """Take the lock that one `stsync run` a database holds as long as its connection lives; False: another has it."""

    def check(self, connection: Connection) -> None:
        """Of a connection that took the lock: raises Fault where the address of the database leads to another one by now."""

    def tidy(self, engine: Engine) -> None:
        """Do what keeps the outbox quick to read after many rows went through it; called now and then."""

    def script(self, connection: Connection, size: int) -> "Script":
        """For the last statements of a transaction on a connection that is not read_only, which are to carry so many bytes of
        changes."""

    def take_sql(self) -> str | None:
        """A statement that removes the outbox's first rows (their number is its parameter) and returns them, in any order, as one
        consistent read of what is committed, but NULL for `rows_json` where that is long; None where it would wait for open
        transactions or keep others waiting."""

    def read_outbox(
        self, cursor: Any, after: int, limit: int, max_bytes: int | None = None, without: Sequence[Run] = ()
    ) -> Sequence[tuple[Any, ...]]:
        """The first rows of the outbox above an id, in id order, as (id, table_name, kind, columns_json, rows_json, row_count,
        canonical): at most `limit`, and as many as have `max_bytes` together, but at least one if there is any; never one of
        `without`."""

    def read_alike(
        self, cursor: Any, like: Sequence[Any], limit: int, without: Sequence[Run] = ()
    ) -> tuple[int, str] | None:
        """The rows that follow one of `read_outbox` with ids without a hole, at most `limit`, where each is one change and in nothing
        else different from it: their number and their `rows_json`, joined as in a frame. None where it is not so, or where the
        database can do no better than `read_outbox`."""

    def waker(self, engine: Engine, stop: "Stoppable", poll_s: tuple[float, float]) -> Waker:
        """What waits for outbox rows: woken by the database where it can, by cheap adaptive polling elsewhere."""


class Stoppable(Protocol):
    """Something that a wait also waits for."""

    def is_set(self) -> bool:
        """Whether the process is to stop."""

    def wait(self, timeout: float) -> bool:
        """Wait for stop at most `timeout` seconds."""

    def fileno(self) -> int:
        """A descriptor that becomes readable when the process is to stop."""


class Dialect(CaptureDialect, InstallDialect, ReplayDialect, SnapshotDialect, InstallingDialect, EngineDialect, Protocol):
    """A whole dialect: one module, the sum of what capture, `install`, replay, full synchronizations and processes need."""

    name: str
    errors: tuple[type[BaseException], ...]
    remove_sql: str  # deletes the outbox rows whose ids are in the JSON array that is its parameter, and waits for no others
    replay_mark: str  # an SQL condition that holds while a transaction replays; for programs' own triggers

    def quote(self, name: str) -> str:
        """An identifier as it stands in SQL, whatever characters it has."""

    def json_value(self, value: Any) -> str:
        """A value that a program wrote into the outbox as JSON (None, bool, str, JsonNumber, list, dict), as a frame holds it;
        NotApplicable when it is none (see `json_text`)."""

    def json_key(self, value: Any, column: Column) -> str:
        """As `json_value`, for a column of the key: as the database would write it once it is stored, as far as that can be told."""


def run(connection: Connection, statement: str) -> None:
    """Run a statement that has no parameters, whatever percent signs it contains."""
    connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def parameter(connection: Connection) -> str:
    """How the driver marks a parameter of a statement, for those few that are run so often that SQLAlchemy's share shows."""
    return "?" if connection.dialect.paramstyle == "qmark" else "%s"


QUICK_CURSOR = "stsync.quick_cursor"  # in a connection's info: what makes cursors for what is run for every change
OUTBOX_COLUMNS = "id, table_name, kind, columns_json, rows_json, row_count, canonical"


def outside(runs: Iterable[Run]) -> str:
    """SQL that goes on with `AND`: the id is in none of these runs."""
    return "".join([f" AND (id < {first:d} OR id > {last:d})" for first, last in runs])


def fitting(cursor: Any, size: str, after: int, limit: int, max_bytes: int | None, without: Iterable[Run] = ()) -> int:
    """How many rows of the outbox above an id have so many bytes together, `size` being the SQL for one's, at least one and at most
    `limit`; for databases that hand over the whole result of a statement."""
    if max_bytes is None:
        return limit
    cursor.execute(f"SELECT {size} FROM stsync_outbox WHERE id > %s{outside(without)} ORDER BY id LIMIT %s", (after, limit))
    sizes: list[int] = [size for (size,) in cursor.fetchall()]
    return max(1, sum(total <= max_bytes for total in accumulate(sizes)))


def read_plainly(cursor: Any, after: int, limit: int, without: Iterable[Run] = ()) -> Sequence[tuple[Any, ...]]:
    """Every column by itself, where the driver is quick."""
    where = f"id > %s{outside(without)}"
    cursor.execute(f"SELECT {OUTBOX_COLUMNS} FROM stsync_outbox WHERE {where} ORDER BY id LIMIT %s", (after, limit))
    found: list[tuple[Any, ...]] = cursor.fetchall()
    return found


def raw_cursor(connection: Connection) -> Any:
    """The driver's own cursor, or the dialect's quicker one, in the connection's transaction, which begins if there is none."""
    if not connection.in_transaction():
        connection.begin()
    quick = connection.info.get(QUICK_CURSOR)
    return connection.connection.cursor() if quick is None else quick()


def by_name(tables: Iterable[Table]) -> dict[str, Table]:
    """Tables by their names."""
    return {table.name: table for table in tables}


def columns_json(names: Iterable[str]) -> str:
    """Column names as the outbox holds them."""
    return orjson.dumps(list(names)).decode()
