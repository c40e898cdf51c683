"""What the installation of a full synchronization needs of PostgreSQL."""

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy.engine import Connection

from common.dialects.postgresql_writer import quote
from common.schema import ForeignKey, Rule

_RULES: Final[Mapping[str, Rule]] = {"a": "stay", "r": "stay", "c": "cascade", "n": "null", "d": "default"}
# Of tables in the strict sense, partitions included: a row of a partitioned one is told by where it stands only together with which
# partition that is.
_FOREIGN_KEYS_SQL = """
SELECT f.conname, c.relname, CASE WHEN c.relnamespace = p.relnamespace THEN '' ELSE n.nspname END, p.relname,
       f.confdeltype, f.confupdtype, f.condeferrable,
       ARRAY(SELECT a.attname::text FROM unnest(f.conkey) WITH ORDINALITY k(number, place)
         JOIN pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = k.number ORDER BY k.place),
       ARRAY(SELECT a.attname::text FROM unnest(f.confkey) WITH ORDINALITY k(number, place)
         JOIN pg_attribute a ON a.attrelid = f.confrelid AND a.attnum = k.number ORDER BY k.place),
       ARRAY(SELECT a.attname::text FROM unnest(f.confdelsetcols) k(number)
         JOIN pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = k.number)
FROM pg_constraint f JOIN pg_class c ON c.oid = f.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 JOIN pg_class p ON p.oid = f.confrelid
WHERE f.contype = 'f' AND p.relnamespace = current_schema()::regnamespace AND c.relkind = 'r' AND p.relkind = 'r'
ORDER BY f.oid
"""
_COLUMNS_SQL = """
SELECT attname FROM pg_attribute
WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
"""


class PostgresqlInstalling:
    """See InstallingDialect."""

    unenforced = False
    # As long as MariaDB's sessions wait; and whatever the server does to others that are idle in a transaction.
    bounded_waits = "SET LOCAL lock_timeout = '20s'; SET LOCAL idle_in_transaction_session_timeout = 0"
    overriding = " OVERRIDING SYSTEM VALUE"
    drop_scratch = ""

    def foreign_keys(self, connection: Connection) -> list[ForeignKey]:
        """See InstallingDialect."""
        return [
            ForeignKey(
                name,
                child,
                tuple(columns),
                parent,
                tuple(theirs),
                _RULES[on_delete],
                _RULES[on_update],
                tuple(cleared or columns),
                late,
                schema,
            )
            for name, child, schema, parent, on_delete, on_update, late, columns, theirs, cleared in connection.exec_driver_sql(
                _FOREIGN_KEYS_SQL
            )
        ]

    def may_uncheck(self, connection: Connection) -> bool:
        """See InstallingDialect."""
        allowed = connection.exec_driver_sql("SELECT has_parameter_privilege('session_replication_role', 'SET')")
        return bool(allowed.scalar_one())

    def plain_columns(self, connection: Connection, table: str) -> list[str]:
        """See InstallingDialect."""
        return [name for (name,) in connection.exec_driver_sql(_COLUMNS_SQL, (table,))]

    def scratch(
        self, connection: Connection, name: str, table: str, columns: Mapping[str, str], index: Sequence[str]
    ) -> list[str]:
        """See InstallingDialect."""
        del connection
        taken = ", ".join(f"{quote(column)} AS {quote(called)}" for called, column in columns.items())
        statements = [f"CREATE TEMPORARY TABLE {quote(name)} ON COMMIT DROP AS SELECT {taken} FROM {table} WITH NO DATA"]
        if index:
            statements.append(f"CREATE INDEX ON {quote(name)} ({', '.join(map(quote, index))})")
        return statements

    def joined(self, target: str, sets: Mapping[str, str], sources: Sequence[str], condition: str) -> str:
        """See InstallingDialect."""
        if not sets:
            return f"DELETE FROM {target} USING {', '.join(sources)} WHERE {condition}"
        values = ", ".join(f"{quote(name)} = {value}" for name, value in sets.items())
        return f"UPDATE {target} SET {values} FROM {', '.join(sources)} WHERE {condition}"
