"""An independent proof: every listed table, read through the databases alone, row by row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, text

from deploy.demo.databases import engine, reported
from deploy.demo.lists import RULES, Rule

_SHOWN = 3


@dataclass(frozen=True)
class Compared:
    """One table on one node against the primary's."""

    table: str
    node: str
    rows: int
    missing: int
    extra: int
    different: int
    examples: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether every row is there with the same values, and no other."""
        return not (self.missing or self.extra or self.different)


def compare(primary: str, secondaries: Mapping[str, str]) -> list[Compared]:
    """Every listed table of each secondary against the primary; URLs by node name."""
    found = []
    for rule in RULES:
        wanted = _read(primary, rule)
        found += [_difference(rule, node, wanted, _read(url, rule)) for node, url in secondaries.items()]
    return found


def _read(url: str, rule: Rule) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """The synchronized rows by key: the filter applied, excluded columns left out."""
    keys = list(rule.table.primary_key.columns)
    columns = [column for column in rule.table.columns if column.name not in rule.exclude]
    query = select(*keys, *(column.label(f"value_{column.name}") for column in columns))
    if rule.where:
        query = query.where(text(rule.where))
    with reported(f"read {rule.table.name}"), engine(url).connect() as connection:
        return {tuple(row[: len(keys)]): tuple(row[len(keys) :]) for row in connection.execute(query)}


def _difference(
    rule: Rule, node: str, wanted: dict[tuple[Any, ...], tuple[Any, ...]], found: dict[tuple[Any, ...], tuple[Any, ...]]
) -> Compared:
    missing = sorted(wanted.keys() - found.keys(), key=repr)
    extra = sorted(found.keys() - wanted.keys(), key=repr)
    different = sorted((key for key in wanted.keys() & found.keys() if wanted[key] != found[key]), key=repr)
    examples = [
        f"{word} {key}"
        for word, keys in (("missing", missing), ("extra", extra), ("different", different))
        for key in keys[:_SHOWN]
    ]
    return Compared(rule.table.name, node, len(wanted), len(missing), len(extra), len(different), tuple(examples))
