"""Which changes that wait the primary's database may have overtaken silently, pure (TRAPS 2, 29).

Where deletes and key updates of a parent are handed on to its children without firing triggers (MariaDB), no later change tells that
the row of a waiting one is gone, or refers to another parent. It happens again here, but not to a row that is not here yet.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import orjson

from common.changes import Frame, Kind, values_of
from common.schema import Column, HandedOn, ListedTable
from consumer.overtaking import row_keys
from consumer.plan import Step
from consumer.spellings import folded

Key = tuple[str | None, ...]


def ancestors(table: str, listed: Mapping[str, ListedTable]) -> set[str]:
    """The tables whose deletes and key updates may reach this one silently, over however many others."""
    found: set[str] = set()
    ahead = [table]
    while ahead:
        here = listed.get(ahead.pop())
        for one in here.table.silent if here else ():
            if one.parent not in found:
                found.add(one.parent)
                ahead.append(one.parent)
    return found


@dataclass
class Lost:
    """The keys that rows of parents have lost, by deletes or by getting others."""

    listed: Mapping[str, ListedTable]
    _keys: dict[str, set[Key]] = field(default_factory=dict)

    def see(self, frames: Iterable[Frame], tables: Iterable[str]) -> None:
        """Take note of what these frames did to rows of these tables."""
        wanted = set(tables)
        for frame in frames:
            if frame.table in wanted and frame.kind in (Kind.DELETE, Kind.REKEY) and frame.table in self.listed:
                keys = row_keys(frame, self.listed[frame.table], old=frame.kind is Kind.REKEY)
                lost = self._keys.setdefault(frame.table, set())
                for key in keys:
                    with suppress(ValueError):  # a row that is none was refused
                        lost.add(tuple(values_of(f"[{key}]")))

    def concerns(self, step: Step) -> bool:
        """Whether the row of this single change may have been changed by what happened to them: a parent that it names lost that key,
        or nothing is known of it."""
        table = self.listed.get(step.table)
        if table is None or step.kind is Kind.TRUNCATE:
            return False
        near = {one.parent for one in table.table.silent}
        far = {name for parent in near for name in ancestors(parent, self.listed)}
        if far & self._keys.keys():
            return True
        return any(self._names(step, table, one) for one in table.table.silent if one.parent in self._keys)

    def _names(self, step: Step, table: ListedTable, one: HandedOn) -> bool:
        parent = self.listed.get(one.parent)
        there = dict(zip(one.parent_columns, one.columns, strict=True))
        if parent is None or there.keys() != {column.name for column in parent.key}:
            return True
        columns = [there[column.name] for column in parent.key]
        rows = list(_rows(step, table))
        known = [row for row in rows if set(columns) <= row.keys()]
        if not known:  # a delete, whose key says nothing of it, is right whatever became of the row
            return bool(rows) and step.kind is not Kind.DELETE
        return any(self._lost(tuple(row[name] for name in columns), parent) for row in known)

    def _lost(self, key: Key, parent: ListedTable) -> bool:
        keys = self._keys[parent.name]
        if None in key or key in keys:
            return None not in key
        if all(column.equality == "exact" for column in parent.key):
            return False
        return any(all(map(_perhaps_equal, key, other, parent.key)) for other in keys)


def _rows(step: Step, table: ListedTable) -> Iterator[dict[str, str | None]]:
    """The values of the row, and of its old key, by column; none where it cannot be read and so never applied."""
    try:
        values = orjson.loads(step.rows)
    except ValueError:
        return
    key = [column.name for column in table.key]
    names = [*key, *step.columns] if step.kind is Kind.REKEY else list(step.columns)
    if not isinstance(values, list) or len(values) != len(names):
        return
    if step.kind is Kind.REKEY:
        yield dict(zip(key, values[: len(key)], strict=True))
        values, names = values[len(key) :], names[len(key) :]
    yield dict(zip(names, values, strict=True))


def _perhaps_equal(left: str | None, right: str | None, column: Column) -> bool:
    if left == right or left is None or right is None:
        return left == right
    if column.equality == "folded" and folded(left) and folded(right):
        return folded(left) == folded(right)
    return column.equality != "exact"
