"""Which keys are of one row, however they are spelled: the database says, for only it knows its collations (TRAPS 29, 30)."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

from common.changes import values_of
from common.schema import Column, ListedTable

Ask = Callable[[ListedTable, Sequence[str]], Sequence[int | None]]
Group = tuple[str, ...] | None  # what keys that are equal have in common; None where that is not known

_BYTES, _OVERHEAD = 384 << 10, 16  # of half a question, and of each key besides its text
_PLAIN: Final = re.compile(r"[ -~]*")  # printable ASCII
_NUMERIC: Final = re.compile(r"numeric|decimal|double|float8")
_NUMBER: Final = re.compile(r"[-+]?[0-9]{1,300}(?:\.[0-9]{1,300})?(?:[eE][-+]?[0-9]{1,3})?")


@dataclass
class Spellings:
    """The keys of rows of which changes wait, or of those that they are compared with, to know them again; each is a JSON text, as
    row_keys gives them.

    `ask` has the database number keys of a table: the same number for those that are equal to it, None for what it cannot read.
    """

    ask: Ask
    _names: dict[str, dict[str, str]] = field(default_factory=dict)  # by table and key: what its row is known by
    _kept: dict[str, dict[Group, list[str]]] = field(default_factory=dict)  # those names, by what they may be equal to
    _apart: dict[str, set[str]] = field(default_factory=dict)  # keys that are equal to none of them

    def keep(self, table: ListedTable, keys: Iterable[str]) -> None:
        """From now on the rows with these keys are known."""
        if not spelled_freely(table):
            return
        names = self._names.setdefault(table.name, {})
        new = [key for key in dict.fromkeys(keys) if key not in names]
        self._compare(table, new, among=True)
        for key in new:
            if names.setdefault(key, key) == key:
                self._kept.setdefault(table.name, {}).setdefault(_group(key, table), []).append(key)
        if new:
            self._apart.pop(table.name, None)

    def names(self, table: ListedTable, keys: Sequence[str]) -> list[str]:
        """What each of these rows is known by: one of its keys that were kept, else the one given."""
        if table.name not in self._kept:
            return list(keys)
        names, apart = self._names[table.name], self._apart.setdefault(table.name, set())
        new = [key for key in dict.fromkeys(keys) if key not in names and key not in apart]
        self._compare(table, new, among=False)
        apart.update([key for key in new if key not in names])
        return [names.get(key, key) for key in keys]

    def alike(self, table: str, keys: Collection[str]) -> set[str]:
        """These keys and all that are known to be of the same rows."""
        names = self._names.get(table, {})
        wanted = {names.get(key, key) for key in keys}
        return wanted.union(keys, [key for key, name in names.items() if name in wanted])

    def _compare(self, table: ListedTable, new: Sequence[str], *, among: bool) -> None:
        """Find names for those that are equal to a kept one, or `among` each other."""
        kept = self._kept.get(table.name, {})
        groups: dict[Group, list[str]] = {}
        for key in new:
            groups.setdefault(_group(key, table), []).append(key)
        wild = None in groups
        doubtful = [
            key
            for group, some in groups.items()
            if (kept if group is None else kept.keys() & {None, group})
            or (among and len(new if group is None or wild else some) > 1)
            for key in some
        ]
        if not doubtful:
            return
        near = kept.keys() if wild else kept.keys() & {None, *groups}
        known = [key for group in near for key in kept[group]]
        for some in _sliced(doubtful):
            for part in [*_sliced(known)] or [[]]:
                self._ask(table, part, some, among=among)
            if among:
                known += [key for key in some if key not in self._names[table.name]]

    def _ask(self, table: ListedTable, known: Sequence[str], new: Sequence[str], *, among: bool) -> None:
        names = self._names[table.name]
        numbers = self.ask(table, [*known, *new])
        found = {number: key for number, key in zip(numbers, known, strict=False) if number is not None}
        firsts: dict[int, str] = {}
        for number, key in zip(numbers[len(known) :], new, strict=True):
            if number is None:
                continue
            if number in found:
                names[key] = found[number]
            elif among and firsts.setdefault(number, key) != key:
                names.setdefault(key, firsts[number])


def spelled_freely(table: ListedTable) -> bool:
    """Whether the database may take two spellings of a key for the same."""
    return any(column.equality != "exact" for column in table.key)


def likeness(key: str, table: ListedTable) -> int | None:
    """Equal for all spellings of a key, and for few others: 64 bits with a sign. None where the key may be equal to any."""
    group = _group(key, table)
    return None if group is None else int.from_bytes(blake2b(repr(group).encode(), digest_size=8).digest(), signed=True)


def _group(key: str, table: ListedTable) -> Group:
    try:
        found = [_part(value, column) for value, column in zip(values_of(f"[{key}]"), table.key, strict=True)]
    except ValueError:
        return None
    return None if None in found else tuple(filter(None, found))


def _part(value: object, column: Column) -> str | None:
    """See schema.Equality."""
    if column.equality == "exact" or value is None:
        return f"={value}"
    if isinstance(value, dict):  # of SQLite: what JSON has no form for
        ((tag, text),) = value.items()
        return f"={float(text) + 0.0}" if tag == "r" else f"x{str(text).lower()}"
    if isinstance(value, int):
        return f"={float(value) + 0.0}" if abs(value) < 1 << 64 else None
    if not isinstance(value, str):
        return None
    if column.equality == "folded":
        return folded(value)
    if _NUMERIC.search(column.type) and _NUMBER.fullmatch(value):
        return f"={float(value) + 0.0}"  # no -0
    return None


def folded(value: str) -> str | None:
    """What texts have in common that are equal to a collation of which that is known (schema.Equality); else None."""
    return f"={value.lower().rstrip(' ')}" if _PLAIN.fullmatch(value) else None


def _sliced(keys: Sequence[str]) -> Iterator[list[str]]:
    """Few enough at a time for two such slices in one statement, whatever a server has it hold."""
    some: list[str] = []
    size = 0
    for key in keys:
        here = len(key.encode(errors="replace")) + _OVERHEAD
        if some and size + here > _BYTES:
            yield some
            some, size = [], 0
        some.append(key)
        size += here
    if some:
        yield some
