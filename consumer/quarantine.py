"""Changes that could not be applied here: kept with their reason, retried, given up when overtaken (TRAPS 29)."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import orjson
from sqlalchemy import ColumnElement, and_, bindparam, delete, func, or_, select, true, update
from sqlalchemy.engine import Connection

from common.bookkeeping import quarantine
from common.changes import Frame, Kind
from common.database import Database
from common.errors import NotApplicable
from common.nodestate import now_ms
from common.schema import ListedTable
from consumer.cascades import Lost, ancestors
from consumer.overtaking import Failed, Later, hands_on, joined, keys_in, only_set, row_keys
from consumer.plan import Step, single
from consumer.replay import Replayer, Unit
from consumer.spellings import Spellings, likeness, spelled_freely

Value = TypeVar("Value", int, str)

RETRIED_AT_ONCE = 500
_PARAMETERS = 500
_LOOSE = (Kind.REKEY.value, Kind.TRUNCATE.value)  # kinds of change that concern two rows, or all
_TRIED = (quarantine.c.kind != Kind.TRUNCATE.value, quarantine.c.held == 0)  # by itself
_HELD = (
    "; it is not tried again by itself, for rows that it may refer to were deleted or got another key since, and what the primary's "
    "database then did to this row it tells nobody: a full synchronization is needed"
)
_SPENT = (
    "; it is not tried again, for a row with its key was set since, and what the primary's database did to the children of the old "
    "one it tells nobody: a full synchronization is needed"
)
_ONLY_BY_ID, _NEVER = 1, 2  # values of `held`: when a change is tried again
_ONCE = (
    "; it is not tried again, for it would take rows that came after it: a full synchronization removes what is left, or delete it "
    "here by hand and then discard this"
)


@dataclass(frozen=True)
class Entry:
    """A quarantined change."""

    id: int
    epoch: int
    sequence: int
    step: Step
    key: str
    reason: str
    attempts: int
    first_ms: int
    last_ms: int
    held: int  # 0, or when it is tried again


def add(connection: Connection, replayer: Replayer, failed: Iterable[Failed]) -> None:
    """Store changes that failed, in the transaction that applied the others."""
    at = now_ms()
    rows = [
        {
            **_stored(one.step),
            "epoch": one.epoch,
            "sequence": one.sequence,
            "key_json": replayer.key(one.step),
            "likeness": _likeness(one.step, replayer.listed.get(one.step.table)),
            "reason": one.reason + (_ONCE if one.step.kind is Kind.TRUNCATE else _SPENT if one.spent else ""),
            "held": _NEVER if one.spent else 0,
            "attempts": 1,
            "first_ms": at,
            "last_ms": at,
        }
        for one in failed
    ]
    if rows:
        connection.execute(quarantine.insert(), rows)


def _stored(step: Step) -> dict[str, int | str]:
    """A single change as its columns hold it, but for its key."""
    return {
        "table_name": step.table,
        "kind": step.kind.value,
        "columns_json": orjson.dumps(step.columns).decode(),
        "key_columns": step.key,
        "row_json": step.rows,
        "unchecked": int(step.unchecked),
    }


def whole(units: Iterable[Unit], reason: str) -> list[Failed]:
    """Every change of these units as failed: the database refused them together, at the commit."""
    return [
        Failed(unit.epoch, unit.sequence, step, reason, (place,))
        for unit in units
        for place, step in enumerate(single(unit.frames()))
    ]


def entries(connection: Connection, ids: Sequence[int] = ()) -> list[Entry]:
    """The quarantined changes, or those with these ids, in the order in which they failed."""
    if not ids:
        return _found(connection)
    return [entry for some in _sliced(sorted(ids)) for entry in _found(connection, quarantine.c.id.in_(some))]


def _found(connection: Connection, *conditions: ColumnElement[bool]) -> list[Entry]:
    return [
        Entry(
            id=row.id,
            epoch=row.epoch,
            sequence=row.sequence,
            step=Step(
                row.table_name,
                Kind(row.kind),
                tuple(orjson.loads(row.columns_json)),
                1,
                row.row_json,
                row.key_columns,
                bool(row.unchecked),
            ),
            key=row.key_json,
            reason=row.reason,
            attempts=row.attempts,
            first_ms=row.first_ms,
            last_ms=row.last_ms,
            held=row.held,
        )
        for row in connection.execute(select(quarantine).where(*conditions).order_by(quarantine.c.id))
    ]


def _likeness(step: Step, table: ListedTable | None) -> int | None:
    """What the row of a single change has in common with others that may be the same; None where it has two keys or none."""
    if table is None or step.kind.value in _LOOSE:
        return None
    keys = row_keys(step, table)
    return likeness(keys[0], table) if keys else None


def _renew(connection: Connection, replayer: Replayer) -> None:
    """Have what waits known by the replayer's schema: another type or collation may take other keys for the same. In the caller's
    transaction, which may be rolled back: it is looked at until nothing is to be changed."""
    if replayer.knows_waiting:
        return
    q, listed = quarantine.c, replayer.listed
    found = connection.execute(
        select(q.id, q.table_name, q.key_json, q.likeness).where(q.kind.not_in(_LOOSE), q.key_json != "")
    )
    changed = []
    for id_, name, key, before in found.all():
        now = likeness(key, listed[name]) if name in listed else None
        if now != before:
            changed.append({"place": id_, "now": now})
    if changed:
        connection.execute(update(quarantine).where(q.id == bindparam("place")).values(likeness=bindparam("now")), changed)
    replayer.knows_waiting = not changed


def _know(connection: Connection, changes: Iterable[Frame | Step], later: Later, replayer: Replayer) -> None:
    """Have the rows of these changes, and of what waits, known by each other's keys."""
    _renew(connection, replayer)
    listed = {name: table for name, table in replayer.listed.items() if spelled_freely(table)}
    keys: dict[str, set[str]] = {}
    for change in changes if listed else ():
        if change.table in listed:
            keys.setdefault(change.table, set()).update(keys_in(change, listed))
    for name, some in keys.items():
        _compare(connection, listed[name], some, later.spellings)


def _compare(
    connection: Connection, table: ListedTable, keys: Collection[str], spellings: Spellings, *also: ColumnElement[bool]
) -> None:
    """Have rows with these keys, and those of what waits and of which `also` holds, known by each other's."""
    if not spelled_freely(table):
        return
    q = quarantine.c
    here = and_(q.table_name == table.name, q.held != _NEVER, *also)
    wanted = {likeness(key, table) for key in keys}
    near: list[ColumnElement[bool]] = [q.likeness.is_(None), *(q.likeness.in_(some) for some in _sliced(_known(wanted)))]
    if None in wanted:
        near = [true()]
    waiting: set[str] = set()
    for one in near:
        waiting.update(connection.execute(select(q.key_json).where(here, q.kind != Kind.REKEY.value, one)).scalars())
    for entry in _found(connection, here, q.kind == Kind.REKEY.value):  # each has two keys
        both = keys_in(entry.step, {table.name: table})
        waiting |= {key for key in both if None in wanted or likeness(key, table) in {None, *wanted}}
    few, many = sorted((set(keys), waiting - {""}), key=len)
    spellings.keep(table, sorted(few))
    spellings.names(table, sorted(many))


def _of_rows(connection: Connection, table: ListedTable, keys: Collection[str], *also: ColumnElement[bool]) -> list[Entry]:
    """Those of a table that may concern rows with these keys, and of which `also` holds; of keys in other spellings those only that
    are given too (Spellings.alike)."""
    q, here = quarantine.c, quarantine.c.table_name == table.name
    loose = or_(q.kind.in_(_LOOSE), q.key_json == "")
    if len(keys) > _PARAMETERS and connection.execute(select(func.count()).where(here)).scalar_one() <= len(keys):
        return _found(connection, here, *also)
    found = {entry.id: entry for entry in _found(connection, here, loose, *also)}
    for some in _sliced(_known({likeness(key, table) for key in keys})):
        found |= {entry.id: entry for entry in _found(connection, here, q.likeness.in_(some), *also)}
    for texts in _sliced(sorted(key for key in keys if likeness(key, table) is None)):
        found |= {entry.id: entry for entry in _found(connection, here, q.likeness.is_(None), q.key_json.in_(texts), *also)}
    return [found[place] for place in sorted(found)]


def _known(likenesses: Iterable[int | None]) -> list[int]:
    return sorted(one for one in likenesses if one is not None)


def retry(connection: Connection, replayer: Replayer, ids: Sequence[int]) -> int:
    """Try these again, in order, in the caller's transaction; the number that went. What fails keeps its newest reason.

    What goes settles older changes of its row, also those that were not tried (TRAPS 29). A truncation is never tried again: it
    would delete rows that came after it.
    """
    tried = [entry for entry in entries(connection, ids) if entry.step.kind is not Kind.TRUNCATE and entry.held != _NEVER]
    known = {entry.id: entry for entry in tried}
    _renew(connection, replayer)
    waiting = replayer.waiting(connection)
    for name in {entry.step.table for entry in tried}:
        table = replayer.listed.get(name)
        if table is None:
            continue
        keys = {key for entry in tried if entry.step.table == name for key in keys_in(entry.step, replayer.listed)}
        # These may be settled; a row may have many more that wait.
        older = (quarantine.c.id <= tried[-1].id, quarantine.c.held != _NEVER)
        _compare(connection, table, keys, waiting.spellings, *older)
        known |= {entry.id: entry for entry in _of_rows(connection, table, waiting.spellings.alike(name, keys), *older)}
    for entry in sorted(known.values(), key=lambda entry: entry.id):
        waiting.add(entry.id, entry.step, entry.reason)
    results = replayer.retry(connection, waiting, [entry.id for entry in tried])
    for place, (step, _) in waiting.steps.items():
        if step is not known[place].step:
            _store(connection, known[place], step, replayer.listed.get(step.table))
    _stay(connection, [(known[place], reason) for place, reason in results.items() if reason is not None])
    for place in waiting.spent:
        _spend(connection, known[place])
    discard(connection, [one for one in known if one not in waiting.steps])
    return sum(reason is None for reason in results.values())


def ends(connection: Connection, ids: Sequence[int]) -> list[int]:
    """Of the change sets that end among these ascending ids, and of which several changes may wait: the id of the last one."""
    columns = (quarantine.c.id, quarantine.c.epoch, quarantine.c.sequence)
    among = select(*columns).where(*_TRIED, quarantine.c.id.between(ids[0], ids[-1])).order_by(quarantine.c.id)
    beyond_ = select(*columns).where(*_TRIED, quarantine.c.id > ids[-1]).order_by(quarantine.c.id).limit(1)
    following = {tuple(row[1:]) for row in connection.execute(beyond_)}
    found = []
    wanted = set(ids)
    for number, (which, group) in enumerate(groupby(connection.execute(among), key=lambda row: tuple(row[1:]))):
        some = [row.id for row in group]
        may_be_several = len(some) > 1 or not number  # the first one may have begun before
        if which not in following and may_be_several and not wanted.isdisjoint(some):
            found.append(some[-1])
    return found


def together(connection: Connection, database: Database, replayer: Replayer, last: int) -> int:
    """Try all that waits of the change set that ends with this id again, in a transaction of its own, all or none; the number that
    went. Where there is more of it than fits memory it is read piece by piece."""
    try:
        with database.guard():
            went = _together(connection, replayer, last)
            connection.commit()
    except NotApplicable:  # at the commit
        connection.rollback()
        return 0
    return went


def _together(connection: Connection, replayer: Replayer, last: int) -> int:
    ids = _change_set(connection, last)
    if len(ids) < 2 or not replayer.retry_together(connection, (entry.step for entry in _each(connection, ids))):
        return 0
    later = Later(replayer.spellings(connection))
    _know(connection, (entry.step for entry in _each(connection, ids)), later, replayer)
    tables = set()
    for entry in _each(connection, ids):
        tables.add(entry.step.table)
        later.see(entry.step, replayer.listed.get(entry.step.table))
    _settle(connection, later, tables, replayer.listed, quarantine.c.id < ids[0])
    return discard(connection, ids)


def _change_set(connection: Connection, last: int) -> list[int]:
    """The ascending ids of what may be tried again of the change set to which this one belongs, up to it: they stand together. Empty
    where one between them is held: by its id a person may have it tried later, and then it would undo what came after it."""
    columns = (quarantine.c.id, quarantine.c.epoch, quarantine.c.sequence, quarantine.c.kind, quarantine.c.held)
    found: list[int] = []
    which: tuple[int, int] | None = None
    below, most = last + 1, 10
    while True:
        page = select(*columns).where(quarantine.c.id < below).order_by(quarantine.c.id.desc()).limit(most)
        rows = connection.execute(page).all()
        for row in rows:
            which = which or (row.epoch, row.sequence)
            if (row.epoch, row.sequence) != which:
                return found[::-1]
            if row.held:
                return []
            if row.kind != Kind.TRUNCATE.value:  # never tried again, and what it took is settled
                found.append(row.id)
            below = row.id
        if len(rows) < most:
            return found[::-1]
        most = _PARAMETERS


def _each(connection: Connection, ids: Sequence[int]) -> Iterator[Entry]:
    """The changes with these ascending ids, some in memory at a time."""
    for some in _sliced(ids):
        yield from _found(connection, quarantine.c.id.in_(some))


def refused(connection: Connection, id_: int, reason: str) -> None:
    """It was tried, and the database refused to commit it."""
    _stay(connection, [(entry, reason) for entry in entries(connection, [id_])])


def _stay(connection: Connection, tried: Iterable[tuple[Entry, str]]) -> None:
    """These failed once more, for these reasons."""
    rows = [{"place": entry.id, "why": reason + _HELD if entry.held else reason} for entry, reason in tried]
    if rows:
        newest = {"reason": bindparam("why"), "attempts": quarantine.c.attempts + 1, "last_ms": now_ms()}
        connection.execute(update(quarantine).where(quarantine.c.id == bindparam("place")).values(**newest), rows)


def retry_all(connection: Connection, database: Database, replayer: Replayer, ids: Sequence[int]) -> None:
    """Try these again, some at a time, each time committed, as long as any goes. Raises NotApplicable when a commit is refused."""
    left = sorted(ids)
    while left:
        done = 0
        for begin in range(0, len(left), RETRIED_AT_ONCE):
            with database.guard():
                done += retry(connection, replayer, left[begin : begin + RETRIED_AT_ONCE])
                connection.commit()
        if not done:
            done = sum(together(connection, database, replayer, last) for last in ends(connection, left))
        left = [entry.id for entry in entries(connection, left)] if done else []
        connection.rollback()


def beyond(connection: Connection, last: int, most: int) -> list[int]:
    """The ids of the next changes after this id that may be tried again, in the order in which they failed."""
    here = (*_TRIED, quarantine.c.id > last)
    return list(connection.execute(select(quarantine.c.id).where(*here).order_by(quarantine.c.id).limit(most)).scalars())


def request_retry(connection: Connection, ids: Sequence[int]) -> None:
    """Ask the running service to retry these."""
    for some in _sliced(ids):
        connection.execute(update(quarantine).where(quarantine.c.id.in_(some)).values(requested=quarantine.c.requested + 1))


def requested(connection: Connection) -> dict[int, int]:
    """What the service was asked to retry, in the order of the log, and how often each."""
    wanted = select(quarantine.c.id, quarantine.c.requested).where(quarantine.c.requested > 0).order_by(quarantine.c.id)
    return {int(id_): int(times) for id_, times in connection.execute(wanted)}


def answered(connection: Connection, asked: Mapping[int, int]) -> None:
    """They were tried as they had been asked to be; who asked meanwhile is answered by another try."""
    open_ = quarantine.c.requested - bindparam("times")
    statement = update(quarantine).where(quarantine.c.id == bindparam("place"), open_ >= 0).values(requested=open_)
    if asked:
        connection.execute(statement, [{"place": id_, "times": times} for id_, times in asked.items()])


def discard(connection: Connection, ids: Sequence[int]) -> int:
    """Give changes up; the number that stood there."""
    return sum(connection.execute(delete(quarantine).where(quarantine.c.id.in_(some))).rowcount for some in _sliced(ids))


def _sliced(values: Sequence[Value]) -> Iterator[Sequence[Value]]:
    """Few enough at a time for the databases' bounds on parameters."""
    for begin in range(0, len(values), _PARAMETERS):
        yield values[begin : begin + _PARAMETERS]


def overtaken(connection: Connection, units: Iterable[Unit], failed: Sequence[Failed], replayer: Replayer) -> list[Failed]:
    """Cut quarantined changes down to what these later units leave of them (see consumer.overtaking). Which of those that failed
    themselves are to be added: the others wait in the place of older ones now."""
    names = select(quarantine.c.table_name).where(quarantine.c.held != _NEVER).distinct()
    tables = set(connection.execute(names).scalars())
    waits = {(one.epoch, one.sequence, place): one for one in failed if not one.spent for place in one.places}
    later = Later(replayer.spellings(connection))
    _know(connection, (frame for unit in units for frame in unit.frames() if frame.table in tables), later, replayer)
    met: set[str] = set()
    for unit in units:
        place = 0
        for frame in unit.frames():
            if frame.table in tables:
                met.add(frame.table)
                keys = ((unit.epoch, unit.sequence, place + one) for one in range(frame.count)) if waits else ()
                found = {key[2] - place: waits[key] for key in keys if key in waits}
                later.see(frame, replayer.listed.get(frame.table), failed=found)
            place += frame.count
    elsewhere = {(one.epoch, one.sequence, one.places) for one in _settle(connection, later, met, replayer.listed)}
    return [one for one in failed if one.spent or (one.epoch, one.sequence, one.places) not in elsewhere]


def _settle(
    connection: Connection,
    later: Later,
    tables: Iterable[str],
    listed: Mapping[str, ListedTable],
    *also: ColumnElement[bool],
) -> list[Failed]:
    """Cut quarantined changes of which `also` holds down to what is left of them; those that failed and wait in their place."""
    also = (*also, quarantine.c.held != _NEVER)
    gone: list[int] = []
    taken: list[Failed] = []
    for name in tables:
        table = listed.get(name)
        seen: set[str] = set()  # rows of which a newer one waits
        if table is None or later.emptied(name):
            near = _found(connection, quarantine.c.table_name == name, *also)
        else:
            near = _of_rows(connection, table, later.spellings.alike(name, later.rows(name)), *also)
        if table is not None:  # all in one question
            later.spellings.names(table, [key for entry in near for key in keys_in(entry.step, listed)])
        for entry in reversed(near):
            left = later.left_of(entry.step, table)
            if hands_on(entry.step, listed) and later.anew(entry.step, table):
                _spend(connection, entry)
                left = only_set(left)
            following = later.following(entry.step, table)
            keys = later.concerned(entry.step, table)
            if following is not None and left is entry.step and seen.isdisjoint(keys):
                both = joined(entry.step, entry.reason, following.step, following.reason, table)
                if both is not None:
                    taken.append(following)
                    _store(connection, entry, both, table, attempts=entry.attempts + 1, last_ms=now_ms())
            seen |= keys
            if left is None:
                gone.append(entry.id)
            elif left is not entry.step:
                _store(connection, entry, left, table)
    discard(connection, gone)
    return taken


def _spend(connection: Connection, entry: Entry) -> None:
    """Keep a copy of it that is never tried again: it tells of what it would have to do."""
    values = {name: getattr(entry, name) for name in ("epoch", "sequence", "attempts", "first_ms", "last_ms")}
    reason = entry.reason.removesuffix(_HELD) + _SPENT
    connection.execute(
        quarantine.insert(), values | _stored(entry.step) | {"key_json": entry.key, "reason": reason, "held": _NEVER}
    )


def hold(connection: Connection, frames: Iterable[Frame], listed: Mapping[str, ListedTable]) -> None:
    """Keep from being tried again by themselves those whose rows the primary's database may have changed silently because of these
    frames (see consumer.cascades); they say so, and a full synchronization heals it."""
    tables = set(connection.execute(select(quarantine.c.table_name).distinct()).scalars())
    reach = {name: found for name in tables if (found := ancestors(name, listed))}
    if not reach:
        return
    lost = Lost(listed)
    lost.see(frames, set().union(*reach.values()))
    for name in reach:
        for entry in _found(connection, quarantine.c.table_name == name, quarantine.c.held == 0):
            if lost.concerns(entry.step):
                values = {"held": _ONLY_BY_ID, "reason": entry.reason + _HELD}
                connection.execute(update(quarantine).where(quarantine.c.id == entry.id).values(**values))


def _store(connection: Connection, entry: Entry, left: Step, table: ListedTable | None, **also: int) -> None:
    key = next(iter(row_keys(left, table) if table is not None else ()), entry.key)
    values: dict[str, int | str | None] = {
        **also,
        "kind": left.kind.value,
        "columns_json": orjson.dumps(left.columns).decode(),
        "key_json": key,
        "likeness": _likeness(left, table),
        "row_json": left.rows,
    }
    connection.execute(update(quarantine).where(quarantine.c.id == entry.id).values(**values))
