"""`sync_tables.conf`: what is synchronized, one table or glob a line (DESIGN §4, INTERFACE "The lists")."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from common.errors import Misconfigured
from common.schema import Column, ListedTable, Table

TABLES_FILE = Path("conf/sync_tables.conf")
_GLOB = re.compile(r"[*?\[]")
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_TOKEN = re.compile(
    rf'\s*(?:(?P<comment>#.*)|(?P<word>(?:{_QUOTED}|[^\s"#=]|(?<=\S)#)+)(?:(?P<equals>=)(?P<value>(?:{_QUOTED}|[^\s"])*))?)'
)


@dataclass(frozen=True)
class TableRule:
    """One line: a table name or a glob with its options."""

    pattern: str
    line: int
    where: str | None = None
    exclude: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()

    @property
    def is_glob(self) -> bool:
        """Whether the line may stand for several tables."""
        return bool(_GLOB.search(self.pattern))


def parse_tables(text: str, source: str) -> list[TableRule]:
    """The rules of a table list, in order; raises Misconfigured as `FILE:LINE: reason`."""
    rules = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        words = _words(line, f"{source}:{number}")
        if words:
            rules.append(_rule(words, number, f"{source}:{number}"))
    return rules


def read_tables(home: Path) -> list[TableRule]:
    """The rules of the node's own `conf/sync_tables.conf`; Misconfigured when it cannot be read."""
    path = home / TABLES_FILE
    try:
        return parse_tables(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as exc:
        raise Misconfigured(f"{path}: no such file; list the tables to synchronize there, one a line") from exc
    except OSError as exc:
        raise Misconfigured(f"{path}: cannot be read: {exc.strerror}; correct the path or its rights") from exc
    except UnicodeDecodeError as exc:
        raise Misconfigured(f"{path}: not UTF-8: {exc.reason} at byte {exc.start}") from exc


def resolve(
    rules: Iterable[TableRule],
    tables: Mapping[str, Table],
    same_name: Callable[[str, str], bool],
    source: str,
) -> dict[str, ListedTable]:
    """Each listed table by its name in the database; a line that names a table wins over a glob.

    `tables` holds every table of the database but the bookkeeping ones; `same_name` compares as the database does.
    Raises Misconfigured for a table that does not exist, has no primary key, stands twice, or an option naming no column.
    """
    chosen: dict[str, TableRule] = {}
    for rule in sorted(rules, key=lambda one: one.is_glob):
        where = f"{source}:{rule.line}"
        matches = [name for name in tables if _matches(rule, name, same_name)]
        if not matches and not rule.is_glob:
            raise Misconfigured(f"{where}: table {rule.pattern} does not exist in the database")
        if len(matches) > 1 and not rule.is_glob:
            matches = [rule.pattern] if rule.pattern in matches else matches[:1]
        for name in matches:
            earlier = chosen.get(name)
            if earlier is not None and not rule.is_glob:
                raise Misconfigured(f"{where}: table {name} is listed already in line {earlier.line}")
            chosen.setdefault(name, rule)
    return {
        name: _listed(tables, tables[name], rule, same_name, f"{source}:{rule.line}")
        for name, rule in sorted(chosen.items())
    }


def _matches(rule: TableRule, name: str, same_name: Callable[[str, str], bool]) -> bool:
    if not rule.is_glob:
        return same_name(rule.pattern, name)
    if fnmatchcase(name, rule.pattern):
        return True
    return same_name("a", "A") and fnmatchcase(name.lower(), rule.pattern.lower())


def _listed(
    tables: Mapping[str, Table],
    table: Table,
    rule: TableRule,
    same_name: Callable[[str, str], bool],
    where: str,
) -> ListedTable:
    if not table.key:
        raise Misconfigured(f"{where}: table {table.name} has no primary key; give it one or take it from the list")
    exclude = set()
    for name in rule.exclude:
        column = _column(table, name)
        if column is None:
            if rule.is_glob:
                continue
            raise Misconfigured(f"{where}: table {table.name} has no column {name} to exclude")
        if column.name in table.key:
            raise Misconfigured(f"{where}: column {column.name} is part of the key of {table.name} and cannot be excluded")
        if column.required and not column.generated:
            raise Misconfigured(
                f"{where}: column {column.name} of {table.name} is NOT NULL and has no default, so that no other node could insert "
                "a row without it; give it a default or do not exclude it"
            )
        exclude.add(column.name)
    requires = set()
    for name in rule.requires:
        found = next((one for one in tables if same_name(name, one)), None)
        if found is None:
            raise Misconfigured(f"{where}: required table {name} does not exist in the database")
        requires.add(found)
    return ListedTable(table, rule.where, frozenset(exclude), frozenset(requires))


def _column(table: Table, name: str) -> Column | None:
    """Column names are compared without case, as two of the three engines do; an exact match wins."""
    return table.column(name) or next((c for c in table.columns if c.name.lower() == name.lower()), None)


def _words(line: str, where: str) -> list[tuple[str, str | None]]:
    words: list[tuple[str, str | None]] = []
    at = 0
    while line[at:].strip():
        found = _TOKEN.match(line, at)
        if found is None:
            raise Misconfigured(f"{where}: cannot be read from {line[at:].strip()!r} on; is a quote missing?")
        at = found.end()
        if found["comment"] is not None:
            break
        words.append((_unquote(found["word"]), None if found["equals"] is None else _unquote(found["value"])))
    return words


def _unquote(text: str) -> str:
    return re.sub(_QUOTED, lambda one: re.sub(r"\\(.)", r"\1", one[0][1:-1]), text)


def _rule(words: list[tuple[str, str | None]], number: int, where: str) -> TableRule:
    name, value = words[0]
    if value is not None:
        raise Misconfigured(f"{where}: a line begins with a table name, not with an option ({name}=)")
    options: dict[str, str] = {}
    for option, text in words[1:]:
        if text is None:
            raise Misconfigured(
                f"{where}: unexpected {option!r} after the table name; one table a line, options are NAME=VALUE"
            )
        if option not in {"where", "exclude", "requires"}:
            raise Misconfigured(f"{where}: unknown option {option!r}; known are where, exclude, requires")
        if option in options:
            raise Misconfigured(f"{where}: option {option} stands twice")
        if not text.strip():
            raise Misconfigured(f"{where}: option {option} is empty")
        options[option] = text
    return TableRule(name, number, options.get("where"), _names(options.get("exclude")), _names(options.get("requires")))


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
