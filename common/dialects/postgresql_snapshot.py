"""How whole tables are read in PostgreSQL: the server digests them, and cursors hand over their rows."""

from collections.abc import Collection, Generator, Iterable, Sequence
from itertools import count
from typing import Any, Final

from sqlalchemy.engine import Connection

from common.changes import SEPARATOR
from common.dialects.base import raw_cursor
from common.dialects.postgresql_writer import PostgresqlWriter, quote
from common.dialects.snapshot import DIGESTS_AT_ONCE, LONG, ROWS_AT_ONCE, Texts, asked, gathered, taking_part, whole
from common.digests import Bucket
from common.schema import Column, ListedTable

_WORD: Final = (1 << 64) - 1
_ROW, _BUCKET = 0, 1 << 32  # seeds: a column's is its place after this
_SMALL: Final = frozenset({"pg_catalog.int2", "pg_catalog.int4"})
_LARGE: Final = "pg_catalog.int8"
_HIGH: Final = 1 << 33  # for the upper half of a large integer: its hash folds the two
_numbers = count(1)


class PostgresqlSnapshot:
    """The part of PostgreSQL's dialect that full synchronizations read with (SnapshotDialect).

    A digest is the server's own 64-bit hash over those of all values of a row, each with a seed of its own: of integers as they
    are, and else of texts. NULL counts as a hash of 0, which a value has once in 2^64 times. Where digests are added up, the rows
    are narrowed to them before: the server may sort what it groups, and would sort whole rows, on disk.
    """

    def row(self, columns: Sequence[tuple[str, Column]]) -> str:
        """See CaptureDialect."""
        raise NotImplementedError

    def count(self, connection: Connection, table: ListedTable) -> int:
        """See SnapshotDialect."""
        cursor = raw_cursor(connection)
        cursor.execute(f"SELECT count(*) {_inside(table)}".replace("%", "%%"))
        return int(cursor.fetchall()[0][0])

    def buckets(
        self,
        connection: Connection,
        table: ListedTable,
        columns: Sequence[str],
        number: int,
        wanted: Collection[int] | None = None,
    ) -> dict[int, Bucket]:
        """See SnapshotDialect."""
        cursor = raw_cursor(connection)
        mixed = _mixed(taking_part(table, columns), _ROW)
        rows = f"SELECT {_bucket(table, number)} AS b, {mixed} AS x {_inside(table)}"
        if wanted is not None:
            rows += f" AND {_bucket(table, number)} = ANY ('{{{','.join(map(str, wanted))}}}'::bigint[])"
        statement = f"SELECT q.b, count(*), bit_xor({_ROW_SQL}) FROM ({rows} OFFSET 0) q GROUP BY q.b"
        cursor.execute(statement.replace("%", "%%"))
        return {place: Bucket(rows, (found & _WORD).to_bytes(8, "big")) for place, rows, found in cursor.fetchall()}

    def row_digests(
        self, connection: Connection, table: ListedTable, columns: Sequence[str], number: int, wanted: Collection[int]
    ) -> Generator[list[tuple[str, bytes]], None, None]:
        """See SnapshotDialect."""
        key = self._key((f"t.{quote(c.name)}", c) for c in table.key)
        mixed = _mixed(taking_part(table, columns), _ROW)
        rows = f"SELECT {key} AS k, {mixed} AS x {_inside(table)} AND {_bucket(table, number)}".replace("%", "%%")
        statement = f"SELECT q.k, int8send({_ROW_SQL}) FROM ({rows} = ANY (%s::bigint[]) OFFSET 0) q"
        yield from _pages(connection, statement, (sorted(wanted),), DIGESTS_AT_ONCE)

    def rows(
        self, connection: Connection, table: ListedTable, columns: Sequence[str], max_bytes: int
    ) -> Generator[tuple[int, str], None, None]:
        """See SnapshotDialect."""
        row = self.row([(f"t.{quote(c.name)}", c) for c in taking_part(table, columns)])
        keys = ", ".join(f"t.{quote(c.name)} AS k{place}" for place, c in enumerate(table.key))
        order = ", ".join(f"t.{quote(c.name)}" for c in table.key)
        source = f"SELECT {row} AS j, {keys} {_inside(table)} ORDER BY {order} OFFSET 0"
        is_long = f"octet_length(q.j) > {LONG}"
        key = self._key((f"q.k{place}", c) for place, c in enumerate(table.key))  # made for those alone that need it
        statement = f"SELECT CASE WHEN NOT {is_long} THEN q.j END, CASE WHEN {is_long} THEN {key} END FROM ({source}) q"
        found = _rows(connection, statement.replace("%", "%%"))
        yield from gathered(whole(table, found, self._reader(connection, table, columns)), max_bytes)

    def rows_of(
        self, connection: Connection, table: ListedTable, columns: Sequence[str], keys: Sequence[str], max_bytes: int
    ) -> Generator[tuple[int, str], None, None]:
        """See SnapshotDialect."""
        yield from gathered(asked(table, keys, self._reader(connection, table, columns)), max_bytes)

    def _key(self, columns: Iterable[tuple[str, Column]]) -> str:
        """SQL for the JSON text of a key whose values are these references."""
        return f"left(substr({self.row(list(columns))}, 2), -1)"

    def _reader(self, connection: Connection, table: ListedTable, columns: Sequence[str]) -> "_Reader":
        writer = PostgresqlWriter(table, columns)
        key = self._key((f"t.{quote(c.name)}", c) for c in table.key)
        row = self.row([(f"t.{quote(c.name)}", c) for c in taking_part(table, columns)])
        values = f"SELECT {key} AS k, {row} AS j".replace("%", "%%")
        found = (
            f"FROM ({writer.keys_in()}) x JOIN {writer.target} t ON {writer.key_match()} WHERE true{writer.local_filter()}"
        )
        return _Reader(raw_cursor(connection), f"{values} {found} OFFSET 0")


class _Reader:
    """Reads the rows with given keys (common.dialects.snapshot.Ask)."""

    def __init__(self, cursor: Any, source: str) -> None:
        self._cursor = cursor
        self._statement = f"SELECT q.k, CASE WHEN octet_length(q.j) <= %s::bigint THEN q.j END FROM ({source}) q"

    def __call__(self, keys: Sequence[str], longest: int | None) -> Texts:
        rows = SEPARATOR.join([f"[{key}]" for key in keys])
        self._cursor.execute(self._statement, (_WORD >> 1 if longest is None else longest, f"[{rows}]"))
        return dict(self._cursor.fetchall())


def _inside(table: ListedTable) -> str:
    """FROM and WHERE of the rows inside the row filter, called t; more conditions may follow."""
    return f"FROM {quote(table.name)} t WHERE " + (f"({table.where})" if table.where else "true")


def _hash_large(reference: str, seed: int) -> str:
    """SQL for a hash over all of a bigint: the server's own folds its halves, and tells 2^32 apart."""
    return f"hashint8extended({reference}, {seed}) # hashint8extended({reference} >> 32, {seed + _HIGH})"


# Over what is mixed, so that values which change places between two rows are seen.
_ROW_SQL: Final = _hash_large("q.x", _ROW)


def _mixed(columns: Sequence[Column], seed: int) -> str:
    """SQL for the hashes of these values of a row, mixed: a bigint."""
    return "(" + " # ".join(f"COALESCE({_hash_of(c, seed + place)}, 0)" for place, c in enumerate(columns, 1)) + ")"


def _hash_of(column: Column, seed: int) -> str:
    """In the "C" collation: others may take two texts for one."""
    reference = f"t.{quote(column.name)}"
    if column.type in _SMALL:
        return f"hashint8extended({reference}, {seed})"
    if column.type == _LARGE:
        return _hash_large(reference, seed)
    return f'hashtextextended({reference}::text COLLATE "C", {seed})'


def _bucket(table: ListedTable, number: int) -> str:
    return f"(({_mixed(table.key, _BUCKET)} & {_WORD >> 1}) % {number:d})"


def _rows(connection: Connection, statement: str) -> Generator[tuple[Any, ...], None, None]:
    for page in _pages(connection, statement, (), ROWS_AT_ONCE):
        yield from page


def _pages(
    connection: Connection, statement: str, values: Sequence[Any], size: int
) -> Generator[list[tuple[Any, ...]], None, None]:
    """The rows of a statement, so many at a time, by a cursor of the server's."""
    if not connection.in_transaction():
        connection.begin()
    driver: Any = connection.connection.driver_connection
    with driver.cursor(name=f"stsync_snapshot_{next(_numbers)}") as cursor:
        cursor.execute(statement, values)
        while page := cursor.fetchmany(size):
            yield page
