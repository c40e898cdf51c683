"""What the demo's nodes synchronize: the same rules as text for stsync and as values for the comparison."""

from dataclasses import dataclass

from sqlalchemy import Table

from deploy.demo import schema


@dataclass(frozen=True)
class Rule:
    """One line of `sync_tables.conf`."""

    table: Table
    where: str | None = None
    exclude: frozenset[str] = frozenset()

    @property
    def line(self) -> str:
        """The rule as stsync reads it."""
        words = [self.table.name]
        if self.where:
            words.append(f'where="{self.where}"')
        if self.exclude:
            words.append("exclude=" + ",".join(sorted(self.exclude)))
        return " ".join(words)


_RUNTIME = frozenset({"last_login", "failed_auth_attempts", "locked"})
_SPECIAL = {
    "virtual_user": Rule(schema.virtual_user, exclude=_RUNTIME),
    "administrator": Rule(schema.administrator, exclude=_RUNTIME),
    "server_configuration": Rule(schema.server_configuration, where="is_local = 0"),
}
UNLISTED = frozenset({"audit_log"})
RULES = tuple(_SPECIAL.get(table.name, Rule(table)) for table in schema.metadata.sorted_tables if table.name not in UNLISTED)


def tables_conf() -> str:
    """The text of `conf/sync_tables.conf`."""
    return "\n".join(
        [
            "# What is kept equal on all nodes, one table a line; the order does not matter.",
            "# exclude: runtime columns, never sent, never overwritten. where: only these rows.",
            *sorted(rule.line for rule in RULES),
            "",
        ]
    )
