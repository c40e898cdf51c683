"""How `install` gets at tables that are in use on PostgreSQL: for moments only, so that no writer waits long or is ended for it."""

import time
from collections.abc import Collection

from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError

from common.errors import Misconfigured, Refused, StsyncError

PATIENCE_S = 5.0
_ATTEMPT_MS = 500
_PAUSE_S = 0.1  # lets through those that queued behind
_HELD_UP = "55P03"
_DEADLOCK = "40P01"  # on a machine so busy that both times are over at once
# Well below deadlock_timeout, after which the server would end one of the two, and that may be the writer.
_ATTEMPT_SQL = "SELECT LEAST(%(most)s, setting::int / 2) FROM pg_settings WHERE name = 'deadlock_timeout'"
_HOLDERS_SQL = """
SELECT DISTINCT ON (a.xact_start, a.pid) format('process %%s of user %%s (%%s), in a transaction since %%s',
       a.pid, a.usename, COALESCE(NULLIF(a.application_name, ''), 'unnamed'), COALESCE(a.xact_start::text, 'an unknown time'))
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.granted AND a.pid <> pg_backend_pid() AND l.relation = ANY (%(tables)s::regclass[]::oid[])
 AND (l.mode <> 'AccessShareLock' OR %(all)s) ORDER BY a.xact_start, a.pid LIMIT 3
"""


def claim(connection: Connection, changed: Collection[str], dropped: Collection[str]) -> None:
    """Lock these tables (names quoted): against writers; against everybody where a trigger is dropped.

    Raises Refused when that does not succeed for PATIENCE_S, and says who holds them.
    """
    until = time.monotonic() + PATIENCE_S
    while not _locked(connection, changed, dropped):
        if time.monotonic() > until:
            tables = sorted({*changed, *dropped})
            raise Refused(
                f"tables {', '.join(tables)} cannot be had for {PATIENCE_S:.0f} s; held by "
                f"{_holders(connection, tables, everybody=bool(dropped))}; nothing was changed: end it, or wait for its end, and run "
                "the command again"
            )
        time.sleep(_PAUSE_S)


def objection(exc: BaseException) -> StsyncError | None:
    """What an administrator has to do about this error of a statement of `install`; None where it is none of theirs."""
    state = getattr(exc, "sqlstate", None)
    words = str(exc).split("\n", 1)[0]
    if state == _HELD_UP:
        return Refused(f"{words}; nothing was changed: run the command again when the database is less busy")
    if state == "42501":
        return Misconfigured(
            f"the database user of database.url lacks a right: {words}; it needs to own the listed tables, or be a member of the role "
            "that does, and CREATE on their schema: GRANT it, or name another user"
        )
    return None


def _locked(connection: Connection, changed: Collection[str], dropped: Collection[str]) -> bool:
    """One attempt, all its waiting together within its time: while it waits for a table, it holds up who needs those before."""
    wanted = [(name, "ACCESS EXCLUSIVE") for name in sorted(dropped)]
    wanted += [(name, "SHARE ROW EXCLUSIVE") for name in sorted(changed)]
    attempt_ms = connection.exec_driver_sql(_ATTEMPT_SQL, {"most": _ATTEMPT_MS}).scalar_one()
    until = time.monotonic() + attempt_ms / 1000
    try:
        for name, mode in wanted:
            left_ms = max(1, round(1000 * (until - time.monotonic())))  # 0 would wait for ever
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {left_ms}")
            connection.exec_driver_sql(f"LOCK TABLE {name.replace('%', '%%')} IN {mode} MODE")
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_ATTEMPT_MS}")  # for what follows
    except OperationalError as exc:
        if getattr(exc.orig, "sqlstate", None) not in (_HELD_UP, _DEADLOCK):
            raise
        connection.rollback()
        return False
    return True


def _holders(connection: Connection, tables: list[str], *, everybody: bool) -> str:
    found = connection.exec_driver_sql(_HOLDERS_SQL, {"tables": tables, "all": everybody}).scalars().all()
    return ", ".join(map(str, found)) or "an open transaction"
