"""How rows get into MariaDB's tables."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from types import GenericAlias
from typing import Any

import msgspec
from pymysql.converters import escape_string

from common.changes import SEPARATOR
from common.dialects.base import Cursor
from common.dialects.json_writer import JsonWriter, Quote
from common.dialects.mariadb_driver import Connection as Driver
from common.dialects.mariadb_driver import execution
from common.dialects.mariadb_values import INTEGER, UNTYPED, fits, from_text, is_plain, is_typed, type_of, unclipped
from common.dialects.script import Collected, Script
from common.errors import NotApplicable, Unavailable
from common.schema import Column, ListedTable

_NUMBER = re.compile(r"-?[0-9]+")
_SMALL = 256 << 10  # far below any max_allowed_packet in use, even when every character is escaped
_SLACK = 1024
_LONGEST_KEY = 64 << 10  # what a collation may make of the 3,072 bytes that InnoDB's keys have
_SORT_BUFFER = 4 << 20  # room for the fifteen values at least without which the server sorts nothing
# Rows of a prepared statement; the server takes longer, and much memory, to prepare it, but then only half as long as for literals.
_PORTION, _PAYS, _WIDEST = 128, 1_024, 32
# The only escapes in a string of JSON that mean something else in one of MariaDB; before them an even number of backslashes.
_ESCAPES = ("\\u", "\\f")
_ESCAPED = re.compile(r"(?<!\\)(?:\\\\)*\\[uf]")
_BETWEEN = f"]{SEPARATOR}["
_VALUE_HERE = "\0"
_Row = tuple[str | None, ...]


class MariadbWriter(JsonWriter):
    """Frames through JSON_TABLE; keys with their column's own type and collation, so that the join uses the index, and so the
    columns that the row filter names, so that it means the same as over the table."""

    def __init__(self, table: ListedTable, names: Sequence[str], quote: Quote) -> None:
        super().__init__(table, names, quote)
        written_names = ", ".join(quote(column.name) for _, column in self.places)
        self._table = quote(table.name)
        self._into = f"INSERT INTO {quote(table.name)} ({written_names}) VALUES "
        self._places = [(place, from_text(column, _VALUE_HERE)) for place, column in self.places]
        self._all_plain = [place for place, how in self._places if how == _VALUE_HERE] == list(range(len(self.columns)))
        self._picks = [place for place, how in self._places for _ in range(how.count(_VALUE_HERE))]
        marks = f"({', '.join([how.replace(_VALUE_HERE, '?') for _, how in self._places])})"
        self._portion = self._into + ", ".join([marks] * _PORTION) if len(self._picks) <= _WIDEST else ""
        self._since_prepared = 0
        self._keys_plain = all(map(is_plain, self.keys)) and not self.where
        settable = self._places[len(self.keys) :] or self._places
        self._sets = [(f"{quote(self.columns[place].name)} = ", place, how) for place, how in settable]
        self._matches = [(f"{quote(c.name)} = ", type_of(c) in INTEGER) for c in self.keys]

    def execute(self, cursor: Cursor, statement: str, rows: str) -> int:
        """See JsonWriter."""
        if len(rows) > _SMALL:
            self._fit(cursor, _bytes_of(escape_string(rows)) + _bytes_of(statement), rows)
        return super().execute(cursor, statement, rows)

    def insert(self, cursor: Cursor, rows: str) -> int:
        """See TableWriter. VALUES cost the server, and PyMySQL, much less than JSON_TABLE; rows that are not as our triggers write
        them, and those that the row filter has to judge, go the other way."""
        parsed = None if self.where else _parsed(rows, len(self.columns))
        if parsed is None:
            return super().insert(cursor, rows)
        placed, written = self._insert_prepared(cursor, rows, parsed)
        if placed == len(parsed):
            return written
        statement = self._into + self._values(rows, parsed, placed)
        if len(statement) > _SMALL:
            self._fit(cursor, _bytes_of(statement), rows)
        cursor.execute(statement)
        return written + cursor.rowcount

    def _insert_prepared(self, cursor: Cursor, rows: str, parsed: Sequence[_Row]) -> tuple[int, int]:
        """Insert the first of these rows by a statement that the server keeps, and so need not parse again: how many, and what it says
        that it wrote. None where that does not pay yet, or where the table is so wide that it never does."""
        placed = written = 0
        if not self._portion or len(parsed) < _PORTION or isinstance(cursor, Collected):
            return placed, written
        driver: Driver = _direct(cursor).connection
        self._since_prepared += len(parsed)
        if not driver.keeps(self._portion) and self._since_prepared < _PAYS:
            return placed, written
        number = driver.prepare(self._portion)
        if number is None:
            return placed, written
        self._since_prepared = 0
        while len(parsed) - placed >= _PORTION:
            some = parsed[placed : placed + _PORTION]
            values = list(chain(*some)) if self._all_plain else [row[place] for row in some for place in self._picks]
            call = execution(number, values)
            if len(call) > _SMALL:
                self._fit(cursor, len(call), rows)
            written += driver.execute_prepared(call)
            placed += _PORTION
        return placed, written

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

    def _single(self, rows: str, width: int) -> _Row | None:
        """The values of a single row; None where it is to go the other way."""
        if not self._keys_plain or len(rows) > _SMALL or SEPARATOR in rows:
            return None
        parsed = _parsed(rows, width)
        return None if parsed is None else parsed[0]

    def _match(self, row: _Row) -> str | None:
        """The row with this key. Integers stand bare: compared with a text they would be compared as floats."""
        parts = []
        for (name, is_integer), value in zip(self._matches, row, strict=False):
            if value is None or (is_integer and not _NUMBER.fullmatch(value)):
                return None
            parts.append(name + (value if is_integer else f"'{escape_string(value)}'"))
        return " AND ".join(parts)

    def _values(self, rows: str, parsed: Sequence[_Row], first: int) -> str:
        """The rows from the first one on, as they follow VALUES."""
        if self._all_plain and rows.endswith("]") and rows.count(_BETWEEN) == len(parsed) - 1 and not _escaped(rows):
            count = len(parsed) - first
            texts = rows[1:-1].rsplit(_BETWEEN, count)[-count:]
            return f"({'),('.join(texts)})"  # known now to be strings, nulls and what stands between them
        return ",".join(
            [f"({','.join([_spliced(how, row[place]) for place, how in self._places])})" for row in parsed[first:]]
        )

    def _fit(self, cursor: Cursor, size: int, rows: str) -> None:
        """The server cuts the connection for a statement above max_allowed_packet, so that is looked at before.

        Raises NotApplicable for several rows (fewer may go), Unavailable for one: nothing is lost, and it goes on when the server's
        operator has raised the variable.
        """
        asking = _direct(cursor)
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
        typed = [(place, c) for place, c, _ in wanted if is_typed(c) and (c in self.keys or c.name.lower() in filtered)]
        table = [
            f"c{place} {c.type if (place, c) in typed else UNTYPED} PATH '$[{place}]' ERROR ON ERROR"
            for place, c, _ in wanted
        ]
        table += [f"t{place} {UNTYPED} PATH '$[{place}]' ERROR ON ERROR" for place, _ in typed]
        values = ", ".join(f"{from_text(c, f'c{place}')} AS {self.quote(name)}" for place, c, name in wanted)
        whole = [unclipped(c, f"c{place}", f"t{place}") for place, c in typed]
        whole += [fits(c, f"c{place}") for place, c, _ in wanted]
        where = " AND ".join(filter(None, whole)) or "TRUE"  # what is another value by now might be another row's key
        return f"SELECT {values} FROM JSON_TABLE(%s, '$[*]' COLUMNS ({', '.join(table)})) j WHERE {where}"

    def respell_sql(self, free: Sequence[tuple[int, Column]]) -> str:
        """See JsonWriter."""
        sets = ", ".join(f"t.{self.quote(c.name)} = x.{self.alias(i)}" for i, c in free)
        differ = " OR ".join(f"NOT BINARY t.{self.quote(c.name)} <=> BINARY x.{self.alias(i)}" for i, c in free)
        return (
            f"UPDATE {self.target} t JOIN ({self.rows_in()}) x ON {self.key_match()} SET {sets}"
            f" WHERE ({differ}){self.local_filter()}"
        )

    def alike_sql(self) -> str:
        """See JsonWriter. Rows are sorted by no more than max_sort_length bytes of a value: by all that a key may have here."""
        return f"SET STATEMENT max_sort_length = {_LONGEST_KEY}, sort_buffer_size = {_SORT_BUFFER} FOR {super().alike_sql()}"

    def compared(self, column: Column, value: str) -> str:
        """See JsonWriter: of what JSON_TABLE gives as texts, numbers as such, and others byte by byte."""
        if type_of(column) in {"float", "double"}:
            return f"CAST({value} AS {type_of(column)})"
        return value if is_typed(column) else f"BINARY {value}"

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


def _direct(cursor: Cursor) -> Any:
    """PyMySQL's own cursor."""
    return cursor.direct if isinstance(cursor, Script) else cursor


def _parsed(rows: str, width: int) -> list[_Row] | None:
    """Rows as our triggers write them; None for others."""
    try:
        return _decoder(width).decode(f"[{rows}]")
    except ValueError:  # what is no JSON, other types, or more or fewer values
        return None


@lru_cache
def _decoder(width: int) -> msgspec.json.Decoder[list[_Row]]:
    """Decodes rows of so many texts or nulls."""
    row = GenericAlias(tuple, (str | None,) * width)
    return msgspec.json.Decoder(GenericAlias(list, (row,)))


def _escaped(rows: str) -> bool:
    """Whether anything in them is to be read before MariaDB can."""
    return "\\" in rows and any(one in rows for one in _ESCAPES) and _ESCAPED.search(rows) is not None


def _bytes_of(text: str) -> int:
    return len(text if text.isascii() else text.encode())


def _spliced(how: str, value: str | None) -> str:
    literal = "NULL" if value is None else f"'{escape_string(value)}'"
    return literal if how == _VALUE_HERE else how.replace(_VALUE_HERE, literal)
