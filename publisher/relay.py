"""The relay: drains the outbox into the journal, one change set at a time (DESIGN §5, TRAPS 1, 8)."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby

import msgspec
import structlog
from sqlalchemy.engine import Connection

from common import nodestate
from common.changes import MAX_NAME, SEPARATOR, Kind, Position, printable
from common.database import Database
from common.dialects.base import UNCHECKED
from common.dialects.script import Script
from common.errors import NotApplicable, Unavailable
from common.live_lists import Lists
from common.settings import RelaySettings
from common.wire import Writer
from publisher import contract, journal, outbox, taken
from publisher.composer import Batch, Composer, Head
from publisher.overlap import ahead, behind

_HOLD_BYTES = 16 << 20  # sealed batches kept in memory before they are written
_SWEEP_AFTER_S = 1.0  # without a change
_SWEEP_WITHIN_S = 10.0  # with changes all the time
_LONG, _LONG_CHARACTERS = 1_000, 2 << 20  # from so much on, threads of their own pay for reading and writing
_JOIN_BYTES = 64 << 10
_ID_BYTES = 20


@dataclass(frozen=True)
class Drained:
    """What one drain made of the outbox."""

    changes: int
    rows: int
    position: Position
    batches: tuple[Batch, ...]


@dataclass
class _Drain:
    """A drain under way: what composes it, how many rows it took, and which of them are no change that could be applied."""

    composer: Composer
    rows: int = 0
    unfit: list[tuple[outbox.Row, str]] = field(default_factory=list)
    recent: list[Batch] | None = field(default_factory=list)  # None: so many that they are read from the journal again

    def kept(self, batches: list[Batch]) -> list[Batch]:
        """These, remembered for who publishes them unless all together are too large."""
        if self.recent is not None:
            self.recent += batches
            if _bytes_in(self.recent) > _HOLD_BYTES:
                self.recent = None
        return batches


class Relay:
    """Owns the outbox's end and the sequence. One thread at a time uses it (`cut` waits for its turn); it has two connections, one
    reads and one writes.

    A drain is one consistent read of all committed outbox rows, in id order, as one change set. The rows that were read (and no
    others: a lower id may commit later) are deleted, or noted as taken, in the transaction that writes the batches and moves the
    position. Where few stand there and the database allows it, reading and deleting them is one statement of that transaction; where
    many do, pages are read and written while others are composed (publisher.overlap, publisher.taken).
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
        self._taken: taken.Runs = ()
        self._found = self._noted = time.monotonic()
        self._many = False  # the last drain brought many rows, and so, it seems, will the next
        self._heads: dict[tuple[str, str], tuple[Kind, tuple[str, ...]]] = {}
        self._turn = threading.Lock()
        self._doubt = False  # what became of a cut is not known; the position has to be read again

    def begin_at(self, position: Position) -> None:
        """Where the log stands in the database, read anew."""
        with self._turn:
            self.position = position

    @property
    def has_begun(self) -> bool:
        """Whether `cut` can be asked for."""
        return self._connections is not None

    def close(self) -> None:
        """Give the connections back."""
        with self._turn:
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
        with self._turn:
            if self._doubt:
                self._doubt = False
                raise Unavailable("a session's cut through the log failed; the position is read again")
            reader, writer = self._open()
            self._present = self._lists()
            with self._database.guard():
                drained = self._drain(reader, writer)
            if drained is not None:
                self._found = time.monotonic()
            return drained

    def cut(self, snapshot: Connection, at: Callable[[Drained | None, Position], None]) -> Position:
        """Begin a transaction on a read-only connection, and sequence exactly what it sees of the outbox: what the transaction sees
        of the tables is what the log has made of them up to the position that this returns (DESIGN §8). `at` is called with what was
        drained, and there, before anything else is. Raises Unavailable, also before the relay has begun."""
        with self._turn, self._database.guard():
            if self._connections is None:
                raise Unavailable("the relay has not begun yet")
            self._present = self._lists()
            standing = nodestate.read(snapshot)
            if standing is None or standing.position != self.position:
                raise Unavailable("the position in the database has moved; the relay reads it again")
            self._doubt = True
            drained = self._drain_all(
                self._connections[1], outbox.pages(snapshot, self._database.dialect, self._settings.page_rows, self._taken)
            )
            self._doubt = False
            if drained is not None:
                self._found = time.monotonic()
            at(drained, self.position)
            return self.position

    def sweep(self) -> None:
        """Remove some of the rows that long drains took, if it is time to. Raises Unavailable."""
        now = time.monotonic()
        if self._taken and (now - self._found > _SWEEP_AFTER_S or now - self._noted > _SWEEP_WITHIN_S):
            with self._turn, self._database.guard():
                _, writer = self._open()
                self._taken = taken.sweep(writer, self._database.dialect, self._taken)

    def _drain(self, reader: Connection, writer: Connection) -> Drained | None:
        dialect, limit = self._database.dialect, self._settings.page_rows
        take_sql = dialect.take_sql()
        if take_sql or not self._many:
            few = outbox.take(writer, take_sql, limit) if take_sql else outbox.peek(reader, dialect, limit, self._taken)
            if few:
                return self._drain_pages(writer, [outbox.page_of(few)], removed=take_sql is not None)
            writer.rollback()
            if few is not None:
                return None
        try:
            drained = self._drain_all(writer, outbox.pages(reader, dialect, limit, self._taken))
        finally:
            reader.rollback()
        self._many = drained is not None and drained.rows >= outbox.FEW
        return drained

    def _drain_all(self, writer: Connection, pages: Iterator[outbox.Page]) -> Drained | None:
        if self._database.dialect.one_writer:
            return self._drain_pages(writer, pages, removed=False)
        begun: deque[outbox.Page] = deque()
        rows = size = 0
        for page in pages:
            begun.append(page)
            rows, size = rows + len(page.ids), size + sum(len(row.rows_json) for row in page.rows)
            if rows >= _LONG or size >= _LONG_CHARACTERS:
                return self._drain_long(writer, begun, pages)
        return self._drain_pages(writer, begun, removed=False)

    def _drain_pages(self, writer: Connection, pages: Iterable[outbox.Page], *, removed: bool) -> Drained | None:
        """One change set of these rows; `removed`: they are so already."""
        drain = _Drain(Composer(self._writer, self.position, self._settings.batch_bytes))
        ids: list[int] = []
        held: list[Batch] = []
        for page in pages:
            ids += page.ids
            held += self._composed(drain, page)
            if _bytes_in(held) > _HOLD_BYTES:
                journal.append(self._database.dialect.script(writer, _HOLD_BYTES), self.position.epoch, held)
                held = []
        if not ids:
            return None
        held += self._last(drain)
        script = self._database.dialect.script(writer, _bytes_in(held) + len(ids) * _ID_BYTES)
        journal.append(script, self.position.epoch, held)
        if not removed:
            outbox.remove(script, self._database.dialect, ids)
        return self._moved(writer, script, drain)

    def _drain_long(self, writer: Connection, begun: deque[outbox.Page], pages: Iterator[outbox.Page]) -> Drained:
        """As _drain_pages, of pages read already and those that follow: while one is composed, the next is read and what was composed
        before is written, each on its own connection; no more than a few pages are in memory."""
        drain = _Drain(Composer(self._writer, self.position, self._settings.batch_bytes))
        script = self._database.dialect.script(writer, _LONG_CHARACTERS)
        taking = taken.Taking(script, self._database.dialect, self._taken)

        def file(batches: Sequence[Batch], ids: Sequence[int]) -> None:
            journal.append(script, self.position.epoch, batches)
            taking.take(ids)

        with behind() as run, ahead(pages) as following:
            for page in chain(_emptied(begun), following):
                run(partial(file, self._composed(drain, page), page.ids))
            run(partial(file, self._last(drain), ()))
        left = taking.note()
        drained = self._moved(writer, script, drain)
        if not self._taken:
            self._noted = time.monotonic()
        self._taken = left
        return drained

    def _composed(self, drain: "_Drain", page: outbox.Page) -> list[Batch]:
        batches: list[Batch] = []
        for row in _joined(page.rows):
            batches += self._compose(drain.composer, row, drain.unfit)
        drain.rows += len(page.ids)
        return drain.kept(batches)

    def _last(self, drain: "_Drain") -> list[Batch]:
        return drain.kept(list(drain.composer.finish()))

    def _moved(self, writer: Connection, script: Script, drain: "_Drain") -> Drained:
        """The end of the transaction: all is written but what is set aside, and the position."""
        outbox.reject(writer, drain.unfit)
        position, installed_ms = drain.composer.position, self._present.installed_ms
        nodestate.advance(script, self.position, position, installed_ms)
        try:
            script.commit()
        except NotApplicable:
            writer.rollback()
            nodestate.expect(writer, self.position, installed_ms)
            raise
        self.position = position
        for row, reason in drain.unfit:
            self._log.error("outbox_row_rejected", table=row.table_name, reason=reason)
        return Drained(drain.composer.changes, drain.rows, position, tuple(drain.recent or ()))

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
            unfit.append((row, printable(str(exc))))
            return []

    def _key(self, table_name: str) -> int:
        """How many columns its key has; 0 for a table that was taken from the list after the change."""
        table = self._present.tables.get(table_name)
        return 0 if table is None else len(table.key)

    def _head(self, kind: str, columns_json: str) -> tuple[Kind, tuple[str, ...]]:
        """What triggers write again and again, parsed once."""
        known = self._heads.get((kind, columns_json))
        if known is None:
            names = msgspec.json.decode(columns_json, type=tuple[str, ...])
            if "\0" in "".join(names):
                raise NotApplicable("a column's name holds a NUL")
            known = self._heads[kind, columns_json] = (Kind(kind), names)
        return known

    def _open(self) -> tuple[Connection, Connection]:
        if self._connections is None:
            self._connections = (self._database.open(read_only=True), self._database.open())
            if self._database.dialect.removes_late:
                with self._database.guard():
                    self._taken = taken.load(self._connections[1])
        return self._connections


def _joined(page: Iterable[outbox.Row]) -> Iterator[outbox.Row]:
    """The rows of a page, neighbours of triggers that differ in nothing but what they say of their rows as one: where triggers
    run row by row, a bulk change is many thousands of them. Places that were kept for changes that did not come are left out."""
    for (_, _, _, canonical), group in groupby(page, key=outbox.head_of):
        rows = [row for row in group if row.row_count or not canonical]
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


def _emptied(pages: deque[outbox.Page]) -> Iterator[outbox.Page]:
    while pages:
        yield pages.popleft()


def _bytes_in(batches: Iterable[Batch]) -> int:
    return sum(len(batch.message) for batch in batches)


def _encodes(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _check(row: outbox.Row) -> None:
    if "\0" in row.rows_json or "\0" in row.table_name or len(row.table_name) > MAX_NAME:
        raise NotApplicable("it is not what a trigger writes; programs leave `canonical` at 0")
    if not _encodes(row.rows_json) or not _encodes(row.table_name + row.columns_json):
        raise NotApplicable("a text value is not valid UTF-8 and cannot be synchronized; correct it in the table")
    if not outbox.holds(row.rows_json, row.row_count):
        raise NotApplicable(f"it does not hold the {row.row_count} rows that it announces; programs leave `canonical` at 0")
