"""Statements that are run for every change, at a tenth of what the driver's own cursor costs for each.

psycopg's cursors adapt, plan and wait in Python, which on a busy machine takes longer than the server needs; here libpq is called
directly, through psycopg.pq.
"""

import re
import select
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
from psycopg.adapt import Transformer
from psycopg.pq import ConnStatus, ExecStatus, Format, TransactionStatus

from common.dialects.base import QUICK_CURSOR
from common.dialects.script import Collected, Promised
from common.errors import NotApplicable

_PREPARED = 100  # as many as psycopg keeps: each has its plan in the server's memory
_MARK = re.compile(r"%([s%])")
_GOOD = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)
Value = str | bytes | int | float | None


class QuickCursors:
    """Makes cursors on one connection, which share its prepared statements: what is run a second time is prepared."""

    def __init__(self, driver: "psycopg.Connection[Any]", isolation: str) -> None:
        self.driver = driver
        self._begin = f"BEGIN ISOLATION LEVEL {isolation}"
        self._known: OrderedDict[str, tuple[bytes, bytes | None]] = OrderedDict()
        self._made = 0
        self._polled = select.POLLIN
        self._poll = select.poll()
        self._poll.register(driver.pgconn.socket, self._polled)
        self._adapter = Transformer(driver)

    def __call__(self) -> "QuickCursor":
        """A new cursor."""
        return QuickCursor(self)

    def run(self, statement: str, values: Sequence[Value]) -> Any:
        """The result of a statement, in a transaction that begins if there is none; raises psycopg.Error."""
        return self.run_all([(statement, values)], commit=False)

    def run_all(self, statements: Iterable[tuple[str, Sequence[Value]]], *, commit: bool) -> Any:
        """The result of the last of these statements, all sent together (libpq's pipeline mode); in a transaction that begins if there
        is none, and is committed with them if they all went. Else it is failed, and open if it was before or `commit` is False. Raises
        psycopg.Error.

        What one pipeline begins and commits needs no words for either: without them, all up to its end is one transaction, of the
        session's isolation.
        """
        link = self.driver.pgconn
        begun = link.transaction_status != TransactionStatus.IDLE
        sent = list(statements)
        few = len(sent) <= _PREPARED // 2  # so that none of them has another's plan thrown away
        calls = [] if begun or commit else [self._call(self._begin, (), prepare=True)]
        calls += [self._call(statement, values, prepare=few) for statement, values in sent]
        wanted = len(calls) - 1
        if commit and begun:
            calls.append(self._call("COMMIT", (), prepare=True))
        link.enter_pipeline_mode()
        try:
            for call in calls:
                call()
            link.pipeline_sync()
            results = self._answers(len(calls))
        finally:
            if link.status == ConnStatus.OK:
                link.exit_pipeline_mode()
        for result in results:
            self._checked(result)
        return results[wanted]

    def rows_of(self, result: Any) -> list[tuple[Any, ...]]:
        """The rows of a result."""
        self._adapter.set_pgresult(result)
        try:
            return list(self._adapter.load_rows(0, result.ntuples, tuple))
        finally:
            self._adapter.set_pgresult(None)  # it may be large

    def _call(self, statement: str, values: Sequence[Value], *, prepare: bool) -> Callable[[], None]:
        """What sends a statement; it is prepared here if that pays."""
        link = self.driver.pgconn
        known = self._known.get(statement)
        parameters: list[Any] = [value if value is None or isinstance(value, bytes) else _text(value) for value in values]
        formats = [Format.BINARY if isinstance(value, bytes) else Format.TEXT for value in values]
        if known is None:
            text = _numbered(statement)
            if prepare:
                self._keep(statement, (text, None))
            return partial(link.send_query_params, text, parameters, param_formats=formats)
        text, name = known
        if name is None and not prepare:
            return partial(link.send_query_params, text, parameters, param_formats=formats)
        if name is None:
            self._made += 1
            name = b"stsync_%d" % self._made
            self._checked(link.prepare(name, text))
            self._known[statement] = (text, name)
        self._known.move_to_end(statement)
        return partial(link.send_query_prepared, name, parameters, param_formats=formats)

    def _answers(self, statements: int) -> list[Any]:
        """What comes of everything that was sent."""
        results = [self._next() for _ in range(statements)]
        end = self._next()
        if end.status != ExecStatus.PIPELINE_SYNC:  # the commit itself failed
            results.append(end)
            self._next()
        return results

    def _next(self) -> Any:
        """The result of the next statement, or of the pipeline's end."""
        result = self._received()
        if result is None:
            raise psycopg.OperationalError("the server closed the connection")
        if result.status != ExecStatus.PIPELINE_SYNC:
            self._received()  # None: that statement has no more
        return result

    def _received(self) -> Any:
        link = self.driver.pgconn
        while (unsent := link.flush()) or link.is_busy():
            wanted = select.POLLIN | (select.POLLOUT if unsent else 0)
            if wanted != self._polled:
                self._poll.modify(link.socket, wanted)
                self._polled = wanted
            ((_, event),) = self._poll.poll()
            if event != select.POLLOUT:
                link.consume_input()
        return link.get_result()

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

    @contextmanager
    def copy(self, statement: str) -> Iterator["psycopg.Copy"]:
        """What takes the rows for COPY … FROM STDIN."""
        with self._source.driver.cursor() as cursor:
            with cursor.copy(statement.encode()) as copy:
                yield copy
            self.rowcount = cursor.rowcount

    def fetchall(self) -> list[tuple[Any, ...]]:
        """The rows of the last statement."""
        return self._source.rows_of(self._result)

    def close(self) -> None:
        """Forget the rows."""
        self._result = None


class QuickScript(Collected):
    """Sends all, and COMMIT, at once: what a statement promises is checked by the server, where a false promise is a division by
    zero and so fails them all."""

    def commit(self) -> None:
        """See Script."""
        quick: QuickCursors = self.connection.info[QUICK_CURSOR]
        try:
            quick.run_all([_checked(one) for one in self.statements], commit=True)
        except psycopg.errors.DivisionByZero as exc:
            raise NotApplicable("a statement did not find the rows that it was to write") from exc
        super().commit()


def _checked(one: Promised) -> tuple[str, Sequence[Value]]:
    (values,) = one.parameters or ((),)
    if one.rows is None:
        return one.operation, values
    wrapped = f"WITH stsync_done AS ({one.operation} RETURNING 1) SELECT 1 / (count(*) = %s)::int FROM stsync_done"
    return wrapped, (*values, one.rows)


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


def _text(value: str | float) -> bytes:
    text = (value if isinstance(value, str) else repr(value)).encode()
    if b"\0" in text:
        raise psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
    return text
