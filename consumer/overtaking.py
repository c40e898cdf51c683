"""What is left of a change that waits when later changes touched its row, pure (TRAPS 29).

A later change carries the values of its row: applying an older one after it would bring back what is past. So an older change
that could not be applied yet is given up, or cut down to what no later one has set.

A later one that could not be applied either waits too, and the older one with it: whoever waits may be a step of an exchange of
unique values, or have the row that another one needs (TRAPS 27). Only where the next change of the row fails as the one before it did
and leaves it all values that a unique or a foreign key looks at, both wait as one, in the place of the older: so the quarantine does
not grow by each change of a row that is refused again and again.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final

import orjson

from common.changes import SEPARATOR, Frame, Kind, keys_of, values_of, without_old_key
from common.errors import MessageRefused
from common.schema import Column, ListedTable
from consumer.plan import Step, same_key

_NUMBER: Final = re.compile(r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]{1,4})?")
_TEXTUAL: Final = re.compile("char|text", re.IGNORECASE)


@dataclass(frozen=True)
class Failed:
    """A change that could not be applied, why, and where it stands in the log: `places` in its unit, the first one its own, the others
    of those after it that wait in its place."""

    epoch: int
    sequence: int
    step: Step
    reason: str
    places: tuple[int, ...]


@dataclass
class Later:
    """What later changes did, by table and key: the columns they set; None when the row was deleted or given another key."""

    _rows: dict[tuple[str, str], frozenset[str] | None] = field(default_factory=dict)
    _emptied: set[str] = field(default_factory=set)
    _next: dict[tuple[str, str], Failed | None] = field(default_factory=dict)  # the first one of each row; None if it went

    def see(
        self, frame: Frame | Step, table: ListedTable | None, *, failed: Mapping[int, Failed] = MappingProxyType({})
    ) -> None:
        """Take note of changes of one table. Those at the places `failed` of the frame did not go."""
        if frame.kind is Kind.TRUNCATE:
            self._emptied.add(frame.table)
        if table is None or frame.kind is Kind.TRUNCATE:
            return
        old = row_keys(frame, table, old=True) if frame.kind is Kind.REKEY else []
        for place, key in enumerate(row_keys(frame, table)):
            for one in (key, *old[place : place + 1]):
                self._next.setdefault((frame.table, one), failed.get(place))
            if place in failed:
                continue
            for one in old[place : place + 1]:
                self._rows[frame.table, one] = None
            before = self._rows.get((frame.table, key), frozenset())
            gone = frame.kind is Kind.DELETE
            self._rows[frame.table, key] = None if before is None or gone else before | frozenset(frame.columns)

    def emptied(self, table: str) -> bool:
        """Whether all of its rows were deleted."""
        return table in self._emptied

    def keys(self, table: str) -> set[str]:
        """The keys of its rows that were touched."""
        return {key for name, key in self._next if name == table}

    def following(self, step: Step, table: ListedTable | None) -> Failed | None:
        """The next change of a single change's row, where that failed."""
        keys = [] if table is None or step.kind is Kind.TRUNCATE else row_keys(step, table)
        return self._next.get((step.table, keys[0])) if keys else None

    def follow(self, step: Step, table: ListedTable | None) -> None:
        """A key update that waits, and only spells the key otherwise: what happened to the row by its new spelling did so by its
        old one, under which older changes wait."""
        if table is None or step.kind is not Kind.REKEY or not respells(step, table):
            return
        (new,), (old,) = row_keys(step, table), row_keys(step, table, old=True)
        if (step.table, new) in self._rows:
            self._rows.setdefault((step.table, old), self._rows[step.table, new])
        if (step.table, new) in self._next:
            self._next.setdefault((step.table, old), self._next[step.table, new])

    def left_of(self, step: Step, table: ListedTable | None) -> Step | None:
        """The single change without what is settled; None when nothing is left to do."""
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
        if new_settled and respells(step, table):  # by either key the database finds the one row that there is
            return self._rest(step, new[0], table) or self._respelled(step, old, new[0], table)
        if old_settled:  # the old key was used anew: the new row must not be made of the one that now has it
            set_ = replace(step, kind=Kind.UPDATE, rows=without_old_key(step.rows, width))
            return self._rest(set_, new[0], table)
        if new_settled:  # the new row was set: the old one has to go all the same
            rest = self._rest(step, new[0], table)
            names = tuple(column.name for column in table.key)
            return rest or replace(step, kind=Kind.DELETE, columns=names, rows=f"[{old}]")
        return step

    def _respelled(self, step: Step, old: str, new: str, table: ListedTable) -> Step | None:
        """Of a key update that only spells the key otherwise, that alone."""
        if self._rows[step.table, new] is None:
            return None
        return replace(step, columns=step.columns[: len(table.key)], rows=f"[{old},{new}]")

    def _rest(self, step: Step, key: str, table: ListedTable) -> Step | None:
        """Without the columns that were set."""
        if (step.table, key) not in self._rows:
            return step
        settled, width = self._rows[step.table, key], len(table.key)
        if settled is None or settled >= frozenset(step.columns) or step.kind is Kind.DELETE:
            return None
        before = width if step.kind is Kind.REKEY else 0  # values of the old key
        places = [i for i, name in enumerate(step.columns) if i < width or name not in settled]
        try:
            values = values_of(step.rows)
        except ValueError:
            return step  # which never goes
        if len(values) != before + len(step.columns):
            return step
        rows = orjson.dumps(values[:before] + [values[before + i] for i in places]).decode()
        return replace(step, columns=tuple(step.columns[i] for i in places), rows=rows)


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


def respells(step: Step, table: ListedTable) -> bool:
    """Whether a single key update only writes the key in another way, which to the database is the same key."""
    new, old = row_keys(step, table), row_keys(step, table, old=True)
    if not new or not old:
        return False
    try:
        pairs = list(zip(values_of(f"[{old[0]}]"), values_of(f"[{new[0]}]"), table.key, strict=True))
    except ValueError:
        return False
    return all(_same(left, right, column) for left, right, column in pairs)


def _same(left: Any, right: Any, column: Column) -> bool:
    """As far as it can be told without the database, whose collations know more."""
    if left == right or column.equality == "exact" or not isinstance(left, str) or not isinstance(right, str):
        return bool(left == right)
    return _folded(left, column) == _folded(right, column)


def _folded(value: str, column: Column) -> str | Decimal:
    if column.equality == "unknown" and _NUMBER.fullmatch(value) and not _TEXTUAL.search(column.type):
        return Decimal(value)
    if column.type.endswith("_bin"):  # a collation that only pads
        return value.rstrip(" ")
    plain = unicodedata.normalize("NFKD", value.casefold())
    return "".join(one for one in plain if not unicodedata.combining(one)).rstrip(" ")


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
    merged: dict[int, list[int]] = field(default_factory=dict)  # by place: those after it whose changes wait there too
    _by_key: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    _newest: dict[str, int] = field(default_factory=dict)

    def failed(self, place: int, step: Step, reason: str) -> None:
        """This one failed, as the newest of all: it may wait in the place of the one of its row before it."""
        table = self.listed.get(step.table)
        if step.kind is Kind.TRUNCATE:  # whatever waits of the table is of rows that are no more
            for one in [one for one, (waiting, _) in self.steps.items() if waiting.table == step.table]:
                del self.steps[one]
                self.merged.setdefault(place, []).extend((one, *self.merged.pop(one, ())))
        keys = keys_in(step, self.listed)
        before = [one for key in keys for one in self._by_key.get((step.table, key), ()) if one in self.steps]
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
            met = sorted(self._met(later, step))
        for one in met:
            if one < place and one in self.steps:
                waiting, reason = self.steps.pop(one)
                left = later.left_of(waiting, self.listed.get(step.table))
                if left is not None:
                    self.steps[one] = (left, reason)

    def _met(self, later: Later, step: Step) -> set[int]:
        """Which concern a row that this one concerns, by one spelling of its key or another."""
        table = self.listed.get(step.table)
        keys, met = keys_in(step, self.listed), set[int]()
        ahead = list(keys)
        while ahead:
            for one in self._by_key.get((step.table, ahead.pop()), set()) - met:
                met.add(one)
                if table is None or one not in self.steps or self.steps[one][0].kind is not Kind.REKEY:
                    continue
                if respells(waiting := self.steps[one][0], table):
                    later.follow(waiting, table)
                    ahead += keys_in(waiting, self.listed) - keys
                    keys |= keys_in(waiting, self.listed)
        return met

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
