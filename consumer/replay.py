"""Applies change sets to the database: fast as a whole, else in the original order, else change by change (DESIGN §7)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from common.changes import SEPARATOR, Frame, Kind, values_of, without_old_key
from common.dialects.base import Dialect, TableWriter, run
from common.dialects.script import Script
from common.errors import LeftBehind, NotApplicable
from common.schema import ListedTable, parents_first
from consumer import plan
from consumer.cascades import ancestors
from consumer.overtaking import Failed, Waiting, row_keys
from consumer.plan import Step
from consumer.spellings import Spellings, spelled_freely

_LEFT_BEHIND = "rows of table {child} that stay on the primary would be changed here by their foreign key to {table}"
_LOOKS = 100  # for keys that cannot be read
FAST_BYTES = 16 << 20  # above it a unit is streamed in the original order, so that memory stays bounded


@dataclass(frozen=True)
class Unit:
    """A whole change set: its place in the log, the size of its stream, and its frames, readable more than once."""

    epoch: int
    sequence: int
    size: int
    frames: Callable[[], Iterator[Frame]]


class References(Enum):
    """How foreign keys are treated in a transaction, where it can be known only here how the writer had them (TRAPS 2).

    Each is for what the one before it raised LeftBehind for. `WATCHED`: a change took other rows along. `LOOKED_AT`: among them would
    be rows that the writer left as they were, for what he and his cascades changed was captured before. `OFF`: nothing cascades.
    """

    WATCHED = 1
    LOOKED_AT = 2
    OFF = 3


class Replayer:
    """Applies units within the caller's transaction; what fails by its own fault comes back, the rest is applied.

    Raises Unavailable when the database is away (nothing is then to be committed), MessageRefused for frames that are none.
    """

    def __init__(self, dialect: Dialect, listed: Mapping[str, ListedTable], statement_bytes: int) -> None:
        self._dialect = dialect
        self._errors: tuple[type[BaseException], ...] = (*dialect.errors, DBAPIError)
        self._listed = listed
        self._order = parents_first(listed.values())
        self._statement_bytes = statement_bytes
        self._writers: dict[tuple[str, tuple[str, ...]], TableWriter] = {}
        self._related = {name for one in listed.values() for name in one.table.parents} | {
            name for name, one in listed.items() if one.table.parents
        }
        self._references = References.WATCHED
        self.knows_waiting = False  # what waits was found to be known by this schema (consumer.quarantine)

    def at_once(self, connection: Connection, units: Sequence[Unit]) -> Script | None:
        """Run the fast plan of these units, or the changes of a large one as they come, without a savepoint, with which a
        large transaction may cost twice as much; None, and nothing done, where there is no such plan.

        For a transaction in a marked session that its caller ends with the script, and rolls back, to go the careful way (`apply`),
        when this or that raises NotApplicable.
        """
        if len(units) == 1 and units[0].size > FAST_BYTES:
            return self._streamed(connection, units[0])
        steps = self._fast_steps(units)
        if steps is None or any(step.unchecked for step in steps):
            return None
        self._begin(connection, References.WATCHED)
        unordered = any(step.table in self._listed[step.table].table.parents for step in steps)
        self._dialect.enter_at_once(connection, unordered=unordered)
        script = self._dialect.script(connection, sum(len(step.rows) for step in steps))
        for step in steps:
            self._run_plainly(script, step)
        self._dialect.leave_replay(connection)
        return script

    def _streamed(self, connection: Connection, unit: Unit) -> Script:
        self._begin(connection, References.WATCHED)
        self._dialect.enter_at_once(connection, unordered=True)
        script = self._dialect.script(connection, unit.size)
        for step in plan.ordered(unit.frames(), self._listed):
            self._run(script.direct, connection, step, gently=False)
        self._dialect.leave_replay(connection)
        return script

    def _run_plainly(self, script: Script, step: Step) -> None:
        table = self._listed[step.table]
        writer = self._writer(table, step.columns)
        write = {Kind.INSERT: writer.insert, Kind.UPDATE: writer.update, Kind.DELETE: writer.delete}[step.kind]
        script.promise(None if step.kind is Kind.DELETE else step.count)
        with self._alone_in(script.connection, step, table) as written:
            written.append(write(script, step.rows))
        if step.kind is not Kind.DELETE:
            _expect(step, written[0])

    def apply(
        self,
        connection: Connection,
        units: Sequence[Unit],
        *,
        deferred: bool = True,
        references: References = References.WATCHED,
    ) -> list[Failed]:
        """Apply units in order: together if that goes, else one after the other.

        `deferred`: constraints that can be left to the end of the transaction are; where that end cannot be looked at before
        the commit (SQLite), the commit may then refuse it all, and only without it each change is judged by itself.

        Raises LeftBehind, for the caller to roll back and come again with the next of `references`.
        """
        self._begin(connection, references)
        self._dialect.enter_replay(connection, deferred=deferred)
        failed: list[Failed] = []
        if len(units) == 1 or not self._together(connection, units):
            for unit in units:
                failed += self._alone(connection, unit)
        self._dialect.leave_replay(connection)
        return failed

    def _begin(self, connection: Connection, references: References) -> None:
        self._references = references
        self._dialect.references(connection, enforced=references is not References.OFF)

    @property
    def listed(self) -> Mapping[str, ListedTable]:
        """This node's tables, by name."""
        return self._listed

    def waiting(self, connection: Connection) -> Waiting:
        """An empty set of single changes that wait, over this node's tables."""
        return Waiting(self._listed, self.spellings(connection))

    def spellings(self, connection: Connection) -> Spellings:
        """Knows again rows of this node's tables, in the caller's transaction."""
        return Spellings(partial(self._alike, connection))

    def _alike(self, connection: Connection, table: ListedTable, keys: Sequence[str]) -> Sequence[int | None]:
        """See TableWriter.alike. Of what the database cannot read nothing else becomes unknown, unless there is much of it."""
        numbers = self._numbered(connection, table, keys)
        if numbers is not None:
            return numbers
        sound: list[str] = []
        ahead = [keys[: len(keys) // 2], keys[len(keys) // 2 :]]
        tried = 0
        while ahead and tried < _LOOKS:
            tried += 1
            some = ahead.pop()
            if self._numbered(connection, table, some) is not None:
                sound += some
            elif len(some) > 1:
                ahead += [some[: len(some) // 2], some[len(some) // 2 :]]
        found = dict(zip(sound, self._numbered(connection, table, sound) or (), strict=False))
        return [found.get(key) for key in keys]

    def _numbered(self, connection: Connection, table: ListedTable, keys: Sequence[str]) -> Sequence[int | None] | None:
        try:
            with self._savepoint(connection), closing(connection.connection.cursor()) as cursor:
                return self._writer(table, ()).alike(cursor, keys)
        except NotApplicable:
            return None

    def retry(self, connection: Connection, waiting: Waiting, places: Iterable[int]) -> dict[int, str | None]:
        """Try those of the waiting changes that have these places again, in order, each by itself: by place None where it went, else
        the reason. What goes is taken from `waiting`, and so is what it settles of older ones."""
        self._references = References.LOOKED_AT
        self._dialect.enter_replay(connection, deferred=False)
        results: dict[int, str | None] = {}
        for place in places:
            if place not in waiting.steps:
                continue
            step = waiting.steps[place][0]
            try:
                results[place] = self._try(connection, step, settle=True)
            except LeftBehind as exc:
                results[place] = str(exc)
            if results[place] is None:
                waiting.done(place, step)
        self._dialect.leave_replay(connection)
        return results

    def retry_together(self, connection: Connection, steps: Iterable[Step]) -> bool:
        """Try waiting changes of one change set again, all or none: none may be able to go before the others (a deferrable constraint,
        TRAPS 27)."""
        self._references = References.LOOKED_AT
        self._dialect.enter_replay(connection, deferred=True)
        try:
            went = self._whole(connection, steps, gently=True)
        except LeftBehind:
            went = False
        self._dialect.leave_replay(connection)
        return went

    def _together(self, connection: Connection, units: Sequence[Unit]) -> bool:
        steps = self._fast_steps(units)
        return steps is not None and self._whole(connection, steps)

    def _fast_steps(self, units: Sequence[Unit]) -> list[Step] | None:
        if sum(unit.size for unit in units) > FAST_BYTES:
            return None
        frames = [frame for unit in units for frame in unit.frames()]
        if len({frame.unchecked for frame in frames if frame.table in self._related}) > 1:
            return None
        return plan.fast(frames, self._listed, self._order, self._statement_bytes)

    def _alone(self, connection: Connection, unit: Unit) -> list[Failed]:
        if self._together(connection, [unit]):
            return []
        if self._whole(connection, plan.ordered(unit.frames(), self._listed)):
            return []
        if self._whole(connection, plan.ordered(unit.frames(), self._listed), gently=True):
            return []
        return self._one_by_one(connection, unit)

    def _whole(self, connection: Connection, steps: Iterable[Step], *, gently: bool = False) -> bool:
        """All of it or nothing; `gently`: an insert of a row that is there already sets it."""
        try:
            with self._savepoint(connection):
                cursor = connection.connection.cursor()
                for step in steps:
                    self._run(cursor, connection, step, gently=gently)
                cursor.close()
                self._dialect.settle(connection)
        except LeftBehind:
            raise
        except NotApplicable:
            return False
        return True

    def _one_by_one(self, connection: Connection, unit: Unit) -> list[Failed]:
        """In the original order, with a failure told for each change; what failed is tried again as long as anything succeeds.

        What the schema defers is looked at once at the end; if it does not hold then, all is done again with a look after each.
        """
        with connection.begin_nested() as attempt:
            failed = self._each(connection, unit, settle=False)
            if self._settled(connection):
                return failed
            attempt.rollback()
        return self._each(connection, unit, settle=True)

    def _each(self, connection: Connection, unit: Unit, *, settle: bool) -> list[Failed]:
        waiting = self.waiting(connection)
        place = 0
        parents: set[str] = set()  # some of their rows are gone, and so may be rows that wait (see consumer.cascades)
        for step in plan.ordered(unit.frames(), self._listed):
            if step.kind in (Kind.DELETE, Kind.REKEY):
                parents.add(step.table)
            self._piecewise(connection, place, step, waiting, settle=settle)
            place += step.count
        progress = True
        while waiting.steps and progress:
            progress = False
            for place, step in waiting.due():
                if waiting.steps.get(place, (None, ""))[0] is not step:
                    continue  # settled or cut down by one that went just now
                if parents & ancestors(step.table, self._listed):
                    continue
                reason = self._try(connection, step, settle=settle)
                if reason is None:
                    waiting.done(place, step)
                    progress = True
                else:
                    waiting.steps[place] = (step, reason)
        return [
            Failed(
                unit.epoch, unit.sequence, step, reason, (place, *waiting.merged.get(place, ())), spent=some is waiting.spent
            )
            for some in (waiting.spent, waiting.steps)
            for place, (step, reason) in sorted(some.items())
        ]

    def _piecewise(self, connection: Connection, place: int, step: Step, waiting: Waiting, *, settle: bool) -> None:
        """A step whose first change has this place: what is refused is halved, down to the single changes at fault."""
        pieces = [(place, step)]
        while pieces:
            first, piece = pieces.pop()
            reason = self._try(connection, piece, settle=settle)
            if reason is None:
                waiting.done(first, piece)
            elif piece.count == 1:
                waiting.failed(first, piece, reason)
            else:
                left, right = plan.halves(piece)
                pieces += [(first + left.count, right), (first, left)]

    def _settled(self, connection: Connection) -> bool:
        try:
            with self._savepoint(connection):
                self._dialect.settle(connection)
        except NotApplicable:
            return False
        return True

    def _try(self, connection: Connection, step: Step, *, settle: bool) -> str | None:
        try:
            with self._savepoint(connection):
                cursor = connection.connection.cursor()
                self._run(cursor, connection, step, gently=True)
                cursor.close()
                if settle:
                    self._dialect.settle(connection)
        except LeftBehind:
            raise
        except NotApplicable as exc:
            return str(exc)
        return None

    @contextmanager
    def _savepoint(self, connection: Connection) -> Iterator[None]:
        """A savepoint; a driver's exception inside rolls back to it and comes out as ours."""
        nested = connection.begin_nested()
        try:
            yield
        except self._errors as exc:
            error = self._dialect.translate(getattr(exc, "orig", None) or exc)
            if isinstance(error, NotApplicable):
                nested.rollback()
            raise error from exc
        except NotApplicable:
            nested.rollback()
            raise
        nested.commit()

    def _run(self, cursor: Any, connection: Connection, step: Step, *, gently: bool) -> None:
        table = self._listed.get(step.table)
        if table is None:
            raise NotApplicable(f"table {step.table} is not listed in this node's sync_tables.conf")
        blindly = step.unchecked and step.table in self._related
        with self._dialect.unchecked(connection) if blindly else nullcontext():
            if step.kind is Kind.TRUNCATE:
                run(connection, self._dialect.truncate(table))
                return
            _check_key(step, table)
            writer = self._writer(table, step.columns)
            with self._alone_in(connection, step, table) as written:
                written.append(_write(cursor, writer, table, step, gently=gently))

    @contextmanager
    def _alone_in(self, connection: Connection, step: Step, table: ListedTable) -> Iterator[list[int]]:
        """Raises LeftBehind when what happens inside changes more rows than it appends to the list, or would change rows that the
        writer left as they were."""
        written: list[int] = []
        cascades = [one for one in table.table.cascades if (one.on_delete if step.kind is Kind.DELETE else one.on_update)]
        if not cascades or step.kind is Kind.INSERT or self._references is References.OFF:
            yield written
            return
        if self._references is References.LOOKED_AT:
            for one in cascades:
                child = self._listed.get(one.child)
                places = {name: step.columns.index(name) for name in one.parent_columns if name in _set_by(step, table)}
                if child is None or (step.kind is Kind.UPDATE and not places):
                    continue  # what it does not set cannot be handed on
                if self._dialect.left_behind(connection, table, step.rows, one, child, places):
                    raise LeftBehind(_LEFT_BEHIND.format(child=child.name, table=table.name))
            yield written
            return
        before = self._dialect.changed_rows(connection)
        yield written
        if self._dialect.changed_rows(connection) - before != sum(written):
            raise LeftBehind(f"a change of table {table.name} takes other rows along")

    def key(self, step: Step) -> str:
        """The key of a single change's row as JSON text; after a `rekey`, the new one. Empty when it has none."""
        table = self._listed.get(step.table)
        if table is None or step.kind is Kind.TRUNCATE:
            return ""
        return next(iter(row_keys(step, table)), "")

    def _writer(self, table: ListedTable, columns: tuple[str, ...]) -> TableWriter:
        known = self._writers.get((table.name, columns))
        if known is None:
            names = columns if columns else tuple(c.name for c in table.key)
            known = self._writers[table.name, columns] = self._dialect.writer(table, names)
        return known


def _set_by(step: Step, table: ListedTable) -> frozenset[str]:
    """The columns that an update sets, but for the key, by which it finds its row."""
    keys = {column.name for column in table.key}
    return frozenset(step.columns) - keys if step.kind is Kind.UPDATE else frozenset()


def _write(cursor: Any, writer: TableWriter, table: ListedTable, step: Step, *, gently: bool) -> int:
    """The number of rows written."""
    if step.kind is Kind.DELETE:
        return writer.delete(cursor, step.rows)
    if step.kind is Kind.REKEY:
        return _rekey(cursor, writer, table, step)
    if step.kind is Kind.INSERT and not gently:
        _expect(step, written := writer.insert(cursor, step.rows))
        return written
    written = writer.update(cursor, step.rows)
    if written and step.kind is Kind.INSERT and spelled_freely(table):  # as a row that is gone on the primary had spelled it
        writer.respell(cursor, step.rows)
    if written < step.count:
        _expect(step, written := written + writer.insert_missing(cursor, step.rows))
    return written


def _rekey(cursor: Any, writer: TableWriter, table: ListedTable, step: Step) -> int:
    written = 0
    for text in step.rows.split(SEPARATOR):
        found = writer.rekey(cursor, text)
        if not found:
            row = without_old_key(text, len(table.key))
            found = writer.update(cursor, row)
            if not found:
                found = writer.insert_missing(cursor, row)
            elif spelled_freely(table):
                written += writer.respell(cursor, row)
            _expect(replace(step, count=1, rows=row), found)
        written += found
    return written


def _check_key(step: Step, table: ListedTable) -> None:
    names = [column.name for column in table.key]
    if not plan.same_key(step, table) or (step.kind is Kind.REKEY and not _fits(step, len(step.columns) + len(names))):
        raise NotApplicable(
            f"the primary key of table {step.table} is ({', '.join(names)}) on this node, and another one on the primary: the schemas "
            "differ"
        )


def _fits(step: Step, width: int) -> bool:
    try:
        return all(len(values_of(row)) == width for row in step.rows.split(SEPARATOR))
    except ValueError:
        return False


def _expect(step: Step, found: int) -> None:
    if found != step.count:
        raise NotApplicable(
            f"{step.count - found} of {step.count} rows of table {step.table} were not taken: outside the row filter of this node, "
            "longer or larger than its columns hold, or a local row outside of the filter has the same key"
        )
