"""What is left of a change that waits when later changes touched its row, pure (TRAPS 29).

A later change carries the values of its row: applying an older one after it would bring back what is past. So an older change
that could not be applied yet is given up, or cut down to what no later one has set.

A later one that could not be applied either waits too, and the older one with it: whoever waits may be a step of an exchange of
unique values, or have the row that another one needs (TRAPS 27). Only where the next change of the row fails as the one before it did
and leaves it all values that a unique or a foreign key looks at, both wait as one, in the place of the older: so the quarantine does
not grow by each change of a row that is refused again and again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

import orjson

from common.changes import SEPARATOR, Frame, Kind, keys_of, values_of, without_old_key
from common.errors import MessageRefused
from common.schema import ListedTable
from consumer.plan import Step, same_key
from consumer.spellings import Spellings, spelled_freely

_SPELLING: Final = ""  # among the columns that were set: how the key is spelled


@dataclass(frozen=True)
class Failed:
    """A change that could not be applied, why, and where it stands in the log: `places` in its unit, the first one its own, the others
    of those after it that wait in its place."""

    epoch: int
    sequence: int
    step: Step
    reason: str
    places: tuple[int, ...]
    spent: bool = False  # never to be tried again (see Waiting)


@dataclass
class Later:
    """What later changes did, by table and row (see Spellings): the columns they set; None when the row was deleted or given another
    key."""

    spellings: Spellings
    _rows: dict[tuple[str, str], frozenset[str] | None] = field(default_factory=dict)
    _emptied: set[str] = field(default_factory=set)
    _anew: set[tuple[str, str]] = field(default_factory=set)  # rows that were set before they went, if they did
    _next: dict[tuple[str, str], Failed | None] = field(default_factory=dict)  # the first one of each row; None if it went

    def see(
        self, frame: Frame | Step, table: ListedTable | None, *, failed: Mapping[int, Failed] = MappingProxyType({})
    ) -> None:
        """Take note of changes of one table. Those at the places `failed` of the frame did not go."""
        if frame.kind is Kind.TRUNCATE:
            self._emptied.add(frame.table)
        if table is None or frame.kind is Kind.TRUNCATE:
            return
        new = self.spellings.names(table, row_keys(frame, table))
        old = self.spellings.names(table, row_keys(frame, table, old=True)) if frame.kind is Kind.REKEY else new
        spelled = {_SPELLING} if frame.kind in (Kind.INSERT, Kind.REKEY) else set[str]()
        for place, key in enumerate(new):
            left = [one for one in old[place : place + 1] if one != key]
            for one in (key, *left):
                self._next.setdefault((frame.table, one), failed.get(place))
            if place in failed:
                continue
            for one in left:
                self._set(frame.table, one)
                self._rows[frame.table, one] = None
            before = self._rows.get((frame.table, key), frozenset())
            gone = frame.kind is Kind.DELETE
            if not gone:
                self._set(frame.table, key)
            self._rows[frame.table, key] = None if before is None or gone else before | spelled.union(frame.columns)

    def _set(self, table: str, row: str) -> None:
        """The row is there, whatever becomes of it later."""
        if self._rows.get((table, row), frozenset()) is not None:
            self._anew.add((table, row))

    def emptied(self, table: str) -> bool:
        """Whether all of its rows were deleted."""
        return table in self._emptied

    def rows(self, table: str) -> set[str]:
        """Those of its rows that were touched."""
        return {key for name, key in self._next if name == table}

    def concerned(self, step: Step, table: ListedTable | None) -> set[str]:
        """The rows that a step concerns."""
        return set() if table is None else set(self.spellings.names(table, [*keys_in(step, {table.name: table})]))

    def anew(self, step: Step, table: ListedTable | None) -> bool:
        """Whether a row that a single change deletes, or one that it gives another key or makes of it, was set."""
        return step.table not in self._emptied and any(
            (step.table, row) in self._anew for row in self.concerned(step, table)
        )

    def following(self, step: Step, table: ListedTable | None) -> Failed | None:
        """The next change of a single change's row, where that failed."""
        names = [] if table is None or step.kind is Kind.TRUNCATE else self.spellings.names(table, row_keys(step, table))
        return self._next.get((step.table, names[0])) if names else None

    def left_of(self, step: Step, table: ListedTable | None) -> Step | None:
        """The single change without what is settled; None when nothing is left to do."""
        if step.table in self._emptied:
            return None
        if table is None or step.kind is Kind.TRUNCATE:
            return step
        keys = [*row_keys(step, table), *(row_keys(step, table, old=True) if step.kind is Kind.REKEY else ())]
        if len(keys) < (2 if step.kind is Kind.REKEY else 1):
            return step
        new, *old = self.spellings.names(table, keys)
        return self._left_of_move(step, old[0], new, table) if old else self._rest(step, new, table)

    def _left_of_move(self, step: Step, old: str, new: str, table: ListedTable) -> Step | None:
        set_ = replace(step, kind=Kind.UPDATE, rows=without_old_key(step.rows, len(table.key)))
        if old == new:  # to the database the same key, spelled otherwise
            return self._rest(set_ if self._spelled(step.table, new) else step, new, table, keeps_key=True)
        old_settled, new_settled = (step.table, old) in self._rows, (step.table, new) in self._rows
        if old_settled:  # the old key was used anew: the new row must not be made of the one that now has it
            return self._rest(set_, new, table)
        if new_settled:  # the new row was set: the old one has to go all the same
            rest = self._rest(step, new, table)
            names = tuple(column.name for column in table.key)
            return rest or replace(step, kind=Kind.DELETE, columns=names, rows=f"[{row_keys(step, table, old=True)[0]}]")
        return step

    def _spelled(self, table: str, row: str) -> bool:
        """Whether its key was spelled anew."""
        return _SPELLING in (self._rows.get((table, row)) or ())

    def _rest(self, step: Step, row: str, table: ListedTable, *, keeps_key: bool = False) -> Step | None:
        """Without the columns that were set; `keeps_key`: of a key update the key is still due."""
        if (step.table, row) not in self._rows:
            return step
        settled, width = self._rows[step.table, row], len(table.key)
        if settled is None or step.kind is Kind.DELETE:
            return None
        moves = step.kind is Kind.REKEY
        if settled >= frozenset(step.columns) and not (moves and keeps_key):
            return None
        before = width if moves else 0  # values of the old key
        places = [i for i, name in enumerate(step.columns) if i < width or name not in settled]
        try:
            values = values_of(step.rows)
        except ValueError:
            return step  # which never goes
        if len(values) != before + len(step.columns):
            return step
        kind = Kind.UPDATE if step.kind is Kind.INSERT and _SPELLING in settled else step.kind
        rows = orjson.dumps(values[:before] + [values[before + i] for i in places]).decode()
        return replace(step, kind=kind, columns=tuple(step.columns[i] for i in places), rows=rows)


def joined(step: Step, reason: str, following: Step, why: str, table: ListedTable | None) -> Step | None:
    """A single change that failed and the next one of its row, which failed too, as one in the place of the first; None where each has
    to wait for itself."""
    setting = (Kind.INSERT, Kind.UPDATE)
    if table is None or reason != why or step.kind not in setting or following.kind not in setting:
        return None
    if (step.key, step.unchecked) != (following.key, following.unchecked):
        return None
    try:
        now, then = (dict(zip(one.columns, values_of(one.rows), strict=True)) for one in (step, following))
    except ValueError:
        return None
    # With other columns one reason may have two causes, such as a column that is missing for one of them only.
    if then.keys() != now.keys():
        return None
    if any(then[name] != now[name] for name in table.table.guarded & then.keys()):
        return None
    return replace(following, kind=step.kind)


def row_keys(frame: Frame | Step, table: ListedTable, *, old: bool = False) -> list[str]:
    """The keys of the rows as JSON text; of `rekey` the new ones, unless `old`. Empty where a row has no readable key: such a
    frame fails as a whole and overtakes nothing."""
    width = len(table.key)
    rows, kind = frame.rows, frame.kind
    if not same_key(frame, table):
        return []
    try:
        if kind is Kind.REKEY and not old:
            rows = SEPARATOR.join(without_old_key(row, width) for row in rows.split(SEPARATOR))
        found = keys_of(Frame(frame.table, kind, frame.columns, frame.count, rows), width)
    except (MessageRefused, ValueError):
        return []
    return [key if isinstance(key, str) else ",".join(key) for key in found]


@dataclass
class Waiting:
    """The single changes of a unit that could not be applied so far, by their place in it."""

    listed: Mapping[str, ListedTable]
    spellings: Spellings
    steps: dict[int, tuple[Step, str]] = field(default_factory=dict)
    spent: dict[int, tuple[Step, str]] = field(default_factory=dict)  # not to be tried again (see `hands_on`)
    merged: dict[int, list[int]] = field(default_factory=dict)  # by place: those after it whose changes wait there too
    _by_row: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    _fresh: dict[str, list[str]] = field(default_factory=dict)  # keys, by table, that stand in `_by_row` as they are spelled
    _newest: dict[str, int] = field(default_factory=dict)

    def failed(self, place: int, step: Step, reason: str) -> None:
        """This one failed, as the newest of all: it may wait in the place of the one of its row before it."""
        table = self.listed.get(step.table)
        if step.kind is Kind.TRUNCATE:  # whatever waits of the table is of rows that are no more
            for one in [one for one, (waiting, _) in self.steps.items() if waiting.table == step.table]:
                del self.steps[one]
                self.merged.setdefault(place, []).extend((one, *self.merged.pop(one, ())))
        keys = keys_in(step, self.listed)
        before = [one for key in keys for one in self._by_row.get((step.table, key), ()) if one in self.steps]
        if before:
            waiting, why = self.steps[last := max(before)]
            both = joined(waiting, why, step, reason, table)
            if both is not None:
                self.steps[last] = (both, why)
                self.merged.setdefault(last, []).append(place)
                return
        self.add(place, step, reason)

    def add(self, place: int, step: Step, reason: str) -> None:
        """This one failed."""
        self.steps[place] = (step, reason)
        table = self.listed.get(step.table)
        keys = keys_in(step, self.listed)
        for key in keys:
            self._by_row.setdefault((step.table, key), set()).add(place)
        if table is not None and spelled_freely(table):
            self._fresh.setdefault(step.table, []).extend(keys)

    def done(self, place: int, step: Step) -> None:
        """This one went: whatever it settles of earlier ones is taken from them."""
        self.steps.pop(place, None)
        self._newest[step.table] = max(place, self._newest.get(step.table, 0))
        if not self.steps:
            return
        table = self.listed.get(step.table)
        if step.kind is Kind.TRUNCATE:
            met = [one for one, (waiting, _) in self.steps.items() if waiting.table == step.table]
        else:
            met = sorted(self._met(step, table))
        later = Later(self.spellings)
        later.see(step, table)
        for one in met:
            if one < place and one in self.steps:
                waiting, reason = self.steps.pop(one)
                left = later.left_of(waiting, table)
                if hands_on(waiting, self.listed) and later.anew(waiting, table):
                    self.spent[one] = (waiting, reason)
                    left = only_set(left)
                if left is not None:
                    self.steps[one] = (left, reason)

    def _met(self, step: Step, table: ListedTable | None) -> set[int]:
        """Which concern a row that this one concerns."""
        if table is None:
            return set()
        if fresh := self._fresh.pop(step.table, None):
            self.spellings.keep(table, fresh)
            for key, name in zip(fresh, self.spellings.names(table, fresh), strict=True):
                if key != name:
                    self._by_row.setdefault((step.table, name), set()).update(self._by_row.pop((step.table, key), ()))
        names = self.spellings.names(table, list(keys_in(step, self.listed)))
        return {one for name in names for one in self._by_row.get((step.table, name), ())}

    def due(self) -> list[tuple[int, Step]]:
        """What may be tried again, in order; not a truncation that would delete rows that came after it."""
        return [
            (place, step)
            for place, (step, _) in sorted(self.steps.items())
            if step.kind is not Kind.TRUNCATE or place > self._newest.get(step.table, -1)
        ]


def hands_on(step: Step, listed: Mapping[str, ListedTable]) -> bool:
    """Whether the database does something to the children of a row that this deletes, or gives another key, and tells nobody
    (TRAPS 2). If such a change waits, and the row is set meanwhile, nobody knows any more which children were the old one's."""
    if step.kind not in (Kind.DELETE, Kind.REKEY):
        return False
    found = (one for child in listed.values() for one in child.table.silent if one.parent == step.table)
    return any(one.on_delete if step.kind is Kind.DELETE else one.on_update for one in found)


def only_set(step: Step | None) -> Step | None:
    """What is left, unless it would delete a row or give it another key."""
    return step if step is not None and step.kind is Kind.UPDATE else None


def keys_in(step: Frame | Step, listed: Mapping[str, ListedTable]) -> set[str]:
    """The keys of the rows that changes of one table concern: of `rekey` the old ones and the new ones."""
    table = listed.get(step.table)
    if table is None or step.kind is Kind.TRUNCATE:
        return set()
    old = row_keys(step, table, old=True) if step.kind is Kind.REKEY else []
    return {*row_keys(step, table), *old}
