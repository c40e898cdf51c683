"""The end of an installation: what it has changed is looked at once more, and is equal to the primary's, or nothing is committed.

All of a table that differed is looked at, where more of it than its differing rows can have changed. Where that is excluded, it is
their buckets, and how many rows there are: the other rows were found equal as the session began. (What somebody changes here after
that and nothing captures, which another session could do a moment later, the next verification tells.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from common.dialects.base import Dialect
from common.digests import whole
from common.errors import NotApplicable
from common.schema import ListedTable
from common.session import TableDigest, TableShape
from consumer.scratch import Difference, anything

_MOST_BUCKETS = 1 << 15


@dataclass(frozen=True)
class Claim:
    """What a table is on the primary. `buckets`: the digests of those that differed here; None where they are too many."""

    table: ListedTable
    shape: TableShape
    primary: TableDigest
    buckets: Mapping[int, bytes] | None


class Differing:
    """The primary's digests of the buckets that differ, by the places of their tables: kept while they are few."""

    def __init__(self) -> None:
        self._found: dict[int, dict[int, bytes] | None] = {}

    def add(self, place: int, shape: TableShape, digests: Mapping[int, bytes]) -> None:
        """Some more of a table's."""
        known = self._found.setdefault(place, {})
        if known is not None:
            known.update(digests)
            if len(known) > min(_MOST_BUCKETS, shape.buckets // 2):
                self._found[place] = None  # to look at everything costs no more

    def of(self, place: int) -> Mapping[int, bytes] | None:
        """All of a table's."""
        return self._found.get(place)


def changes_nothing_else(dialect: Dialect, connection: Connection, differences: Sequence[Difference]) -> bool:
    """Whether these, put in place, change only the rows that they name: they delete none, and no trigger of others, no rule and no
    foreign key hands on what they write."""
    if any(one.table.table.triggers or one.table.table.answered or anything(one.deletes) for one in differences):
        return False
    names = {one.table.name for one in differences}
    return not any(key.parent in names and key.on_update != "stay" for key in dialect.foreign_keys(connection))


def prove(dialect: Dialect, connection: Connection, claim: Claim, *, only_differing: bool) -> None:
    """Raises NotApplicable where the table is not what the primary has; `only_differing`: nothing else of it can have changed."""
    table, shape = claim.table, claim.shape
    if only_differing and claim.buckets is not None:
        found = dialect.buckets(connection, table, shape.names, shape.buckets, claim.buckets.keys())
        rows = dialect.count(connection, table)
        equal = rows == claim.primary.rows and all(
            (found[place].digest if place in found else bytes(len(digest))) == digest
            for place, digest in claim.buckets.items()
        )
    else:
        here = whole(dialect.buckets(connection, table, shape.names, shape.buckets).values())
        rows, equal = here.rows, here == claim.primary
    if not equal:
        raise NotApplicable(
            f"table {shape.name} has {rows} rows after the synchronization, the primary has {claim.primary.rows}, and they are not "
            "equal: something else changes it on this node"
        )
