"""Checks outbox rows that programs wrote themselves and brings them into the form that triggers write (INTERFACE, README)."""

import json
from collections.abc import Mapping
from typing import Any

from common.changes import SEPARATOR, Kind
from common.dialects.base import Dialect
from common.dialects.json_writer import JsonNumber
from common.errors import NotApplicable
from common.schema import Column, ListedTable


def canonical(
    listed: Mapping[str, ListedTable],
    dialect: Dialect,
    table_name: str,
    kind: str,
    columns_json: str,
    rows_json: str,
) -> tuple[str, Kind, tuple[str, ...], int, str]:
    """(table, kind, columns, count, rows) as a frame holds them; NotApplicable says what is wrong with the row."""
    table = _table(listed, dialect, table_name)
    try:
        what = Kind(kind)
    except ValueError as exc:
        raise NotApplicable(f"kind {kind!r} is none of I, U, D, K, T") from exc
    if what is Kind.TRUNCATE:
        return table.name, what, tuple(c.name for c in table.columns), 1, "[]"
    columns = _columns(table, columns_json)
    rows = _rows(rows_json)
    old_keys = len(table.key) if what is Kind.REKEY else 0
    places = _places(table, columns, what)
    texts = []
    for row in rows:
        if len(row) != len(columns) + old_keys:
            raise NotApplicable(f"a row has {len(row)} values; {len(columns) + old_keys} are due for kind {kind}")
        if None in (*row[:old_keys], *(row[old_keys + place] for place in places[: len(table.key)])):
            raise NotApplicable("a row whose key is NULL cannot be told from others and is not synchronized; give it a key")
        old, key = row[:old_keys], [row[old_keys + place] for place in places[: len(table.key)]]
        rest = [row[old_keys + place] for place in places[len(table.key) :]]
        keys = [dialect.json_key(*pair) for values in (old, key) for pair in zip(values, table.key, strict=False)]
        texts.append("[" + ",".join([*keys, *map(dialect.json_value, rest)]) + "]")
    return table.name, what, tuple(columns[place].name for place in places), len(texts), SEPARATOR.join(texts)


def _table(listed: Mapping[str, ListedTable], dialect: Dialect, name: str) -> ListedTable:
    found = listed.get(name) or next((one for key, one in listed.items() if dialect.same_name(name, key)), None)
    if found is None:
        raise NotApplicable(f"table {name} is not listed in sync_tables.conf")
    return found


def _columns(table: ListedTable, columns_json: str) -> list[Column]:
    names = _json(columns_json, "columns_json")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise NotApplicable("columns_json is not a JSON array of column names")
    columns = []
    for name in names:
        column = next((c for c in table.columns if c.name == name), None)
        if column is None:
            raise NotApplicable(f"table {table.name} has no synchronized column {name}")
        columns.append(column)
    if len(set(names)) != len(names):
        raise NotApplicable("columns_json names a column twice")
    return columns


def _places(table: ListedTable, columns: list[Column], kind: Kind) -> list[int]:
    """The places of the values, the key's first in key order."""
    missing = [key.name for key in table.key if key not in columns]
    if missing:
        raise NotApplicable(f"the key column {missing[0]} of table {table.name} is not among the columns")
    keys = [columns.index(key) for key in table.key]
    if kind is Kind.DELETE:
        return keys
    return keys + [place for place, column in enumerate(columns) if column not in table.key]


def _rows(rows_json: str) -> list[list[Any]]:
    """One array, or several separated by commas."""
    parsed = _json(f"[{rows_json}]", "rows_json")
    if not isinstance(parsed, list) or not parsed or not all(isinstance(row, list) for row in parsed):
        raise NotApplicable("rows_json is not a JSON array of values, nor several of them separated by commas")
    return parsed


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text, parse_int=JsonNumber, parse_float=JsonNumber)
    except ValueError as exc:
        raise NotApplicable(f"{what} is not valid JSON") from exc
    except RecursionError as exc:
        raise NotApplicable(f"{what} is nested too deep") from exc
