"""What the installation of a full synchronization needs of MariaDB."""

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy.engine import Connection

from common.dialects.mariadb_values import quote
from common.schema import ForeignKey, Rule

_RULES: Final[Mapping[str, Rule]] = {"CASCADE": "cascade", "SET NULL": "null", "SET DEFAULT": "default"}
_FOREIGN_KEYS_SQL = """
SELECT k.CONSTRAINT_NAME, k.TABLE_NAME, IF(k.TABLE_SCHEMA = DATABASE(), '', k.TABLE_SCHEMA), k.REFERENCED_TABLE_NAME,
       r.DELETE_RULE, r.UPDATE_RULE, k.COLUMN_NAME, k.REFERENCED_COLUMN_NAME
FROM information_schema.KEY_COLUMN_USAGE k JOIN information_schema.REFERENTIAL_CONSTRAINTS r
  ON r.CONSTRAINT_SCHEMA = k.CONSTRAINT_SCHEMA AND r.TABLE_NAME = k.TABLE_NAME AND r.CONSTRAINT_NAME = k.CONSTRAINT_NAME
WHERE k.REFERENCED_TABLE_SCHEMA = DATABASE()
ORDER BY k.TABLE_SCHEMA, k.TABLE_NAME, k.CONSTRAINT_NAME, k.ORDINAL_POSITION
"""


class MariadbInstalling:
    """See InstallingDialect."""

    unenforced = True
    # Waits for locks are bounded by the server; that it ends who is idle in a transaction, where it does, is not for these.
    bounded_waits = "SET SESSION idle_transaction_timeout = 0, SESSION idle_write_transaction_timeout = 0"
    overriding = ""
    drop_scratch = "DROP TEMPORARY TABLE IF EXISTS"

    def foreign_keys(self, connection: Connection) -> list[ForeignKey]:
        """See InstallingDialect."""
        found: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        for *known, column, referred in connection.exec_driver_sql(_FOREIGN_KEYS_SQL):
            found.setdefault(tuple(known), []).append((column, referred))
        keys = []
        for (name, child, schema, parent, on_delete, on_update), pairs in found.items():
            here, there = zip(*pairs, strict=True)
            rules = (_RULES.get(on_delete, "stay"), _RULES.get(on_update, "stay"))
            keys.append(ForeignKey(name, child, here, parent, there, *rules, cleared=here, schema=schema))
        return keys

    def may_uncheck(self, connection: Connection) -> bool:
        """See InstallingDialect."""
        del connection
        return True

    def plain_columns(self, connection: Connection, table: str) -> list[str]:
        """See InstallingDialect: never asked."""
        raise NotImplementedError

    def scratch(
        self, connection: Connection, name: str, table: str, columns: Mapping[str, str], index: Sequence[str]
    ) -> list[str]:
        """See InstallingDialect. A rollback does not take it away. Joins begin with it and find the others' rows by their
        indexes; over a TEXT it could have none."""
        del connection, index
        taken = ", ".join(f"{quote(column)} AS {quote(called)}" for called, column in columns.items())
        return [f"CREATE OR REPLACE TEMPORARY TABLE {quote(name)} AS SELECT {taken} FROM {table} WHERE FALSE"]

    def joined(self, target: str, sets: Mapping[str, str], sources: Sequence[str], condition: str) -> str:
        """See InstallingDialect."""
        if not sets:
            return f"DELETE FROM {target} USING {', '.join([target, *sources])} WHERE {condition}"
        values = ", ".join(f"{target}.{quote(name)} = {value}" for name, value in sets.items())
        return f"UPDATE {', '.join([target, *sources])} SET {values} WHERE {condition}"
