"""Tables as capture and replay see them: columns, key, references; values only, read by the dialects."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Equality = Literal["exact", "folded", "unknown"]


@dataclass(frozen=True)
class Column:
    """A column: its name, the engine's own name of its type, and whether the engine computes it.

    `equality`, of columns of the key: `exact`: values that the engine takes for equal have one text; `folded`: printable ASCII ones
    are equal only where they are without case and spaces at the end; `unknown`: nothing is known of texts that differ.
    """

    name: str
    type: str
    generated: bool = False
    required: bool = False  # NOT NULL without a default: an insert must name it
    fixed: bool = False  # no update can set it: an identity that is always generated
    nullable: bool = False  # part of the key, and may be NULL all the same (SQLite)
    equality: Equality = "exact"
    collation: str = ""  # where `type` does not tell it and it is not the database's own
    declared: str = ""  # the type as it was declared, with its length, where `type` does not tell that

    @property
    def shape(self) -> str:
        """All that two nodes' columns of this name must have in common."""
        return (self.declared or self.type) + (f" COLLATE {self.collation}" if self.collation else "")


@dataclass(frozen=True)
class OtherTrigger:
    """A trigger that is not ours, and whether it looks at the mark of replay."""

    name: str
    minds_replay: bool


@dataclass(frozen=True)
class Unique:
    """A unique key: its columns and the collation of each; `partial`: only some rows are in it."""

    columns: tuple[str, ...]
    collations: tuple[str, ...]
    partial: bool = False


@dataclass(frozen=True)
class Cascade:
    """A foreign key of a child by which a deletion (or an update of what is referred to) of its parent's rows changes its own:
    `columns` of the child refer to `parent_columns`, in this order."""

    child: str
    columns: tuple[str, ...]
    parent_columns: tuple[str, ...]
    on_delete: bool
    on_update: bool


@dataclass(frozen=True)
class HandedOn:
    """A foreign key by which a change of the parent's row changes the child's without firing its triggers: `columns` of the child
    refer to `parent_columns`, in this order. What becomes of the child: "delete", "null", "follow", or "" where the parent stays."""

    parent: str
    columns: tuple[str, ...]
    parent_columns: tuple[str, ...]
    on_delete: str
    on_update: str


Rule = Literal["stay", "cascade", "null", "default"]


@dataclass(frozen=True)
class ForeignKey:
    """A foreign key as the database enforces it: `columns` of the child refer to `parent_columns`, in this order.

    `on_delete`, `on_update`: what it does to the child; with "stay" nothing, and the parent has to stay too. `cleared`: the columns
    that a deletion sets to NULL or their defaults. `late`: its check can be left to the end of the transaction. `schema`: of a child
    that is elsewhere than the parent, and so never listed.
    """

    name: str
    child: str
    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]
    on_delete: Rule
    on_update: Rule
    cleared: tuple[str, ...] = ()
    late: bool = False
    schema: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its primary key, the tables its foreign keys refer to, and (where a dialect needs them) its unique keys, the
    primary one first.

    `silent`: the foreign keys by which the database hands deletes and updates of parents on to this table without firing its
    triggers.
    `cascades`: the foreign keys that refer to this table, where the database enforces them for some sessions only, and tells
    nobody for which.
    `guarded`: the columns for whose values a change may be refused by a unique or a foreign key; all of them where such a key is over
    something computed, or over some of the rows only.
    `obstacle`: why changes of this table cannot be captured, as the end of a sentence that begins with the table.
    `followed`: other triggers may change a row again before ours see its change, and ours then have to be other ones.
    `overtaken`: another trigger runs before ours because it was made after them; they have to be made anew.
    `copyable`: rows that are copied in (COPY) become what they would become if they were inserted.
    `answered`: a rule, or a trigger that fires only in sessions that replicate, may change other rows as these are written.
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    parents: frozenset[str] = frozenset()
    uniques: tuple[Unique, ...] = ()
    triggers: tuple[OtherTrigger, ...] = ()
    silent: frozenset[HandedOn] = frozenset()
    cascades: tuple[Cascade, ...] = ()
    guarded: frozenset[str] = frozenset()
    obstacle: str | None = None
    followed: bool = False
    overtaken: bool = False
    copyable: bool = False
    answered: bool = False

    def column(self, name: str) -> Column | None:
        """The column of exactly that name."""
        return next((one for one in self.columns if one.name == name), None)

    def fingerprint(self) -> str:
        """A digest of what capture and replay depend on (TRAPS 6)."""
        parts = [
            self.name,
            *self.key,
            *(
                f"{c.name}\0{c.type}\0{c.generated}" + (f"\0{c.collation}" if c.collation else "")
                for c in sorted(self.columns, key=lambda c: c.name)
            ),
            *(["followed"] if self.followed else []),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class ListedTable:
    """A table that is synchronized: its row filter (SQL over its columns), its excluded columns, what else it needs first."""

    table: Table
    where: str | None = None
    exclude: frozenset[str] = frozenset()
    requires: frozenset[str] = frozenset()
    columns: tuple[Column, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Work out the synchronized columns once: the key's first, then the others, without excluded and generated ones."""
        keys = [one for name in self.table.key if (one := self.table.column(name)) is not None]
        rest = [
            c for c in self.table.columns if c.name not in self.table.key and c.name not in self.exclude and not c.generated
        ]
        object.__setattr__(self, "columns", (*keys, *rest))

    @property
    def name(self) -> str:
        """The table's name, as the database spells it."""
        return self.table.name

    @property
    def key(self) -> tuple[Column, ...]:
        """The key's columns, in key order."""
        return self.columns[: len(self.table.key)]


Listed = Mapping[str, ListedTable]


def parents_first(tables: Iterable[ListedTable]) -> list[str]:
    """Table names ordered so that a table stands after those it refers to or requires; cycles are cut at any point."""
    waiting = {one.name: ((one.table.parents | one.requires) - {one.name}) for one in tables}
    done: list[str] = []
    while waiting:
        ready = sorted(name for name, parents in waiting.items() if not (parents & waiting.keys()))
        if not ready:
            ready = [min(waiting, key=lambda name: (len(waiting[name] & waiting.keys()), name))]
        done += ready
        for name in ready:
            del waiting[name]
    return done


def components(tables: Iterable[ListedTable]) -> list[list[str]]:
    """Table names in groups, each after those it refers to or requires; together are those that refer to each other in a circle."""
    given = {one.name: one for one in tables}
    parents = {name: (one.table.parents | one.requires) & given.keys() for name, one in given.items()}
    above = {name: _reached(name, parents) | {name} for name in given}
    found: list[list[str]] = []
    for name in sorted(given, key=lambda name: (len(above[name]), name)):  # what is above another has less above itself
        if not any(name in group for group in found):
            found.append(sorted(other for other in above[name] if name in above[other]))
    return found


def _reached(name: str, parents: Mapping[str, frozenset[str]]) -> set[str]:
    found: set[str] = set()
    ahead = [name]
    while ahead:
        for parent in parents[ahead.pop()] - found:
            found.add(parent)
            ahead.append(parent)
    return found
