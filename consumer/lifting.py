"""The installation where rows stand in the way of each other, and this user may not switch foreign keys off (TRAPS 27, 28).

What is in the way is taken out, and with it, over all foreign keys, the rows that refer to it, of tables that are not listed too; all
of it in one statement, so that nothing is left to cascade to. In temporary tables it becomes what it is to be, and goes back in one
statement, together with what is new: what belongs to the final state as the primary has it, and anything else as it was, or as its
own foreign key says where what it refers to is gone (consumer.orphans).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import NotApplicable
from common.schema import ForeignKey, Listed
from consumer.enforced import at_once, inserting, updating
from consumer.orphans import Orphans, Places
from consumer.scratch import Difference, Scratch, Written, anything, key_of, not_taken

_ROW = "stsync_row"  # where a row stands; it is locked, so that it stays there
_MISSING_RIGHT = (
    "{reason}: the rows cannot be put as the primary has them while foreign keys are enforced; GRANT SET ON PARAMETER "
    "session_replication_role TO this node's user, or mend the rows that refer to missing ones, and synchronize again"
)


@dataclass
class _Staged:
    columns: frozenset[str] = frozenset()
    gone: str | None = None
    updates: str | None = None
    inserts: str | None = None


class Lifting:
    """See the module. Raises NotApplicable, and the drivers' errors; the caller rolls back."""

    def __init__(self, scratch: Scratch, keys: Sequence[ForeignKey], listed: Listed) -> None:
        self._scratch = scratch
        self._keys = keys
        self._listed = listed
        self._orphans = Orphans(scratch, keys, listed)
        self._kept: dict[str, str] = {}  # the temporary table of what was taken out of a table (SQL)
        self._columns: dict[str, list[str]] = {}
        self._staged: dict[str, _Staged] = {}

    def install(self, differences: Sequence[Difference]) -> dict[str, Written]:
        """Make the tables equal."""
        for one in differences:
            self._stage(one)
        for one in differences:
            self._keep_differing(one)
        self._keep_referring()
        self._take_out()
        self._orphans.settle(Places(self._children, self._after, self._renewed))
        return self._put_back(differences)

    def _stage(self, one: Difference) -> None:
        scratch = self._scratch
        found = self._staged[one.table.name] = _Staged(frozenset(scratch.written(one)))
        if anything(one.deletes):
            found.gone = scratch.stage_keys(one)
        if anything(one.updates):
            found.updates = scratch.stage_rows(one, one.updates)
        if anything(one.inserts):
            found.inserts = scratch.stage_rows(one, one.inserts)
        named = {"gone": found.gone, "put": found.updates}
        self._orphans.remember(one, {what: name for what, name in named.items() if name is not None})

    def _kept_of(self, table: str) -> str:
        """What takes the rows of a table (SQL), made when first asked for."""
        if table not in self._kept:
            columns = self._scratch.dialect.plain_columns(self._scratch.connection, table)
            named = {_ROW: "ctid"} | dict(zip(columns, columns, strict=True))
            self._columns[table] = columns
            self._kept[table] = self._scratch.quote(self._scratch.make("kept", table, named))
        return self._kept[table]

    def _keep(self, table: str, alias: str, source: str) -> int:
        """Lock rows and save them: the number of those that were not saved before."""
        scratch, kept = self._scratch, self._kept_of(table)
        names = scratch.names(self._columns[table], alias)
        return scratch.run(
            f"INSERT INTO {kept} SELECT {alias}.ctid, {names} FROM {source}"
            f" AND NOT EXISTS (SELECT 1 FROM {kept} z WHERE z.{_ROW} = {alias}.ctid) FOR UPDATE OF {alias}"
        )

    def _keep_differing(self, one: Difference) -> None:
        """Rows that go, and rows of which a value changes that only one may have."""
        scratch, target, key = self._scratch, self._scratch.quote(one.table.name), key_of(one.table)
        staged, met = self._staged[one.table.name], self._scratch.match("t", "x", key_of(one.table))
        inside = scratch.filtered(one.table, "t")
        if staged.gone:
            self._keep(target, "t", f"{target} t JOIN {scratch.quote(staged.gone)} x ON {met} WHERE TRUE{inside}")
        changing = [name for name in scratch.written(one) if name in one.table.table.guarded and name not in key]
        if staged.updates and changing:
            differ = " OR ".join(
                f't.{scratch.quote(name)}::text COLLATE "C" IS DISTINCT FROM x.{scratch.quote(name)}::text COLLATE "C"'
                for name in changing
            )
            self._keep(target, "t", f"{target} t JOIN {scratch.quote(staged.updates)} x ON {met} WHERE ({differ}){inside}")

    def _keep_referring(self) -> None:
        """And all that refers to them, over however many foreign keys."""
        scratch = self._scratch
        grown = True
        while grown:
            grown = False
            for key in self._keys:
                parent = self._kept.get(scratch.quote(key.parent))
                if parent is None:
                    continue
                met = scratch.match("k", "c", key.parent_columns, key.columns)
                child = scratch.child(key)
                if scratch.exists(f"{child} c JOIN {parent} k ON {met}") and self._keep(
                    child, "c", f"{child} c JOIN {parent} k ON {met} WHERE TRUE"
                ):
                    grown = True

    def _take_out(self) -> None:
        scratch = self._scratch
        parts = [
            scratch.dialect.joined(f"{table} t", {}, [f"{kept} x"], f"t.ctid = x.{_ROW}")
            for table, kept in self._kept.items()
        ]
        done = at_once(scratch, parts)
        for (table, kept), count in zip(self._kept.items(), done, strict=True):
            (total,) = scratch.numbers(f"SELECT count(*) FROM {kept}")
            if count != total:
                raise NotApplicable(
                    f"{total - count} of {total} rows of table {table} that are in the way could not be taken out: a trigger of "
                    "another program or a row security policy keeps them; remove it, and synchronize again"
                )

    def _children(self, key: ForeignKey) -> str | None:
        return self._kept.get(self._scratch.child(key))

    def _after(self, key: ForeignKey) -> list[str]:
        staged = self._staged.get(key.parent, _Staged())
        known = set(key.parent_columns) <= staged.columns  # what is not written stays with its row
        return [self._scratch.quote(name) for name in (staged.updates, staged.inserts) if name is not None and known]

    def _renewed(self, key: ForeignKey) -> str | None:
        staged = self._staged.get(key.parent, _Staged())
        known = set(key.parent_columns) <= staged.columns
        return self._scratch.quote(staged.updates) if staged.updates is not None and known else None

    def _put_back(self, differences: Sequence[Difference]) -> dict[str, Written]:
        scratch = self._scratch
        updated: dict[str, int] = {}
        deleted: dict[str, int] = {}
        parts: dict[tuple[str, str], str] = {}
        for one in differences:
            name, staged, key = one.table.name, self._staged[one.table.name], key_of(one.table)
            kept = self._kept.get(scratch.quote(name))
            updated[name] = deleted[name] = 0
            if kept and staged.gone:
                gone = scratch.quote(staged.gone)
                deleted[name] = scratch.run(scratch.dialect.joined(kept, {}, [gone], scratch.match(kept, gone, key)))
            if kept and staged.updates:
                put = scratch.quote(staged.updates)
                sets = {column: f"{put}.{scratch.quote(column)}" for column in scratch.written(one) if column not in key}
                updated[name] = (
                    scratch.run(scratch.dialect.joined(kept, sets, [put], scratch.match(kept, put, key))) if sets else 0
                )
            if staged.updates:
                parts[name, "u"] = updating(scratch, one, staged.updates)
        for table, kept in self._kept.items():
            names = scratch.names(self._columns[table])
            parts[table, "k"] = f"INSERT INTO {table} ({names}){scratch.dialect.overriding} SELECT {names} FROM {kept}"
        for one in differences:
            inserts = self._staged[one.table.name].inserts
            if inserts:
                parts[one.table.name, "i"] = inserting(scratch, one, inserts)
        done = self._put(parts)
        found = {}
        for one in differences:
            name = one.table.name
            found[name] = Written(done.get((name, "i"), 0), updated[name] + done.get((name, "u"), 0), deleted[name])
            self._check(one, found[name])
        return found

    def _put(self, parts: dict[tuple[str, str], str]) -> dict[tuple[str, str], int]:
        scratch = self._scratch
        try:
            with scratch.savepoint():
                done = dict(zip(parts, at_once(scratch, list(parts.values())), strict=True))
                scratch.dialect.settle(scratch.connection)
        except NotApplicable as exc:
            raise NotApplicable(_MISSING_RIGHT.format(reason=exc)) from exc
        return done

    def _check(self, one: Difference, found: Written) -> None:
        staged = self._staged[one.table.name]
        for name, written in ((staged.updates, found.updated), (staged.inserts, found.inserted)):
            if name is not None:
                (total,) = self._scratch.numbers(f"SELECT count(*) FROM {self._scratch.quote(name)}")
                if written != total:
                    raise not_taken(one.table, total - written, total)
