"""How whole tables are read in MariaDB: the server digests them, and gives their rows page by page, each after the key before.

Nothing may depend on max_allowed_packet in silence: what would be longer is NULL there. So what may be long goes into the digest of
its row as a digest of its own, which the server makes of any length, and not as text.
"""

import json
import re
from collections.abc import Collection, Generator, Iterable, Sequence
from typing import Any, Final

from sqlalchemy.engine import Connection

from common.changes import SEPARATOR
from common.dialects.base import raw_cursor
from common.dialects.mariadb_capture import row_json
from common.dialects.mariadb_values import BINARY, INTEGER, from_text, is_utf8, literal, quote, text_of, type_of
from common.dialects.mariadb_writer import MariadbWriter
from common.dialects.snapshot import DIGESTS_AT_ONCE, LONG, ROWS_AT_ONCE, Texts, asked, gathered, taking_part, whole
from common.digests import Bucket
from common.errors import Unavailable
from common.schema import Column, ListedTable

_LONG_TEXTS: Final = ("tinytext", "text", "mediumtext", "longtext")
_LONG_BYTES: Final = tuple(kind for kind in BINARY if kind not in {"binary", "varbinary"})
_BARE: Final = frozenset({"date", "time", "datetime", "year", "decimal"})  # what these look like needs no quotes
_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_LEAST_PACKET: Final = 1 << 20  # above what the 65,535 bytes become that all other columns of a row have together


class MariadbSnapshot:
    """The part of MariaDB's dialect that full synchronizations read with (SnapshotDialect)."""

    def count(self, connection: Connection, table: ListedTable) -> int:
        """See SnapshotDialect."""
        return int(_found(raw_cursor(connection), f"SELECT COUNT(*) {_inside(table)}")[0][0])

    def buckets(
        self,
        connection: Connection,
        table: ListedTable,
        columns: Sequence[str],
        number: int,
        wanted: Collection[int] | None = None,
    ) -> dict[int, Bucket]:
        """See SnapshotDialect: digests of 64 bits, for the server has no quicker way to add up longer ones."""
        cursor = _roomy(connection)
        if wanted is not None and not wanted:
            return {}
        both = f"BIT_XOR(CAST(CONV({_digest(taking_part(table, columns))}, 16, 10) AS UNSIGNED))"
        chosen = "" if wanted is None else _among(table, number, wanted)
        statement = f"SELECT {_bucket(table, number)}, COUNT(*), {both} {_inside(table)}{chosen} GROUP BY 1"
        return {int(place): Bucket(rows, both.to_bytes(8, "big")) for place, rows, both in _found(cursor, statement)}

    def row_digests(
        self, connection: Connection, table: ListedTable, columns: Sequence[str], number: int, wanted: Collection[int]
    ) -> Generator[list[tuple[str, bytes]], None, None]:
        """See SnapshotDialect."""
        cursor = _roomy(connection)
        if not wanted:
            return
        values = f"CAST({_key(table)} AS BINARY), UNHEX({_digest(taking_part(table, columns))})"
        for page in _pages(cursor, table, values, DIGESTS_AT_ONCE, _among(table, number, wanted)):
            yield [(_text(key), digest) for key, digest in page]

    def rows(
        self, connection: Connection, table: ListedTable, columns: Sequence[str], max_bytes: int
    ) -> Generator[tuple[int, str], None, None]:
        """See SnapshotDialect."""
        cursor = _roomy(connection)
        reader = _Reader(cursor, table, columns)
        found = (row for page in _pages(cursor, table, reader.values(LONG), ROWS_AT_ONCE) for row in map(_texts, page))
        yield from gathered(whole(table, ((row, key) for key, row in found), reader), max_bytes)

    def rows_of(
        self, connection: Connection, table: ListedTable, columns: Sequence[str], keys: Sequence[str], max_bytes: int
    ) -> Generator[tuple[int, str], None, None]:
        """See SnapshotDialect."""
        yield from gathered(asked(table, keys, _Reader(_roomy(connection), table, columns)), max_bytes)


class _Reader:
    """Reads the rows with given keys (common.dialects.snapshot.Ask)."""

    def __init__(self, cursor: Any, table: ListedTable, columns: Sequence[str]) -> None:
        self._cursor = cursor
        self._table = table
        self._columns = taking_part(table, columns)
        writer = MariadbWriter(table, columns, quote)
        joined = f"({writer.keys_in()}) x STRAIGHT_JOIN {writer.target} t ON {writer.key_match()}"
        self._source = f"FROM {joined} WHERE TRUE{writer.local_filter()}"

    def values(self, longest: int | None) -> str:
        """SQL for the key and the text of a row called t; NULL for one of more than so many bytes, and for what has no room here: of
        bytes too many for HEX that would be NULL, and the text a lie."""
        row = f"CAST({row_json(_of(self._columns))} AS BINARY)"
        sizes = {c: f"COALESCE(LENGTH(t.{quote(c.name)}), 0)" for c in self._columns if _is_long(c)}
        if longest is None:
            over = [f"2 * {size} > @@max_allowed_packet" for c, size in sizes.items() if type_of(c) in _LONG_BYTES]
        else:
            over = [f"{' + '.join(sizes.values())} > {longest}"] if sizes else []
        if over:
            row = f"IF({' OR '.join(over)}, NULL, {row})"
        return f"CAST({_key(self._table)} AS BINARY), {row}"

    def __call__(self, keys: Sequence[str], longest: int | None) -> Texts:
        values = self.values(longest).replace("%", "%%")
        rows = SEPARATOR.join([f"[{key}]" for key in keys])
        statement = self._cursor.mogrify(f"SELECT {values} {self._source}", (f"[{rows}]",))
        return dict(map(_texts, _found(self._cursor, statement)))


def _pages(
    cursor: Any, table: ListedTable, values: str, size: int, condition: str = ""
) -> Generator[Sequence[tuple[Any, ...]], None, None]:
    """The rows inside the row filter, under one condition more if any, in key order, so many at a time; the first of the values is
    the JSON text of the key."""
    order = ", ".join(_ordered(column)[0] for column in table.key)
    after = ""
    while True:
        page = _found(cursor, f"SELECT {values} {_inside(table)}{condition}{after} ORDER BY {order} LIMIT {size}")
        if page:
            yield page
        if len(page) < size:
            return
        after = f" AND {_after(table, json.loads(f'[{_text(page[-1][0])}]'))}"


def _after(table: ListedTable, last: Sequence[str]) -> str:
    """SQL for whether a row's key comes after this one, so that the primary key's index leads there."""
    pairs = [_ordered(column, text) for column, text in zip(table.key, last, strict=True)]
    steps = []
    for place, (reference, value) in enumerate(pairs):
        same = [f"{before} = {known}" for before, known in pairs[:place]]
        steps.append(" AND ".join([*same, f"{reference} > {value}"]))
    reference, value = pairs[0]
    return f"{reference} >= {value} AND ({' OR '.join(f'({step})' for step in steps)})"


def _ordered(column: Column, text: str = "") -> tuple[str, str]:
    """What a column of the key is ordered by, and the same of a value. Members of ENUM and SET have the order of their numbers, but
    are compared as texts: these are ordered as such."""
    reference, kind = f"t.{quote(column.name)}", type_of(column)
    if kind in {"enum", "set"}:
        return f"BINARY {text_of(column, reference)}", f"BINARY {literal(text)}"
    if (kind in INTEGER or kind == "decimal") and _NUMBER.fullmatch(text):
        return reference, text  # bare: with a text they might be compared as floats
    return reference, from_text(column, literal(text))


def _inside(table: ListedTable) -> str:
    """FROM and WHERE of the rows inside the row filter, called t; more conditions may follow."""
    return f"FROM {quote(table.name)} t WHERE " + (f"({table.where})" if table.where else "TRUE")


def _is_long(column: Column) -> bool:
    return type_of(column) in _LONG_TEXTS or type_of(column) in _LONG_BYTES


def _part(column: Column) -> str:
    """SQL for what a value is in the digest of its row: a number or a time, or quoted text, or a digest; or the word NULL."""
    reference, kind = f"t.{quote(column.name)}", type_of(column)
    if kind in INTEGER:
        return f"COALESCE({reference}, 'NULL')"
    if kind in _BARE:
        return f"COALESCE({text_of(column, reference)}, 'NULL')"
    if not _is_long(column):
        return f"QUOTE({text_of(column, reference)})"
    in_utf8 = kind not in _LONG_TEXTS or is_utf8(column)
    return f"COALESCE(SHA1({reference if in_utf8 else f'CONVERT({reference} USING utf8mb4)'}), 'NULL')"


def _digest(columns: Iterable[Column]) -> str:
    """SQL for a row's digest, 16 digits."""
    return f"LEFT(SHA1({_together(map(_part, columns))}), 16)"  # processors have instructions for SHA-1, and none for MD5


def _together(parts: Iterable[str]) -> str:
    """SQL for texts joined by commas. By CONCAT, which is NULL where one of them is; CONCAT_WS passes over it."""
    return "CONCAT(" + ", ',', ".join(parts) + ")"


def _bucket(table: ListedTable, number: int) -> str:
    return f"CRC32({_together(map(_part, table.key))}) MOD {number:d}"


def _among(table: ListedTable, number: int, wanted: Iterable[int]) -> str:
    """A condition more: the row is in one of these buckets."""
    return f" AND {_bucket(table, number)} IN ({', '.join(map(str, sorted(wanted)))})"


def _key(table: ListedTable) -> str:
    """SQL for the key's JSON text; of each value the same as in row_json."""
    return _together(f"JSON_QUOTE({text_of(c, reference)})" for reference, c in _of(table.key))


def _of(columns: Iterable[Column]) -> list[tuple[str, Column]]:
    return [(f"t.{quote(column.name)}", column) for column in columns]


def _roomy(connection: Connection) -> Any:
    """A cursor, where the server has room for all of a row but its long values; else raises Unavailable."""
    cursor = raw_cursor(connection)
    ((packet,),) = _found(cursor, "SELECT @@max_allowed_packet")
    if packet < _LEAST_PACKET:
        raise Unavailable(f"the database: max_allowed_packet is {packet}, and rows are read with {_LEAST_PACKET} or more")
    return cursor


def _found(cursor: Any, statement: str) -> Sequence[tuple[Any, ...]]:
    """The rows of a statement, in which a percent sign is one, and what is no UTF-8 has come as `_text` makes it."""
    cursor.execute(statement.encode("utf-8", "surrogateescape"))
    rows: Sequence[tuple[Any, ...]] = cursor.fetchall()
    return rows


def _texts(row: tuple[bytes, bytes | None]) -> tuple[str, str | None]:
    key, text = row
    return _text(key), None if text is None else _text(text)


def _text(value: bytes) -> str:
    """Texts are read as bytes: see common.dialects.mariadb_outbox."""
    return value.decode("utf-8", "surrogateescape")
