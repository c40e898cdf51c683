"""The installation with foreign keys switched off: nothing cascades, each table is made equal by itself, in any order (TRAPS 28).

References that the primary's rows have to rows that it lacks are taken as they are. What the foreign keys of this node's own rows
say about rows that go is done afterwards (consumer.orphans).
"""

from collections.abc import Sequence
from contextlib import closing

from common.errors import NotApplicable
from common.schema import ForeignKey, Listed
from consumer.orphans import Orphans, Places
from consumer.scratch import Difference, Portions, Scratch, Written, anything, key_of, not_taken, plain_columns


class Unenforced:
    """See the module. Raises NotApplicable, and the drivers' errors; the caller rolls back."""

    def __init__(self, scratch: Scratch, keys: Sequence[ForeignKey], listed: Listed) -> None:
        self._scratch = scratch
        self._orphans = Orphans(scratch, keys, listed)

    def install(self, differences: Sequence[Difference]) -> dict[str, Written]:
        """Make the tables equal, parents first."""
        staged = {one.table.name: self._remember(one) for one in differences}
        deleted = {one.table.name: write(self._scratch, one, "delete") for one in reversed(differences)}
        found = {}
        for one in differences:
            updated = self._update(one, staged[one.table.name].get("put")) if anything(one.updates) else 0
            found[one.table.name] = Written(write(self._scratch, one, "insert"), updated, deleted[one.table.name])
        quote = self._scratch.quote
        self._orphans.settle(Places(self._scratch.child, lambda key: [quote(key.parent)], lambda key: quote(key.parent)))
        return found

    def _remember(self, one: Difference) -> dict[str, str]:
        """What had to be staged for the sake of this node's own rows."""
        goes, changes = self._orphans.needed(one)
        staged = {"gone": self._scratch.stage_keys(one)} if goes else {}
        if changes:
            staged["put"] = self._scratch.stage_rows(one, one.updates)
        if staged:
            self._orphans.remember(one, staged)
        return staged

    def _update(self, one: Difference, put: str | None) -> int:
        """In place; where unique values change hands in a way that cannot be done one after the other, all of them at once."""
        try:
            with self._scratch.savepoint():
                return write(self._scratch, one, "update")
        except NotApplicable:
            return self._lift(one, put or self._scratch.stage_rows(one, one.updates))

    def _lift(self, one: Difference, put: str) -> int:
        """Take the differing rows out and put their new versions in, with what this node alone keeps in them."""
        scratch, table, key = self._scratch, one.table, key_of(one.table)
        columns = plain_columns(table)
        target, rows = scratch.quote(table.name), scratch.quote(put)
        kept = scratch.quote(scratch.make("kept", target, dict(zip(columns, columns, strict=True)), key))
        fresh = set(scratch.written(one)) - set(key)
        values = ", ".join(f"{'x' if name in fresh else 't'}.{scratch.quote(name)}" for name in columns)
        inside = scratch.inside(table, columns)
        count = scratch.run(
            f"INSERT INTO {kept} SELECT {values} FROM {inside} t JOIN {rows} x ON {scratch.match('t', 'x', key)}"
        )
        (total,) = scratch.numbers(f"SELECT COUNT(*) FROM {rows}")
        if count != total:
            raise not_taken(table, total - count, total)
        scratch.run(scratch.dialect.joined(target, {}, [kept], scratch.match(target, kept, key)))
        names = scratch.names(columns)
        with scratch.translated(table.name):
            return scratch.run(f"INSERT INTO {target} ({names}){scratch.dialect.overriding} SELECT {names} FROM {kept}")


def write(scratch: Scratch, one: Difference, kind: str) -> int:
    """Write the rows of one kind as they come; the number of rows found or written. NotApplicable where one was not taken."""
    portions: Portions = {"delete": one.deletes, "update": one.updates, "insert": one.inserts}[kind]
    columns = key_of(one.table) if kind == "delete" else one.columns
    writer = scratch.dialect.writer(one.table, columns)
    run = {"delete": writer.delete, "update": writer.update, "insert": writer.insert}[kind]
    done = total = 0
    with scratch.translated(one.table.name), closing(scratch.connection.connection.cursor()) as cursor:
        for count, rows in portions():
            done += run(cursor, rows)
            total += count
    if kind != "delete" and done != total:
        raise not_taken(one.table, total - done, total)
    return done
