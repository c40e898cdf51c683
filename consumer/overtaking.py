"""What is left of a change that waits when later changes touched its row, pure (TRAPS 29).

A later change carries the values of its row: applying an older one after it would bring back what is past. So an older change
that could not be applied yet is given up, or cut down to what no later one has set.

A later one that could not be applied either waits too, and the older one with it: whoever waits may be a step of an exchange of
unique values, or have the row that another one needs (TRAPS 27). Only where the next change of the row leaves it all values that a
unique or a foreign key looks at, or deletes it, the one before it is no such step, and the quarantine does not grow by it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import orjson

from common.changes import SEPARATOR, Frame, Kind, keys_of, without_old_key
from common.errors import MessageRefused
from common.schema import ListedTable
from consumer.plan import Step, same_key


@dataclass
class Later:
    """What later changes did, by table and key: the columns they set; None when the row was deleted or given another key."""

    _rows: dict[tuple[str, str], frozenset[str] | None] = field(default_factory=dict)
    _emptied: set[str] = field(default_factory=set)
    _next: dict[tuple[str, str], Step | None] = field(default_factory=dict)  # the first one of each row; None if it went

    def see(self, frame: Frame | Step, table: ListedTable | None, *, failed: Collection[int] = ()) -> None:
        """Take note of changes of one table. Those at the places `failed` of the frame did not go."""
        if frame.kind is Kind.TRUNCATE:
            self._emptied.add(frame.table)
        if table is None or frame.kind is Kind.TRUNCATE:
            return
        old = row_keys(frame, table, old=True) if frame.kind is Kind.REKEY else []
        texts = frame.rows.split(SEPARATOR) if failed else []
        for place, key in enumerate(row_keys(frame, table)):
            if place in failed:
                step = None if old else Step(frame.table, frame.kind, frame.columns, 1, texts[place], frame.key)
                for one in (key, *old[place : place + 1]):
                    self._next.setdefault((frame.table, one), step)
                continue
            for one in old[place : place + 1]:
                self._next.setdefault((frame.table, one), None)
                self._rows[frame.table, one] = None
            self._next.setdefault((frame.table, key), None)
            before = self._rows.get((frame.table, key), frozenset())
            gone = frame.kind is Kind.DELETE
            self._rows[frame.table, key] = None if before is None or gone else before | frozenset(frame.columns)

    def emptied(self, table: str) -> bool:
        """Whether all of its rows were deleted."""
        return table in self._emptied

    def keys(self, table: str) -> set[str]:
        """The keys of its rows that were touched."""
        return {key for name, key in self._next if name == table}

    def left_of(self, step: Step, table: ListedTable | None, *, newest: bool = False) -> Step | None:
        """The single change without what is settled; None when nothing is left to do. `newest`: none that waits is between it and
        these."""
        left = self._settled(step, table)
        if left is step and newest and table is not None and step.kind in (Kind.INSERT, Kind.UPDATE, Kind.DELETE):
            following = [self._next.get((step.table, key)) for key in row_keys(step, table)[:1]]
            if any(one is not None and _takes_its_place(one, step, table) for one in following):
                return None
        return left

    def _settled(self, step: Step, table: ListedTable | None) -> Step | None:
        """By those that went."""
        if step.table in self._emptied:
            return None
        if table is None or step.kind is Kind.TRUNCATE:
            return step
        new = row_keys(step, table)[:1]
        if not new:
            return step
        if step.kind is not Kind.REKEY:
            return self._rest(step, new[0], table)
        old = row_keys(step, table, old=True)[0]
        old_settled, new_settled = (step.table, old) in self._rows, (step.table, new[0]) in self._rows
        width = len(table.key)
        if old_settled:  # the old key was used anew: the new row must not be made of the one that now has it
            set_ = replace(step, kind=Kind.UPDATE, rows=without_old_key(step.rows, width))
            return self._rest(set_, new[0], table)
        if new_settled:  # the new row was set: the old one has to go all the same
            rest = self._rest(step, new[0], table)
            names = tuple(column.name for column in table.key)
            return rest or replace(step, kind=Kind.DELETE, columns=names, rows=f"[{old}]")
        return step

    def _rest(self, step: Step, key: str, table: ListedTable) -> Step | None:
        """Without the columns that were set."""
        if (step.table, key) not in self._rows:
            return step
        settled, width = self._rows[step.table, key], len(table.key)
        if settled is None or settled >= frozenset(step.columns) or step.kind is Kind.DELETE:
            return None
        before = width if step.kind is Kind.REKEY else 0  # values of the old key
        places = [i for i, name in enumerate(step.columns) if i < width or name not in settled]
        values = orjson.loads(step.rows)
        rows = orjson.dumps(values[:before] + [values[before + i] for i in places]).decode()
        return replace(step, columns=tuple(step.columns[i] for i in places), rows=rows)


def _takes_its_place(following: Step, step: Step, table: ListedTable) -> bool:
    """Whether the next change of its row, which waits too, makes a step needless."""
    if Kind.DELETE in (following.kind, step.kind):
        return following.kind is Kind.DELETE
    now, then = (dict(zip(one.columns, orjson.loads(one.rows), strict=False)) for one in (step, following))
    return then.keys() >= now.keys() and all(then[name] == now[name] for name in now.keys() & table.table.guarded)


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
    steps: dict[int, tuple[Step, str]] = field(default_factory=dict)
    merged: dict[int, list[int]] = field(default_factory=dict)  # places whose changes wait in another's
    _by_key: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    _newest: dict[str, int] = field(default_factory=dict)

    def failed(self, place: int, step: Step, reason: str) -> None:
        """This one failed, as the newest of all; the one of its row before it may be needless now."""
        table = self.listed.get(step.table)
        later = Later()
        later.see(step, table, failed=(0,))
        before = [
            one for key in keys_in(step, self.listed) for one in self._by_key.get((step.table, key), ()) if one in self.steps
        ]
        if before and later.left_of(self.steps[last := max(before)][0], table, newest=True) is None:
            del self.steps[last]
            self.merged[place] = [last, *self.merged.pop(last, [])]
        self.add(place, step, reason)

    def add(self, place: int, step: Step, reason: str) -> None:
        """This one failed."""
        self.steps[place] = (step, reason)
        for key in keys_in(step, self.listed):
            self._by_key.setdefault((step.table, key), set()).add(place)

    def done(self, place: int, step: Step) -> None:
        """This one went: whatever it settles of earlier ones is taken from them."""
        self.steps.pop(place, None)
        self._newest[step.table] = max(place, self._newest.get(step.table, 0))
        if not self.steps:
            return
        later = Later()
        later.see(step, self.listed.get(step.table))
        if step.kind is Kind.TRUNCATE:
            met = [one for one, (waiting, _) in self.steps.items() if waiting.table == step.table]
        else:
            met = [one for key in keys_in(step, self.listed) for one in self._by_key.get((step.table, key), ())]
        for one in met:
            if one < place and one in self.steps:
                waiting, reason = self.steps.pop(one)
                left = later.left_of(waiting, self.listed.get(step.table))
                if left is not None:
                    self.steps[one] = (left, reason)

    def due(self) -> list[tuple[int, Step]]:
        """What may be tried again, in order; not a truncation that would delete rows that came after it."""
        return [
            (place, step)
            for place, (step, _) in sorted(self.steps.items())
            if step.kind is not Kind.TRUNCATE or place > self._newest.get(step.table, -1)
        ]


def keys_in(step: Step, listed: Mapping[str, ListedTable]) -> set[str]:
    """The keys of the rows that a step concerns: of `rekey` the old ones and the new ones."""
    table = listed.get(step.table)
    if table is None or step.kind is Kind.TRUNCATE:
        return set()
    old = row_keys(step, table, old=True) if step.kind is Kind.REKEY else []
    return {*row_keys(step, table), *old}
