"""What becomes of rows that are this node's own when the row that they refer to goes, or gets another value there (TRAPS 32).

Rows of tables that are not listed, and rows outside of a row filter, are nobody else's: where an installation has foreign keys
switched off, their own foreign keys say what is to be done, and it is done here. Listed rows inside the filter are as the primary
has them, references to rows that are missing included. References that were broken before are left alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from common.errors import NotApplicable
from common.schema import ForeignKey, Listed
from consumer.scratch import Difference, Scratch, anything, key_of


@dataclass(frozen=True)
class Places:
    """Where rows stand when orphans are looked after, as SQL: of a foreign key's own table (`children`), and of
    the one that it refers to: where they are, or are to be, in the end (`after`), and those among them that were there (`renewed`)."""

    children: Callable[[ForeignKey], str | None]
    after: Callable[[ForeignKey], Sequence[str]]
    renewed: Callable[[ForeignKey], str | None]


@dataclass(frozen=True)
class _Lost:
    """A temporary table with what a parent's rows had where a foreign key refers to them: r0, r1 …, and their key: k0, k1 …"""

    key: ForeignKey
    name: str
    parent_key: tuple[str, ...]


class Orphans:
    """Remembers what is about to be lost, and afterwards does what each foreign key says. `keys`: all there are."""

    def __init__(self, scratch: Scratch, keys: Iterable[ForeignKey], listed: Listed) -> None:
        self._scratch = scratch
        self._keys = list(keys)
        self._listed = listed
        self._lost: list[_Lost] = []

    def remember(self, one: Difference, staged: Mapping[str, str]) -> None:
        """Before anything of this table is written. Tables that are staged already come by what they hold (see `stage`)."""
        for key in self._keys:
            if key.parent != one.table.name or not self._has_local(key):
                continue
            lost = self._new(key, tuple(key_of(one.table)))
            if "gone" in staged:
                self._save(lost, one, staged["gone"])
            if "put" in staged and self._changes(key, one):
                self._save(lost, one, staged["put"])
            self._lost.append(lost)

    def needed(self, one: Difference) -> tuple[bool, bool]:
        """Whether the table's keys that go, and its rows that change, have to be staged for `remember`."""
        mine = [key for key in self._keys if key.parent == one.table.name and self._has_local(key)]
        changed = any(self._changes(key, one) for key in mine)
        return bool(mine) and anything(one.deletes), changed and anything(one.updates)

    def settle(self, places: Places) -> None:
        """Do what the foreign keys say. Raises NotApplicable where a parent must not go."""
        for lost in self._lost:
            for after in places.after(lost.key):
                met = self._scratch.match("p", self._sql(lost), lost.key.parent_columns, _numbered("r", lost.key.columns))
                self._scratch.run(self._scratch.dialect.joined(self._sql(lost), {}, [f"{after} p"], met))
        ahead = list(self._lost)
        while ahead:
            lost = ahead.pop()
            if self._scratch.exists(self._sql(lost)) and (children := places.children(lost.key)) is not None:
                ahead += self._orphaned(lost, children, places)

    def _has_local(self, key: ForeignKey) -> bool:
        child = None if key.schema else self._listed.get(key.child)
        return child is None or child.where is not None

    def _changes(self, key: ForeignKey, one: Difference) -> bool:
        """Whether an update may change what the foreign key refers to."""
        own = set(key_of(one.table))
        set_here = set(self._scratch.written(one)) - own
        return not set_here.isdisjoint(key.parent_columns)

    def _sql(self, lost: _Lost) -> str:
        return self._scratch.quote(lost.name)

    def _new(self, key: ForeignKey, parent_key: tuple[str, ...]) -> _Lost:
        columns = dict(zip(_numbered("r", key.columns), key.parent_columns, strict=True))
        columns |= dict(zip(_numbered("k", parent_key), parent_key, strict=True))
        name = self._scratch.make("lost", self._scratch.quote(key.parent), columns, _numbered("r", key.columns))
        return _Lost(key, name, parent_key)

    def _save(self, lost: _Lost, one: Difference, staged: str) -> None:
        columns = [*lost.key.parent_columns, *lost.parent_key]
        rows = self._scratch.inside(one.table, list(dict.fromkeys(columns)))
        met = self._scratch.match("p", "x", lost.parent_key)
        self._scratch.run(
            f"INSERT INTO {self._sql(lost)} SELECT {self._scratch.names(columns, 'p')}"
            f" FROM {rows} p JOIN {self._scratch.quote(staged)} x ON {met}"
        )

    def _orphaned(self, lost: _Lost, children: str, places: Places) -> list[_Lost]:
        """See to one foreign key's rows; what is lost by those that go comes back."""
        key, scratch = lost.key, self._scratch
        moved = self._split(lost, places)
        if moved is not None and (found := self._found(key, moved, children)) is not None:
            if key.on_update == "cascade":
                fresh = zip(key.columns, _numbered("n", key.columns), strict=True)
                sets = {column: f"{scratch.quote(moved)}.{scratch.quote(name)}" for column, name in fresh}
                scratch.run(scratch.dialect.joined(children, sets, *found))
            elif key.on_update == "null":
                scratch.run(scratch.dialect.joined(children, dict.fromkeys(key.columns, "NULL"), *found))
            else:
                raise _held(key, key.on_update, deleted=False)
        found = self._found(key, lost.name, children)
        if found is None:
            return []
        if key.on_delete == "cascade":
            more = self._handed_on(key, children, *found, places)
            scratch.run(scratch.dialect.joined(children, {}, *found))
            return more
        if key.on_delete != "null":
            raise _held(key, key.on_delete, deleted=True)
        scratch.run(scratch.dialect.joined(children, dict.fromkeys(key.cleared, "NULL"), *found))
        return []

    def _split(self, lost: _Lost, places: Places) -> str | None:
        """Take from what was lost what rows had that are still there: a temporary table with that (r0, r1 …), and with what they have
        now (n0, n1 …)."""
        renewed = places.renewed(lost.key) if lost.parent_key else None
        if renewed is None:
            return None
        key, scratch = lost.key, self._scratch
        columns = {f"{letter}{place}": name for letter in "rn" for place, name in enumerate(key.parent_columns)}
        moved = scratch.make("moved", scratch.quote(key.parent), columns, _numbered("r", key.columns))
        met = scratch.match("p", self._sql(lost), lost.parent_key, _numbered("k", lost.parent_key))
        before = scratch.names(_numbered("r", key.columns), self._sql(lost))
        now = scratch.names(key.parent_columns, "p")
        scratch.run(
            f"INSERT INTO {scratch.quote(moved)} SELECT {before}, {now} FROM {renewed} p, {self._sql(lost)} WHERE {met}"
        )
        scratch.run(scratch.dialect.joined(self._sql(lost), {}, [f"{renewed} p"], met))
        return moved

    def _found(self, key: ForeignKey, values: str, children: str) -> tuple[list[str], str] | None:
        """The sources and the condition by which local rows of the child are found that refer to these values; None where there are
        none."""
        sources, condition = self._hit(key, self._scratch.quote(values), children)
        return (sources, condition) if self._scratch.exists(f"{', '.join([children, *sources])} WHERE {condition}") else None

    def _hit(self, key: ForeignKey, values: str, children: str) -> tuple[list[str], str]:
        scratch = self._scratch
        met = scratch.match(values, children, _numbered("r", key.columns), key.columns)
        child = None if key.schema else self._listed.get(key.child)
        if child is None:
            return [values], met
        own = key_of(child)
        named = dict(zip(_numbered("h", own), own, strict=True))
        hit = scratch.quote(scratch.make("hit", scratch.quote(child.name), named, list(named)))
        rows = scratch.inside(child, list(dict.fromkeys([*own, *key.columns])), local=True, source=children)
        found = scratch.match(values, "c", _numbered("r", key.columns), key.columns)
        scratch.run(f"INSERT INTO {hit} SELECT {scratch.names(own, 'c')} FROM {rows} c JOIN {values} ON {found}")
        return [values, hit], f"{met} AND {scratch.match(hit, children, list(named), own)}"

    def _handed_on(
        self, key: ForeignKey, children: str, sources: Sequence[str], condition: str, places: Places
    ) -> list[_Lost]:
        """What is lost to the children of the children that are about to go."""
        found = []
        for below in self._keys:
            if key.schema or below.parent != key.child or not self._has_local(below) or places.children(below) is None:
                continue
            lost = self._new(below, ())
            columns = self._scratch.names(below.parent_columns, children)
            self._scratch.run(
                f"INSERT INTO {self._sql(lost)} SELECT {columns} FROM {', '.join([children, *sources])} WHERE {condition}"
            )
            found.append(lost)
        return found


def _numbered(letter: str, columns: Sequence[str]) -> list[str]:
    return [f"{letter}{place}" for place in range(len(columns))]


def _held(key: ForeignKey, rule: str, *, deleted: bool) -> NotApplicable:
    what = "is gone" if deleted else "has another value there"
    how = (
        f"ON {'DELETE' if deleted else 'UPDATE'} SET DEFAULT, which is not done here"
        if rule == "default"
        else "it must stay"
    )
    return NotApplicable(
        f"rows of table {key.child} that are this node's own refer to rows of table {key.parent} of which the primary's {what}, and "
        f"by their foreign key {key.name} {how}; remove these rows of {key.child} here, or have them refer to others, and synchronize"
        " again"
    )
