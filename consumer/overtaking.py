"""What is left of a change that waits when later changes touched its row, pure (TRAPS 29).

A later change carries the values of its row: applying an older one after it would bring back what is past. So an older change
that could not be applied yet is given up, or cut down to what no later one has set.
"""

from collections.abc import Mapping
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

    def see(self, frame: Frame | Step, table: ListedTable | None, *, failed: frozenset[str] = frozenset()) -> None:
        """Take note of changes of one table. Those of the keys in `failed` did not go: they wait too, and settle
        nothing, for whoever waits may be the row that they need, or a step of an exchange of unique values (TRAPS 27)."""
        if frame.kind is Kind.TRUNCATE:
            self._emptied.add(frame.table)
        if table is None or frame.kind is Kind.TRUNCATE:
            return
        old = row_keys(frame, table, old=True) if frame.kind is Kind.REKEY else []
        for key in old:
            self._rows[frame.table, key] = None
        for key in row_keys(frame, table):
            before = self._rows.get((frame.table, key), frozenset())
            if frame.kind is Kind.DELETE or before is None:
                self._rows[frame.table, key] = None
            elif key not in failed:
                self._rows[frame.table, key] = before | frozenset(frame.columns)

    def emptied(self, table: str) -> bool:
        """Whether all of its rows were deleted."""
        return table in self._emptied

    def keys(self, table: str) -> set[str]:
        """The keys of its rows that were touched."""
        return {key for name, key in self._rows if name == table}

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
            return self._rest(step, new[0], len(table.key))
        old = row_keys(step, table, old=True)[0]
        old_settled, new_settled = (step.table, old) in self._rows, (step.table, new[0]) in self._rows
        width = len(table.key)
        if old_settled:  # the old key was used anew: the new row must not be made of the one that now has it
            set_ = replace(step, kind=Kind.UPDATE, rows=without_old_key(step.rows, width))
            return self._rest(set_, new[0], width)
        if new_settled:  # the new row was set: the old one has to go all the same
            rest = self._rest(step, new[0], width)
            names = tuple(column.name for column in table.key)
            return rest or replace(step, kind=Kind.DELETE, columns=names, rows=f"[{old}]")
        return step

    def _rest(self, step: Step, key: str, width: int) -> Step | None:
        """Without the columns that were set."""
        if (step.table, key) not in self._rows:
            return step
        settled = self._rows[step.table, key]
        if settled is None or settled >= frozenset(step.columns) or step.kind is Kind.DELETE:
            return None
        before = width if step.kind is Kind.REKEY else 0  # values of the old key
        places = [i for i, name in enumerate(step.columns) if i < width or name not in settled]
        values = orjson.loads(step.rows)
        rows = orjson.dumps(values[:before] + [values[before + i] for i in places]).decode()
        return replace(step, columns=tuple(step.columns[i] for i in places), rows=rows)


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
    _by_key: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    _newest: dict[str, int] = field(default_factory=dict)

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
