"""Which tables this node synchronizes: its list, matched with its database."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from common.database import Database
from common.dialects.base import Dialect, run
from common.errors import Misconfigured
from common.lists import TABLES_FILE, TableRule, read_tables, resolve
from common.schema import Listed, ListedTable, Table
from common.settings import Settings


def listed_tables(
    database: Database,
    connection: Connection,
    settings: Settings,
    former: Listed = MappingProxyType({}),
    *,
    anew: bool = True,
) -> dict[str, ListedTable]:
    """The tables that the node's list selects in its database, each row filter tried; raises Misconfigured.

    `former`: what stands for a listed table that the database lacks just now, so that those that it has are read all the same, and
    changes of that one wait for its return. A glob stands for what there is: its tables that are gone are left out where `anew`
    (`install` has run since, and knew of none of them), or where the list could not be used with them.
    """
    rules = read_tables(settings.node.home)
    same_name = database.dialect.same_name
    here = database.dialect.tables(connection)
    gone = {name: one.table for name, one in former.items() if not any(same_name(name, other) for other in here)}
    named = {name: gone[name] for name in gone if any(not rule.is_glob and same_name(rule.pattern, name) for rule in rules)}
    if not anew and gone != named:
        try:
            return _chosen(database, connection, settings, rules, here, gone)
        except Misconfigured:
            connection.rollback()
    return _chosen(database, connection, settings, rules, here, named)


def _chosen(
    database: Database,
    connection: Connection,
    settings: Settings,
    rules: Sequence[TableRule],
    here: Mapping[str, Table],
    gone: Mapping[str, Table],
) -> dict[str, ListedTable]:
    source = str(settings.node.home / TABLES_FILE)
    listed = resolve(rules, {**gone, **here}, database.dialect.same_name, source)
    lines = {name: rule.line for rule in rules for name in listed if database.dialect.same_name(rule.pattern, name)}
    for table in listed.values():
        where = f"{source}:{lines.get(table.name, '?')}"
        _check(table, listed, where)
        if table.where and table.name in here:
            _try_filter(database.dialect, connection, table, where)
    return listed


def _check(table: ListedTable, listed: Listed, where: str) -> None:
    """Refuse a table whose changes could get lost (TRAPS 2)."""
    if table.table.obstacle:
        raise Misconfigured(f"{where}: table {table.name} cannot be captured: it {table.table.obstacle}")
    for name, column in sorted((one.parent, column) for one in table.table.silent for column in one.parent_columns):
        parent = listed.get(name)
        if parent is None or parent.where or column in parent.exclude:
            how = (
                "is not listed"
                if parent is None
                else "is listed with a row filter"
                if parent.where
                else f"excludes {column}"
            )
            raise Misconfigured(
                f"{where}: the database hands deletes or key updates of {name} on to {table.name} without firing triggers (ON DELETE "
                f"or ON UPDATE CASCADE or SET NULL), and {name} {how}: they would be lost; list {name} whole, or make the foreign "
                "key RESTRICT"
            )


def _try_filter(dialect: Dialect, connection: Connection, table: ListedTable, where: str) -> None:
    names = ", ".join(dialect.quote(column.name) for column in table.columns)
    from_ = dialect.quote(table.name)
    nested = connection.begin_nested()
    try:
        run(connection, f"SELECT 1 FROM (SELECT {names} FROM {from_}) f WHERE ({table.where}) LIMIT 0")
    except DBAPIError as exc:
        reason = str(exc.orig).strip().split("\n")[0]
        raise Misconfigured(
            f'{where}: where="{table.where}" cannot be used: {reason} (excluded columns cannot be used)'
        ) from exc
    finally:
        nested.rollback()
