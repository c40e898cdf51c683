"""Statements that are run for every change, at a tenth of what the driver's own cursor costs for each.

psycopg's cursors adapt, plan and wait in Python, which on a busy machine takes longer than the server needs; here libpq is called
directly, through psycopg.pq.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus, Format, TransactionStatus

_PREPARED = 100  # as many as psycopg keeps: each has its plan in the server's memory
_BEGIN = b"BEGIN ISOLATION LEVEL READ COMMITTED"
_MARK = re.compile(r"%([s%])")
_GOOD = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)
Value = str | bytes | int | float | None


class QuickCursors:
    """Makes cursors on one connection, which share its prepared statements: what is run a second time is prepared."""

    def __init__(self, driver: "psycopg.Connection[Any]") -> None:
        self.driver = driver
        self._known: OrderedDict[str, tuple[bytes, bytes | None]] = OrderedDict()
        self._made = 0

    def __call__(self) -> "QuickCursor":
        """A new cursor."""
        return QuickCursor(self)

    def run(self, statement: str, values: Sequence[Value]) -> Any:
        """The result of a statement, in a transaction that begins if there is none; raises psycopg.Error."""
        link = self.driver.pgconn
        if link.transaction_status == TransactionStatus.IDLE:
            self._checked(link.exec_(_BEGIN))
        known = self._known.get(statement)
        parameters: list[Any] = [_text(value) for value in values]
        formats = [Format.BINARY if isinstance(value, bytes) else Format.TEXT for value in values]
        if known is None:
            text = _numbered(statement)
            self._keep(statement, (text, None))
            return self._checked(link.exec_params(text, parameters, param_formats=formats))
        text, name = known
        if name is None:
            self._made += 1
            name = b"stsync_%d" % self._made
            self._checked(link.prepare(name, text))
            self._known[statement] = (text, name)
        self._known.move_to_end(statement)
        return self._checked(link.exec_prepared(name, parameters, param_formats=formats))

    def _keep(self, statement: str, known: tuple[bytes, bytes | None]) -> None:
        self._known[statement] = known
        if len(self._known) > _PREPARED:
            _, (_, name) = self._known.popitem(last=False)
            if name is not None:
                self._checked(self.driver.pgconn.exec_(b"DEALLOCATE " + name))

    def _checked(self, result: Any) -> Any:
        if result.status not in _GOOD:
            raise psycopg.errors.error_from_result(result, "utf-8")
        return result


class QuickCursor:
    """As much of a DB-API cursor as is needed: parameters are str, bytes, int, float and None, marked by %s."""

    def __init__(self, source: QuickCursors) -> None:
        self._source = source
        self._result: Any = None
        self.rowcount = -1

    def execute(self, statement: str, values: Sequence[Value] = ()) -> None:
        """Run a statement."""
        self._result = self._source.run(statement, values)
        self.rowcount = self._result.command_tuples or 0

    def executemany(self, statement: str, rows: Iterable[Sequence[Value]]) -> None:
        """Run a statement for each of these rows."""
        for values in rows:
            self.execute(statement, values)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """The rows of the last statement."""
        adapter = Transformer(self._source.driver)
        adapter.set_pgresult(self._result)
        return list(adapter.load_rows(0, self._result.ntuples, tuple))

    def close(self) -> None:
        """Forget the rows."""
        self._result = None


def _numbered(statement: str) -> bytes:
    """With the server's own marks, $1 and so on."""
    count = 0

    def mark(found: re.Match[str]) -> str:
        nonlocal count
        if found[1] == "%":
            return "%"
        count += 1
        return f"${count}"

    return _MARK.sub(mark, statement).encode()


def _text(value: Value) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    text = (value if isinstance(value, str) else repr(value)).encode()
    if b"\0" in text:
        raise psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
    return text
