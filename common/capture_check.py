"""Whether what `install` made still captures every change of the listed tables, as a person needs to know it (TRAPS 2, 6)."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.engine import Connection

from common.bookkeeping import captured
from common.catalog import listed_tables
from common.database import Database
from common.dialects.base import Dialect
from common.errors import Misconfigured
from common.schema import Listed, Table
from common.settings import Settings

_REMEDY = "run `stsync install` on this node; a full synchronization is needed for what was missed meanwhile"


@dataclass(frozen=True)
class Marks:
    """What is kept of a table when capture is installed: digests of its schema, of the statements that made its triggers, and of
    the triggers as the database showed them afterwards."""

    fingerprint: str
    triggers: str
    standing: str = ""


def known(connection: Connection) -> dict[str, Marks]:
    """What was kept, by table."""
    return {
        row.table_name: Marks(row.fingerprint, row.triggers, row.standing) for row in connection.execute(select(captured))
    }


def wanted(dialect: Dialect, listed: Listed) -> dict[str, Marks]:
    """What `install` would keep now, but for what the database will show."""
    return {
        name: Marks(table.table.fingerprint(), _digest(part for one in dialect.triggers(table) for part in one.create))
        for name, table in listed.items()
    }


def standing(dialect: Dialect, connection: Connection) -> dict[str, str]:
    """A digest of our triggers as the database shows them now, by table."""
    shown: dict[str, list[str]] = {}
    for one in dialect.installed(connection):
        shown.setdefault(one.table, []).append(f"{one.name}\0{one.definition}")
    return {table: _digest(sorted(parts)) for table, parts in shown.items()}


def faults(database: Database, connection: Connection, settings: Settings) -> list[str]:
    """Sentences that name the tables whose changes are or may be lost, each with its remedy; none where all is in order."""
    kept, dialect = known(connection), database.dialect
    tables = dialect.tables(connection)
    shown = standing(dialect, connection)
    altered = {name for name, marks in kept.items() if _altered(tables.get(name), marks)}
    lost = {name for name in kept.keys() - altered if shown.get(name) != kept[name].standing}
    found = []
    if altered:
        found.append(
            f"the schema of {_names(altered)} changed since capture was installed, or other programs' triggers on it: run "
            "`stsync install` on every node, as programs that write it may fail until then; a full synchronization is needed"
        )
    if lost:
        found.append(
            f"changes of {_names(lost)} are not captured: the triggers that `stsync install` made are gone, disabled or not the same "
            f"any more, or the table was made anew, or this database user may not see them; {_REMEDY}"
        )
    return found + _against_the_list(database, connection, settings, kept, altered | lost)


def _against_the_list(
    database: Database, connection: Connection, settings: Settings, kept: Mapping[str, Marks], told: set[str]
) -> list[str]:
    """What `install` would do otherwise by now."""
    try:
        now = wanted(database.dialect, listed_tables(database, connection, settings))
    except Misconfigured as exc:
        return [f"the list of tables does not fit the database any more, and changes may be lost: {exc}; then {_REMEDY}"]
    outdated = {name for name in (kept.keys() & now.keys()) - told if kept[name].triggers != now[name].triggers}
    found = []
    if outdated:
        found.append(
            f"changes of {_names(outdated)} may be lost: unique keys, or its line in the list, changed since the triggers were made; "
            f"{_REMEDY}"
        )
    if now.keys() - kept.keys():
        found.append(f"{_names(now.keys() - kept.keys())} is listed and not captured yet; {_REMEDY}")
    if kept.keys() - now.keys() - told:
        found.append(f"{_names(kept.keys() - now.keys() - told)} is still captured and not listed; run `stsync install`")
    return found


def _altered(table: Table | None, marks: Marks) -> bool:
    return table is None or table.overtaken or table.fingerprint() != marks.fingerprint


def _names(tables: Iterable[str]) -> str:
    return ", ".join(sorted(tables))


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
