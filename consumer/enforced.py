"""The installation with foreign keys enforced, rows put in place: what is right wherever nothing stands in the way (TRAPS 28).

Inserts and updates come first, parents before children; deletes come last, children before parents. Then a deletion meets no row of
the final state, unless that refers to a row which the primary lacks; and this node's own rows are treated by the database itself.
Tables that refer to themselves, or to each other in a circle, are written by one statement, at the end of which the database checks.
Before a cascade could change a row that belongs to the final state, NotApplicable is raised, for another way to be gone.
"""

from collections.abc import Mapping, Sequence

from common.errors import NotApplicable
from common.schema import ForeignKey, Listed, components
from consumer.scratch import Difference, Scratch, Written, anything, key_of, not_taken
from consumer.unenforced import write

_CASCADES = ("cascade", "null", "default")


class Enforced:
    """See the module. Raises NotApplicable, and the drivers' errors; the caller rolls back."""

    def __init__(self, scratch: Scratch, keys: Sequence[ForeignKey], listed: Listed) -> None:
        self._scratch = scratch
        self._keys = keys
        self._listed = listed

    def install(self, differences: Sequence[Difference]) -> dict[str, Written]:
        """Make the tables equal, in any order that they are given."""
        by_name = {one.table.name: one for one in differences}
        order = [[by_name[name] for name in group if name in by_name] for group in components(self._listed.values())]
        put: dict[str, tuple[int, int]] = {}
        for group in order:
            put |= self._put(group)
        deleted: dict[str, int] = {}
        for group in reversed(order):
            deleted |= self._delete(group)
        return {name: Written(inserted, updated, deleted[name]) for name, (updated, inserted) in put.items()}

    def _is_circle(self, group: Sequence[Difference]) -> bool:
        names = {one.table.name for one in group}
        within = [key for key in self._keys if key.parent in names and key.child in names and not key.schema]
        return any(not key.late or key.on_delete in _CASCADES for key in within)

    def _put(self, group: Sequence[Difference]) -> dict[str, tuple[int, int]]:
        """The numbers of rows updated and inserted, by table."""
        staged: dict[str, str] = {}
        for one in group:
            handing = [key for key in self._keys if key.parent == one.table.name and self._may_follow(key, one)]
            if handing and anything(one.updates):
                staged[one.table.name] = self._scratch.stage_rows(one, one.updates)
                for key in handing:
                    self._refuse_to_hand_on(key, one, staged[one.table.name])
        if self._is_circle(group):
            return self._put_at_once(group, staged)
        return {one.table.name: (write(self._scratch, one, "update"), write(self._scratch, one, "insert")) for one in group}

    def _may_follow(self, key: ForeignKey, one: Difference) -> bool:
        """Whether an update of this parent may change rows of a listed child."""
        changed = set(self._scratch.written(one)) - set(key_of(one.table))
        return key.on_update in _CASCADES and self._reaches_listed(key) and not changed.isdisjoint(key.parent_columns)

    def _refuse_to_hand_on(self, key: ForeignKey, one: Difference, put: str) -> None:
        scratch = self._scratch
        differ = " OR ".join(
            f"p.{scratch.quote(name)} IS DISTINCT FROM x.{scratch.quote(name)}" for name in key.parent_columns
        )
        met = f"{scratch.match('p', 'x', key_of(one.table))} AND ({differ})"
        parents = f"{scratch.quote(one.table.name)} p JOIN {scratch.quote(put)} x ON {met}"
        self._refuse_if_referred(key, parents, "")

    def _put_at_once(self, group: Sequence[Difference], staged: Mapping[str, str]) -> dict[str, tuple[int, int]]:
        scratch = self._scratch
        parts: dict[tuple[str, str], str] = {}
        for one in group:
            if anything(one.updates):
                put = staged.get(one.table.name) or scratch.stage_rows(one, one.updates)
                parts[one.table.name, "u"] = updating(scratch, one, put)
        for one in group:
            if anything(one.inserts):
                parts[one.table.name, "i"] = inserting(scratch, one, scratch.stage_rows(one, one.inserts))
        done = dict(zip(parts, at_once(scratch, list(parts.values())), strict=True))
        for one in group:
            for kind, portions in (("u", one.updates), ("i", one.inserts)):
                written = done.get((one.table.name, kind), 0)
                total = sum(count for count, _ in portions()) if (one.table.name, kind) in done else 0
                if written != total:
                    raise not_taken(one.table, total - written, total)
        return {one.table.name: (done.get((one.table.name, "u"), 0), done.get((one.table.name, "i"), 0)) for one in group}

    def _delete(self, group: Sequence[Difference]) -> dict[str, int]:
        """The number of rows deleted, by table."""
        scratch = self._scratch
        found = {one.table.name: 0 for one in group}
        going = [one for one in group if anything(one.deletes)]
        circle = self._is_circle(group)
        staged: dict[str, str] = {}
        for one in going:
            handing = [key for key in self._keys if key.parent == one.table.name and key.on_delete in _CASCADES]
            if circle or any(map(self._reaches_listed, handing)):
                staged[one.table.name] = scratch.stage_keys(one)
        for one in going:
            for key in self._keys:
                if key.parent == one.table.name and key.on_delete in _CASCADES and self._reaches_listed(key):
                    self._refuse_to_take_along(key, one, staged)
        if not circle:
            return found | {one.table.name: write(scratch, one, "delete") for one in going}
        parts = {one.table.name: deleting(scratch, one, staged[one.table.name]) for one in going}
        return found | dict(zip(parts, at_once(scratch, list(parts.values())), strict=True))

    def _refuse_to_take_along(self, key: ForeignKey, one: Difference, staged: Mapping[str, str]) -> None:
        scratch = self._scratch
        met = scratch.match("p", "x", key_of(one.table))
        parents = f"{scratch.quote(one.table.name)} p JOIN {scratch.quote(staged[one.table.name])} x ON {met}"
        but = ""
        if key.child in staged and not key.schema:
            own = key_of(self._listed[key.child])
            but = f" WHERE NOT EXISTS (SELECT 1 FROM {scratch.quote(staged[key.child])} g WHERE {scratch.match('g', 'c', own)})"
        self._refuse_if_referred(key, parents, but)

    def _refuse_if_referred(self, key: ForeignKey, parents: str, but: str) -> None:
        """Where rows of the child that belong to the final state, or local ones that may hand it on to such, refer to these."""
        scratch = self._scratch
        children = scratch.child(key)
        child = None if key.schema else self._listed.get(key.child)
        if child is not None and not self._hands_on(key):
            children = scratch.inside(child, list(dict.fromkeys([*key_of(child), *key.columns])))
        met = scratch.match("p", "c", key.parent_columns, key.columns)
        if scratch.exists(f"{parents} JOIN {children} c ON {met}{but}"):
            raise NotApplicable(f"rows of table {key.child} would be changed by their foreign key to {key.parent}")

    def _reaches_listed(self, key: ForeignKey) -> bool:
        """Whether what it does to its child may change a row of a listed table, in the end."""
        if key.schema:
            return False
        return key.child in self._listed or self._hands_on(key)

    def _hands_on(self, key: ForeignKey) -> bool:
        """Whether rows of its child that are this node's own may hand on what happens to them to listed ones."""
        child = self._listed.get(key.child)
        if key.schema or (child is not None and child.where is None):
            return False
        seen, ahead = {key.child}, [key.child]
        while ahead:
            here = ahead.pop()
            for below in self._keys:
                if (
                    below.parent == here
                    and not below.schema
                    and _CASCADES
                    and (below.on_delete in _CASCADES or below.on_update in _CASCADES)
                ):
                    if below.child in self._listed:
                        return True
                    if below.child not in seen:
                        seen.add(below.child)
                        ahead.append(below.child)
        return False


def at_once(scratch: Scratch, parts: Sequence[str]) -> list[int]:
    """Run these as one statement, in this order, after which alone foreign keys are checked: the number of rows of each."""
    if not parts:
        return []
    named = ", ".join(f"s{place} AS ({part} RETURNING 1)" for place, part in enumerate(parts))
    counts = ", ".join(f"(SELECT count(*) FROM s{place})" for place in range(len(parts)))
    return scratch.numbers(f"WITH {named} SELECT {counts}")


def updating(scratch: Scratch, one: Difference, put: str) -> str:
    """The UPDATE of rows that are staged."""
    key = key_of(one.table)
    names = [name for name in scratch.written(one) if name not in key] or key
    fixed = [name for name in names if (column := one.table.table.column(name)) is not None and column.fixed]
    settable = [name for name in names if name not in fixed] or key
    sets = {name: f"x.{scratch.quote(name)}" for name in settable}
    same = "".join(f" AND t.{scratch.quote(name)} IS NOT DISTINCT FROM x.{scratch.quote(name)}" for name in fixed)
    condition = scratch.match("t", "x", key) + same + scratch.filtered(one.table, "t")
    return scratch.dialect.joined(f"{scratch.quote(one.table.name)} t", sets, [f"{scratch.quote(put)} x"], condition)


def inserting(scratch: Scratch, one: Difference, put: str) -> str:
    """The INSERT of rows that are staged."""
    names = scratch.names(scratch.written(one))
    target = scratch.quote(one.table.name)
    return f"INSERT INTO {target} ({names}){scratch.dialect.overriding} SELECT {names} FROM {scratch.quote(put)}"


def deleting(scratch: Scratch, one: Difference, gone: str) -> str:
    """The DELETE of rows whose keys are staged."""
    condition = scratch.match("t", "x", key_of(one.table)) + scratch.filtered(one.table, "t")
    return scratch.dialect.joined(f"{scratch.quote(one.table.name)} t", {}, [f"{scratch.quote(gone)} x"], condition)
