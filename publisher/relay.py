"""The relay: drains the outbox into the journal, one change set at a time (DESIGN §5, TRAPS 1, 8)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import msgspec
import structlog
from sqlalchemy.engine import Connection

from common import nodestate
from common.changes import SEPARATOR, Kind, Position
from common.database import Database
from common.dialects.base import UNCHECKED
from common.dialects.script import Script
from common.errors import NotApplicable
from common.live_lists import Lists
from common.settings import RelaySettings
from common.wire import Writer
from publisher import contract, journal, outbox
from publisher.composer import Batch, Composer, Head

_HOLD_BYTES = 16 << 20  # sealed batches kept in memory before they are written
_JOIN_BYTES = 64 << 10
_ID_BYTES = 20


@dataclass(frozen=True)
class Drained:
    """What one drain made of the outbox."""

    changes: int
    rows: int
    position: Position
    batches: tuple[Batch, ...]


class Relay:
    """Owns the outbox's end and the sequence. One thread uses it; it has two connections, one reads and one writes.

    A drain is one consistent read of all committed outbox rows, in id order, as one change set. The rows that were read (and no
    others: a lower id may commit later) are deleted in the transaction that writes the batches and moves the position. Where few
    stand there and the database allows it, reading and deleting them is one statement of that transaction.
    """

    def __init__(
        self,
        database: Database,
        settings: RelaySettings,
        writer: Writer,
        lists: Callable[[], Lists],
        position: Position,
    ) -> None:
        self._database = database
        self._settings = settings
        self._writer = writer
        self._lists = lists
        self._present = lists()
        self.position = position
        self._log = structlog.get_logger("relay")
        self._connections: tuple[Connection, Connection] | None = None
        self._many = False  # the last drain brought many rows, and so, it seems, will the next
        self._heads: dict[tuple[str, str], tuple[Kind, tuple[str, ...]]] = {}

    def close(self) -> None:
        """Give the connections back."""
        if self._connections is not None:
            for connection in self._connections:
                connection.invalidate()  # it may be dead, and closing a dead one politely would fail
                connection.close()
            self._connections = None

    def drain(self) -> Drained | None:
        """Sequence everything that is committed; None when the outbox is empty.

        Raises Unavailable when the database is away: nothing has
        then changed, or the position in the database has moved and is read again by the caller.
        """
        reader, writer = self._open()
        self._present = self._lists()
        with self._database.guard():
            return self._drain(reader, writer)

    def _drain(self, reader: Connection, writer: Connection) -> Drained | None:
        dialect, limit = self._database.dialect, self._settings.page_rows
        take_sql = dialect.take_sql()
        if take_sql or not self._many:
            few = outbox.take(writer, take_sql, limit) if take_sql else outbox.peek(reader, dialect, limit)
            if few:
                return self._drain_pages(writer, [outbox.page_of(few)], taken=take_sql is not None)
            writer.rollback()
            if few is not None:
                return None
        try:
            drained = self._drain_pages(writer, outbox.pages(reader, dialect, limit), taken=False)
        finally:
            reader.rollback()
        self._many = drained is not None and drained.rows >= outbox.FEW
        return drained

    def _drain_pages(self, writer: Connection, pages: Iterable[outbox.Page], *, taken: bool) -> Drained | None:
        """One change set of these rows; `taken`: they are removed already."""
        composer = Composer(self._writer, self.position, self._settings.batch_bytes)
        ids: list[int] = []
        held: list[Batch] = []
        unfit: list[tuple[outbox.Row, str]] = []
        written = 0
        for page in pages:
            ids += page.ids
            for row in _joined(page.rows):
                held += self._compose(composer, row, unfit)
            if sum(len(batch.message) for batch in held) > _HOLD_BYTES:
                journal.append(Script(writer), self.position.epoch, held)
                written, held = written + len(held), []
        if not ids:
            return None
        held += composer.finish()
        outbox.reject(writer, unfit)
        size = sum(len(batch.message) for batch in held) + len(ids) * _ID_BYTES
        script = self._database.dialect.script(writer, size)
        journal.append(script, self.position.epoch, held)
        if not taken:
            outbox.remove(script, self._database.dialect, ids)
        installed_ms = self._present.installed_ms
        nodestate.advance(script, self.position, composer.position, installed_ms)
        try:
            script.commit()
        except NotApplicable:
            writer.rollback()
            nodestate.expect(writer, self.position, installed_ms)
            raise
        self.position = composer.position
        for row, reason in unfit:
            self._log.error("outbox_row_rejected", table=row.table_name, reason=reason)
        return Drained(composer.changes, len(ids), composer.position, tuple(held if not written else ()))

    def _compose(self, composer: Composer, row: outbox.Row, unfit: list[tuple[outbox.Row, str]]) -> list[Batch]:
        try:
            if row.canonical:
                _check(row)
                kind, columns = self._head(row.kind, row.columns_json)
                unchecked = row.canonical == UNCHECKED
                head = Head(row.table_name, kind, columns, self._key(row.table_name), unchecked=unchecked)
                return composer.add(head, row.row_count, row.rows_json)
            table, kind, columns, count, rows = contract.canonical(
                self._present.tables, self._database.dialect, row.table_name, row.kind, row.columns_json, row.rows_json
            )
            return composer.add(Head(table, kind, columns, self._key(table), loose=True), count, rows)
        except (NotApplicable, ValueError, msgspec.MsgspecError) as exc:  # the latter two of what no trigger writes
            unfit.append((row, outbox.printable(str(exc))))
            return []

    def _key(self, table_name: str) -> int:
        """How many columns its key has; 0 for a table that was taken from the list after the change."""
        table = self._present.tables.get(table_name)
        return 0 if table is None else len(table.key)

    def _head(self, kind: str, columns_json: str) -> tuple[Kind, tuple[str, ...]]:
        """What triggers write again and again, parsed once."""
        known = self._heads.get((kind, columns_json))
        if known is None:
            known = self._heads[kind, columns_json] = (Kind(kind), msgspec.json.decode(columns_json, type=tuple[str, ...]))
        return known

    def _open(self) -> tuple[Connection, Connection]:
        if self._connections is None:
            self._connections = (self._database.open(read_only=True), self._database.open())
        return self._connections


def _joined(page: Iterable[outbox.Row]) -> Iterator[outbox.Row]:
    """The rows of a page, neighbours of triggers that differ in nothing but what they say of their rows as one: where triggers
    run row by row, a bulk change is many thousands of them. Places that were kept for changes that did not come are left out."""
    for (_, _, _, canonical), group in groupby(page, key=outbox.head_of):
        rows = [row for row in group if row.row_count]
        if not canonical or len(rows) == 1:
            yield from rows
            continue
        for some in _bounded(rows):
            joined = some[0]._replace(
                rows_json=SEPARATOR.join([row.rows_json for row in some]), row_count=sum(row.row_count for row in some)
            )
            if _encodes(joined.rows_json) and outbox.holds(joined.rows_json, joined.row_count):
                yield joined
            else:
                yield from some  # one of them alone is to be rejected


def _bounded(rows: Iterable[outbox.Row]) -> Iterator[list[outbox.Row]]:
    """The rows in portions that are far below the size of a batch, or single."""
    some: list[outbox.Row] = []
    size = 0
    for row in rows:
        if some and size + len(row.rows_json) > _JOIN_BYTES:
            yield some
            some, size = [], 0
        some.append(row)
        size += len(row.rows_json)
    if some:
        yield some


def _encodes(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _check(row: outbox.Row) -> None:
    if not _encodes(row.rows_json) or not _encodes(row.table_name + row.columns_json):
        raise NotApplicable("a text value is not valid UTF-8 and cannot be synchronized; correct it in the table")
    if not outbox.holds(row.rows_json, row.row_count):
        raise NotApplicable(f"it does not hold the {row.row_count} rows that it announces; programs leave `canonical` at 0")
