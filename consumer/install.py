"""Makes a node's listed tables equal to the primary's, in one transaction (DESIGN §8, step 5).

Where foreign keys can be switched off for a session, and nothing else with them, they are (consumer.unenforced). Elsewhere rows are
put in place while they are enforced (consumer.enforced); where that is refused, or could change rows that are equal already, all is
done anew: with foreign keys switched off if this user may do that, else with what is in the way taken out and put back
(consumer.lifting). No reader is blocked by any of it.
"""

from collections.abc import Callable, Sequence

from sqlalchemy.engine import Connection

from common.database import Database
from common.dialects.base import Dialect
from common.errors import NotApplicable
from common.schema import ForeignKey, Listed, parents_first
from consumer.enforced import Enforced
from consumer.lifting import Lifting
from consumer.scratch import Difference, Scratch, Written
from consumer.unenforced import Unenforced


def run(
    database: Database,
    connection: Connection,
    differences: Sequence[Difference],
    listed: Listed,
    finish: Callable[[bool], None],
) -> dict[str, Written]:
    """Install in a transaction of its own and commit it: what was written, by table.

    `connection`: one that `mark_session` prepared and that is in no transaction. `finish` is called within the transaction, before its
    end, to move the position (TRAPS 7), and told whether rows that differ were put in place, and no others taken out meanwhile.

    Raises NotApplicable, with a sentence for an operator, when the tables cannot be made equal; then nothing is changed. Any other
    error, Unavailable among them, leaves the connection invalidated, and the database decides whether all of it happened.
    """
    dialect = database.dialect
    try:
        with database.guard():
            dialect.references(connection, enforced=not dialect.unenforced)
            dialect.enter_replay(connection, deferred=True)
            if dialect.bounded_waits:
                connection.exec_driver_sql(dialect.bounded_waits)
            found, in_place = install(dialect, connection, differences, listed)
            finish(in_place)
            dialect.leave_replay(connection)
            connection.commit()
            dialect.references(connection, enforced=True)
    except NotApplicable:
        with database.guard():
            connection.rollback()
            dialect.references(connection, enforced=True)
        raise
    except BaseException:
        connection.invalidate()
        raise
    return found


def install(
    dialect: Dialect, connection: Connection, differences: Sequence[Difference], listed: Listed
) -> tuple[dict[str, Written], bool]:
    """Make the tables equal within the caller's transaction, which replays: what was written, by table, and what `finish` is told.

    Where foreign keys are switched off for whole transactions only (Dialect.references), they have to be off already; see `run`.
    Raises NotApplicable, and the caller rolls back; drivers' exceptions pass through.
    """
    keys = dialect.foreign_keys(connection)
    order = parents_first(listed.values())
    ordered = sorted(differences, key=lambda one: order.index(one.table.name))
    scratch = Scratch(dialect, connection)
    try:
        found = _install(scratch, keys, ordered, listed)
    except NotApplicable:
        scratch.drop()
        raise
    scratch.drop()
    return found


def _install(
    scratch: Scratch, keys: Sequence[ForeignKey], differences: Sequence[Difference], listed: Listed
) -> tuple[dict[str, Written], bool]:
    dialect, connection = scratch.dialect, scratch.connection
    if dialect.unenforced:
        with scratch.translated(), dialect.unchecked(connection):
            return Unenforced(scratch, keys, listed).install(differences), True
    try:
        with scratch.savepoint():
            found = Enforced(scratch, keys, listed).install(differences)
            dialect.settle(connection)
            return found, True
    except NotApplicable:  # rolled back; the other way says it if this one's reason was none that it removes
        may_uncheck = dialect.may_uncheck(connection)
    with scratch.savepoint():
        if not may_uncheck:
            return Lifting(scratch, keys, listed).install(differences), False
        with dialect.unchecked(connection):
            return Unenforced(scratch, keys, listed).install(differences), True


__all__ = ["Difference", "Written", "install", "run"]
