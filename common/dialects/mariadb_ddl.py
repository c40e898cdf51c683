"""How `install` gets at tables that are in use on MariaDB: each trigger by itself, and no writer waits long for it."""

from collections.abc import Collection

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from common.errors import Misconfigured, Refused, StsyncError

PATIENCE_S = 3  # all writers of the table queue behind a statement that waits for it
_HELD_UP = 1205
_RIGHTS = frozenset({1044, 1142, 1143, 1227, 1370})
_BINARY_LOG = 1419
_HOLDERS_SQL = """
SELECT CONCAT('session ', p.ID, ' of user ', p.USER, ', in a transaction since ', t.trx_started)
FROM information_schema.INNODB_TRX t JOIN information_schema.PROCESSLIST p ON p.ID = t.trx_mysql_thread_id
WHERE p.ID <> CONNECTION_ID() ORDER BY t.trx_started LIMIT 3
"""


def claim(connection: Connection, changed: Collection[str], dropped: Collection[str]) -> None:
    """Let no statement that follows wait longer than PATIENCE_S; each locks its table for its own time only."""
    del changed, dropped
    connection.exec_driver_sql(f"SET SESSION lock_wait_timeout = {PATIENCE_S}")


def objection(connection: Connection, exc: BaseException) -> StsyncError | None:
    """What an administrator has to do about this error of a statement of `install`; None where it is none of theirs."""
    number, words = (exc.args[0], exc.args[-1]) if exc.args else (0, "")
    if number == _HELD_UP:
        return Refused(
            f"a listed table cannot be had for {PATIENCE_S} s; held by {_holders(connection)}; end it, or wait for its end, and run "
            "the command again: until then `stsync status` says what is not in order"
        )
    if number == _BINARY_LOG:
        return Misconfigured(
            f"the database user of database.url may not create triggers while the server writes its binary log: {words}; SET GLOBAL "
            "log_bin_trust_function_creators = 1 (and in the server's configuration), or GRANT it SUPER"
        )
    if number in _RIGHTS:
        return Misconfigured(
            f"the database user of database.url lacks a right: {words}; it needs SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, INDEX "
            "and TRIGGER on its database: GRANT them, or name another user"
        )
    return None


def _holders(connection: Connection) -> str:
    try:
        found = connection.exec_driver_sql(_HOLDERS_SQL).scalars().all()
    except DBAPIError:
        return (
            "an open transaction (trx_mysql_thread_id in information_schema.INNODB_TRX says which; the database user of database.url "
            "lacks the right PROCESS to see it)"
        )
    return ", ".join(map(str, found)) or "an open transaction"
