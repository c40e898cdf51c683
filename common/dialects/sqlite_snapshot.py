"""How whole tables are read in SQLite: the library lives in this process, and so do the digests.

Texts are read as bytes: what a program stored as text need not be UTF-8, and digests are over bytes anyway.
"""

import sqlite3
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from hashlib import blake2b
from typing import Any, Final
from zlib import crc32

from sqlalchemy.engine import Connection

from common.changes import SEPARATOR
from common.dialects.snapshot import DIGESTS_AT_ONCE, taking_part
from common.dialects.sqlite_capture import inside, quote, row_json
from common.dialects.sqlite_writer import UNFIT, values
from common.digests import Bucket
from common.errors import NotApplicable
from common.schema import ListedTable

_DIGEST_BYTES: Final = 16
_BETWEEN: Final = SEPARATOR.encode()


class SqliteSnapshot:
    """The part of SQLite's dialect that full synchronizations read with (SnapshotDialect)."""

    def count(self, connection: Connection, table: ListedTable) -> int:
        """See SnapshotDialect."""
        with closing(_link(connection).execute(f"SELECT count(*){inside(table)}")) as cursor:
            return int(cursor.fetchone()[0])

    def buckets(
        self,
        connection: Connection,
        table: ListedTable,
        columns: Sequence[str],
        number: int,
        wanted: Collection[int] | None = None,
    ) -> dict[int, Bucket]:
        """See SnapshotDialect."""
        link, rows, sums = _link(connection), [0] * number, [0] * number
        size, read = _DIGEST_BYTES, int.from_bytes
        chosen = None if wanted is None else frozenset(wanted)
        with _as_bytes(link), closing(link.execute(f"{_select(table, columns)}{inside(table)}")) as cursor:
            for key, row in cursor:
                place = crc32(key) % number
                if chosen is not None and place not in chosen:
                    continue
                rows[place] += 1
                sums[place] ^= read(blake2b(row, digest_size=size).digest(), "big")
        return {
            place: Bucket(found, sums[place].to_bytes(_DIGEST_BYTES, "big")) for place, found in enumerate(rows) if found
        }

    def row_digests(
        self, connection: Connection, table: ListedTable, columns: Sequence[str], number: int, wanted: Collection[int]
    ) -> Generator[list[tuple[str, bytes]], None, None]:
        """See SnapshotDialect."""
        link, chosen = _link(connection), frozenset(wanted)
        with closing(link.execute(f"{_select(table, columns)}{inside(table)}")) as cursor:
            more = True
            while more:
                some: list[tuple[str, bytes]] = []
                more = False
                with _as_bytes(link):
                    for key, row in cursor:
                        if crc32(key) % number in chosen:
                            some.append((_key(key), blake2b(row, digest_size=_DIGEST_BYTES).digest()))
                            if len(some) == DIGESTS_AT_ONCE:
                                more = True
                                break
                if some:
                    yield some

    def rows(
        self, connection: Connection, table: ListedTable, columns: Sequence[str], max_bytes: int
    ) -> Generator[tuple[int, str], None, None]:
        """See SnapshotDialect."""
        link, order = _link(connection), ", ".join(quote(c.name) for c in table.key)
        with closing(link.execute(f"{_select(table, columns)}{inside(table)} ORDER BY {order}")) as cursor:
            yield from _portions(link, (row for _, row in cursor), max_bytes)

    def rows_of(
        self, connection: Connection, table: ListedTable, columns: Sequence[str], keys: Sequence[str], max_bytes: int
    ) -> Generator[tuple[int, str], None, None]:
        """See SnapshotDialect."""
        link = _link(connection)
        match = "".join(f" AND {quote(c.name)} = ?{place}" for place, c in enumerate(table.key, 1))
        statement = f"{_select(table, columns)}{inside(table)}{match}"
        yield from _portions(link, _asked(link, statement, keys), max_bytes)


def _select(table: ListedTable, columns: Sequence[str]) -> str:
    """The key's JSON text, in its brackets, and the row's."""
    key, row = (row_json(quote(c.name) for c in some) for some in (table.key, taking_part(table, columns)))
    return f"SELECT {key}, {row}"


def _asked(link: sqlite3.Connection, statement: str, keys: Sequence[str]) -> Iterator[bytes]:
    """The rows with these keys; each is bound, and looked for by the primary key's index."""
    for key in dict.fromkeys(keys):
        (bound,) = values(f"[{key}]")
        try:
            found = link.execute(statement, bound).fetchall()
        except UNFIT as exc:
            raise NotApplicable(f"a key that does not fit its columns: {exc}") from exc
        yield from [row for spelled, row in found if _key(spelled) == key]


def _portions(link: sqlite3.Connection, rows: Iterator[bytes], max_bytes: int) -> Generator[tuple[int, str], None, None]:
    """Rows in portions of so many bytes and at most a row more; the driver reads them as bytes only while it reads them here."""
    more = True
    while more:
        some: list[bytes] = []
        size = 0
        more = False
        with _as_bytes(link):
            for row in rows:
                some.append(row)
                size += len(row) + len(_BETWEEN)
                if size >= max_bytes:
                    more = True
                    break
        if some:
            yield len(some), _BETWEEN.join(some).decode("utf-8", "surrogateescape")


def _key(text: bytes) -> str:
    """Without the bracket on either side."""
    return text[1:-1].decode("utf-8", "surrogateescape")


@contextmanager
def _as_bytes(link: sqlite3.Connection) -> Iterator[None]:
    before = link.text_factory
    link.text_factory = bytes
    try:
        yield
    finally:
        link.text_factory = before


def _link(connection: Connection) -> sqlite3.Connection:
    """The driver's own connection, in the connection's transaction, which begins if there is none."""
    if not connection.in_transaction():
        connection.begin()
    found: Any = connection.connection.driver_connection
    link: sqlite3.Connection = found
    return link
