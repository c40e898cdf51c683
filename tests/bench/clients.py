"""One client program per database, as plain and as quick as its driver allows: it makes the load, it is not what is measured.

What the watchers ask, some 2,000 times a second each, goes around the driver's cursor, for both processors are needed elsewhere.
"""

import sqlite3
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

import psycopg
import pymysql
from sqlalchemy.engine import make_url

PAD = "x" * 160  # with the other columns: a row of about 200 bytes
COUNTER = "CREATE TABLE counter (id int PRIMARY KEY, v bigint)"
TABLES = {
    "postgresql": ("CREATE TABLE t (id bigint PRIMARY KEY, n int, pad text, ts timestamptz)", COUNTER),
    "mariadb": ("CREATE TABLE t (id bigint PRIMARY KEY, n int, pad text, ts datetime)", COUNTER),
    "sqlite": ("CREATE TABLE t (id bigint PRIMARY KEY NOT NULL, n int, pad text, ts text)", COUNTER),
}
_BULK = {
    "postgresql": (
        "INSERT INTO t SELECT g, g % 97, repeat(md5(g::text), 5), now() FROM generate_series({first}::bigint, {last}::bigint) g"
    ),
    "mariadb": "INSERT INTO t SELECT seq, seq % 97, repeat(md5(seq), 5), now() FROM seq_{first}_to_{last}",
    "sqlite": (  # no md5 here: 32 random digits, five times
        "WITH RECURSIVE s(g) AS (SELECT {first} UNION ALL SELECT g + 1 FROM s WHERE g < {last})"
        " INSERT INTO t SELECT g, g % 97, replace(hex(zeroblob(5)), '00', hex(randomblob(16))), datetime('now') FROM s"
    ),
}


# What the watchers ask in MariaDB, as a packet (COM_QUERY), and its answer: how many columns, the column, an end, the row, an end.
_COUNTER_SQL = b"SELECT v FROM counter WHERE id = 1"
_ASK_COUNTER = struct.pack("<iB", len(_COUNTER_SQL) + 1, 3) + _COUNTER_SQL
_ROW, _END, _NULL, _ERROR = 3, b"\xfe", b"\xfb", b"\xff"


class Client(Protocol):
    """A connection that commits each statement by itself."""

    def run(self, statement: str) -> None:
        """Run any statement."""

    def insert(self, number: int) -> None:
        """Insert one row of `t`."""

    def count(self, value: int) -> None:
        """Set the counter."""

    def counter(self) -> int | None:
        """What the counter shows; None while its row is not there."""

    def has(self, number: int) -> bool:
        """Whether `t` has this row."""

    def rows(self) -> int:
        """How many rows `t` has."""

    def close(self) -> None:
        """Hang up."""


def connect(url: str) -> Client:
    """A client of the database at an SQLAlchemy URL."""
    return _CLIENTS[kind_of(url)](url)


def kind_of(url: str) -> str:
    """Which of the three databases an SQLAlchemy URL means."""
    name = make_url(url).get_backend_name()
    return {"mysql": "mariadb"}.get(name, name)


def bulk_sql(url: str, first: int, last: int) -> str:
    """One statement that inserts the rows first…last, made by the database itself."""
    return _BULK[kind_of(url)].format(first=first, last=last)


class _Postgresql:
    def __init__(self, url: str) -> None:
        at = make_url(url)
        self._link = psycopg.connect(
            host=at.host, port=at.port, user=at.username, password=at.password, dbname=at.database, autocommit=True
        )
        self._cursor = self._link.cursor()
        self._asks = False

    def run(self, statement: str) -> None:
        self._cursor.execute(statement.encode())

    def insert(self, number: int) -> None:
        self._cursor.execute("INSERT INTO t VALUES (%s, %s, %s, now())", (number, number % 97, PAD), prepare=True)

    def count(self, value: int) -> None:
        self._cursor.execute("UPDATE counter SET v = %s WHERE id = 1", (value,), prepare=True)

    def counter(self) -> int | None:
        if not self._asks:
            self._link.pgconn.prepare(b"counter", b"SELECT v FROM counter WHERE id = 1")
            self._asks = True
        found = self._link.pgconn.exec_prepared(b"counter", ())
        if found.error_message:
            raise ConnectionError(found.error_message.decode(errors="replace"))
        return int(found.get_value(0, 0) or 0) if found.ntuples else None

    def has(self, number: int) -> bool:
        return self._cursor.execute("SELECT 1 FROM t WHERE id = %s", (number,)).fetchone() is not None

    def rows(self) -> int:
        return _one(self._cursor.execute("SELECT count(*) FROM t").fetchone()) or 0

    def close(self) -> None:
        self._link.close()


class _Mariadb:
    def __init__(self, url: str) -> None:
        at = make_url(url)
        self._link = pymysql.connect(
            host=at.host or "",
            port=at.port or 0,
            user=at.username,
            password=at.password or "",
            database=at.database,
            autocommit=True,
        )
        self._cursor = self._link.cursor()

    def run(self, statement: str) -> None:
        self._cursor.execute(statement)

    def insert(self, number: int) -> None:
        self._cursor.execute("INSERT INTO t VALUES (%s, %s, %s, now())", (number, number % 97, PAD))

    def count(self, value: int) -> None:
        self._cursor.execute("UPDATE counter SET v = %s WHERE id = 1", (value,))

    def counter(self) -> int | None:
        link: Any = self._link
        link._sock.sendall(_ASK_COUNTER)
        reply = b""
        while not (packets := _packets(reply)):
            some = link._sock.recv(4096)
            if not some:
                raise ConnectionError("the server hung up")
            reply += some
        row = packets[_ROW]
        return None if row[:1] in (_END, _NULL) else int(row[1:])

    def has(self, number: int) -> bool:
        self._cursor.execute("SELECT 1 FROM t WHERE id = %s", (number,))
        return self._cursor.fetchone() is not None

    def rows(self) -> int:
        self._cursor.execute("SELECT count(*) FROM t")
        return _one(self._cursor.fetchone()) or 0

    def close(self) -> None:
        self._link.close()


class _Sqlite:
    def __init__(self, url: str) -> None:
        self._link = sqlite3.connect(make_url(url).database or "", timeout=30, isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            self._link.execute(f"PRAGMA {pragma}")

    def run(self, statement: str) -> None:
        self._link.execute(statement)

    def insert(self, number: int) -> None:
        now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        self._link.execute("INSERT INTO t VALUES (?, ?, ?, ?)", (number, number % 97, PAD, now))

    def count(self, value: int) -> None:
        self._link.execute("UPDATE counter SET v = ? WHERE id = 1", (value,))

    def counter(self) -> int | None:
        return _one(self._link.execute("SELECT v FROM counter WHERE id = 1").fetchone())

    def has(self, number: int) -> bool:
        return self._link.execute("SELECT 1 FROM t WHERE id = ?", (number,)).fetchone() is not None

    def rows(self) -> int:
        return _one(self._link.execute("SELECT count(*) FROM t").fetchone()) or 0

    def close(self) -> None:
        self._link.close()


def _packets(reply: bytes) -> list[bytes]:
    """The packets of MariaDB's answer to a query, without their heads; none while it is not complete."""
    found: list[bytes] = []
    at = 0
    while at + 4 <= len(reply):
        end = at + 4 + int.from_bytes(reply[at : at + 3], "little")
        found.append(reply[at + 4 : end])
        if found[-1][:1] == _ERROR:
            raise ConnectionError(found[-1].decode(errors="replace"))
        at = end
    return found if at == len(reply) and len(found) > _ROW and found[-1][:1] == _END else []


def _one(row: Any) -> int | None:
    return None if row is None else int(row[0])


_CLIENTS: dict[str, Callable[[str], Client]] = {"postgresql": _Postgresql, "mariadb": _Mariadb, "sqlite": _Sqlite}
