"""SQLite's capture triggers as SQL.

Everything here rests on four facts of SQLite:

- Of several triggers for one event it runs the youngest first. `install` makes ours the youngest, so that what other programs'
  triggers do in turn is captured after what they react to; where one is made later, `status` says so.
- A trigger made by another program may have changed a row again by the time ours sees its change: rows are captured as they stand.
- `OR REPLACE` deletes the rows that are in the way and fires no delete trigger (TRAPS 2). Before each insert, and each update of a
  unique column, those rows are *noted*, under the unique values that they stand in the way of: the *cause*. Afterwards, whichever
  of them are gone are captured as deleted, before what replaced them. A note that is left behind (by an insert that was ignored, or
  became an update) says nothing but where to look, and is forgotten with the next cause of its kind, or by the relay. Not seen are
  rows that are in the way by a unique index over an expression, and rows that another program's BEFORE trigger puts there only then.
- A primary key that is no INTEGER may hold NULL, any number of times. Such rows have no identity: they are treated as outside of the
  row filter, and handed to the relay as what it rejects and tells (TRAPS 4).
"""

from collections.abc import Iterable, Sequence

from common.dialects.base import Trigger, columns_json
from common.schema import Column, ListedTable

MAX_KEY = 16  # as many columns has a note for the key of a row
# Operands of one operator in a row: an expression may be 1,000 deep, and a table 2,000 columns wide (limits.html).
_DEEP = 100
_REPLAYING = "NOT EXISTS (SELECT 1 FROM stsync_replaying)"


def quote(name: str) -> str:
    """An identifier, quoted."""
    return '"' + name.replace('"', '""') + '"'


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _value(reference: str) -> str:
    """A value as JSON text that keeps its storage class: integers bare, reals and blobs tagged (TRAPS 30)."""
    return (
        f"CASE typeof({reference}) WHEN 'integer' THEN {reference} WHEN 'text' THEN json_quote({reference})"
        f" WHEN 'null' THEN 'null' WHEN 'real' THEN '{{\"r\":\"' || printf('%!.17g', {reference}) || '\"}}'"
        f" ELSE '{{\"x\":\"' || hex({reference}) || '\"}}' END"
    )


def row_json(references: Iterable[str]) -> str:
    """An SQL expression: the JSON array of these values."""
    return "'[' || " + _chained(" || ',' || ", map(_value, references)) + " || ']'"


def _chained(operator: str, operands: Iterable[str]) -> str:
    """Joined by an associative operator, in groups where there are many."""
    parts = list(operands)
    if len(parts) <= _DEEP:
        return operator.join(parts)
    return operator.join(f"({operator.join(parts[begin : begin + _DEEP])})" for begin in range(0, len(parts), _DEEP))


def typed(table: ListedTable, values: dict[str, str]) -> str:
    """Values as a row set whose columns have the table's own affinity and collation, so that a filter means the same over it.

    A compound SELECT takes both from its first part; the LIMIT keeps SQLite from taking it apart again.
    """
    names, given = ", ".join(map(quote, values)), ", ".join(values.values())
    return f"(SELECT {names} FROM {quote(table.name)} WHERE 0 UNION ALL SELECT {given} LIMIT -1)"


def triggers(table: ListedTable) -> list[Trigger]:
    """What captures every change of the table, in the order in which it has to be made: what is to run first comes last."""
    old, new, same_key = _inside(table, "OLD"), _inside(table, "NEW"), _same(table.key)
    row = _of("s", table.columns)
    insert = _emit(table, "I", row, table.columns, _standing(table, "NEW"))
    delete = _emit(table, "D", _of("OLD", table.key), table.key, f" WHERE NOT EXISTS (SELECT 1{_standing(table, 'OLD')})")
    update = _emit(table, "U", row, table.columns, _standing(table, "NEW"))
    rekey = _emit(table, "K", [*_of("OLD", table.key), *row], table.columns, _standing(table, "NEW"))
    found = [
        *_nameless(table),
        _trigger(table, "stsync_i_", "AFTER INSERT", [new], insert),
        _trigger(table, "stsync_d_", "AFTER DELETE", [old], delete),
        _trigger(
            table,
            "stsync_u_",
            "AFTER UPDATE",
            [old, new, same_key, f"NOT ({_same(table.columns[len(table.key) :])})"],
            update,
        ),
        _trigger(table, "stsync_k_", "AFTER UPDATE", [old, new, f"NOT ({same_key})"], rekey),
    ]
    if new:
        found.append(_trigger(table, "stsync_o_", "AFTER UPDATE", [old, f"NOT ({new})"], delete))
        found.append(_trigger(table, "stsync_c_", "AFTER UPDATE", [new, f"NOT ({old})"], insert))
    return found + _replaced(table)


def _trigger(table: ListedTable, prefix: str, event: str, conditions: Iterable[str], body: str) -> Trigger:
    name = f"{prefix}{table.name}"
    when = " AND ".join([_REPLAYING, *filter(None, conditions)])
    drop = f"DROP TRIGGER IF EXISTS {quote(name)}"
    create = f"CREATE TRIGGER {quote(name)} {event} ON {quote(table.name)} FOR EACH ROW WHEN {when}\nBEGIN\n  {body}\nEND"
    return Trigger(name, table.name, (drop, create), (drop,))


def _of(alias: str, columns: Iterable[Column]) -> list[str]:
    return [f"{alias}.{quote(column.name)}" for column in columns]


def _emit(
    table: ListedTable,
    kind: str,
    row: Sequence[str],
    columns: Iterable[Column],
    source: str = "",
    *,
    distinct: bool = False,
    count: int = 1,
    canonical: int = 1,
) -> str:
    names, word = columns_json(column.name for column in columns), "SELECT DISTINCT" if distinct else "SELECT"
    values = f"{_literal(table.name)}, '{kind}', {_literal(names)}, {row_json(row)}, {count}, {canonical}"
    into = "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json, row_count, canonical)"
    return f"{into} {word} {values}{source};"


def _standing(table: ListedTable, alias: str) -> str:
    """FROM the row with this key as it stands inside the row filter, called s."""
    keys = " AND ".join(f"s.{quote(c.name)} = {alias}.{quote(c.name)}" for c in table.key)
    return f" FROM {_rows(table)} s WHERE {keys}"


def _rows(table: ListedTable) -> str:
    """The rows inside the row filter."""
    if not table.where:
        return quote(table.name)
    columns = ", ".join(quote(column.name) for column in table.table.columns)
    return f"(SELECT {columns} FROM {quote(table.name)} WHERE ({table.where}))"


def inside(table: ListedTable) -> str:
    """FROM and WHERE of the rows inside the row filter that have a key; more conditions may follow."""
    named = [f"{quote(column.name)} IS NOT NULL" for column in _nullable(table)]
    filtered = [f"({table.where})"] if table.where else []
    return f" FROM {quote(table.name)} WHERE {' AND '.join([*filtered, *named]) or '1'}"


def _inside(table: ListedTable, alias: str) -> str:
    """Whether that row is inside the row filter and has a key; empty where every row is and has."""
    parts = [f"{reference} IS NOT NULL" for reference in _of(alias, _nullable(table))]
    if table.where:
        values = {column.name: f"{alias}.{quote(column.name)}" for column in table.table.columns}
        parts.append(f"COALESCE((SELECT ({table.where}) FROM {typed(table, values)}), 0)")
    return " AND ".join(parts)


def _nullable(table: ListedTable) -> list[Column]:
    return [column for column in table.key if column.nullable]


def _nameless(table: ListedTable) -> list[Trigger]:
    """Rows that come to have no key are handed over as the program's own mistake."""
    columns = _nullable(table)
    if not columns:
        return []
    lacks = "(" + " OR ".join(f"{reference} IS NULL" for reference in _of("NEW", columns)) + ")"
    had = " AND ".join(f"{reference} IS NOT NULL" for reference in _of("OLD", columns))
    row = _emit(table, "I", _of("NEW", table.columns), table.columns, canonical=0)
    return [
        _trigger(table, "stsync_n_", "AFTER INSERT", [lacks], row),
        _trigger(table, "stsync_m_", "AFTER UPDATE", [lacks, had], row),
    ]


def _same(columns: Sequence[Column]) -> str:
    """Equal to the byte, whatever the column's collation, and of the same storage class."""
    return _identical(_of("OLD", columns), _of("NEW", columns)) or "1"


def _replaced(table: ListedTable) -> list[Trigger]:
    """See the module: noted before, captured as deleted after, where it is gone."""
    watched = {name for unique in table.table.uniques for name in unique.columns}
    changed = f"NOT ({_same([column for column in table.table.columns if column.name in watched])})"
    noted = f"EXISTS (SELECT 1 FROM stsync_replacing WHERE table_name = {_literal(table.name)})"
    key, *others = _causes(table)
    mine = f"table_name = {_literal(table.name)} AND cause IN ({', '.join([key, *others])})"
    inserted = f"{mine} AND place IS NULL"  # what an ignored update left has a place that is another's by now
    taken = f"cause = {key} AND NOT ({_same(table.key)})"  # whatever had the key of the row that now has it
    gone = f"NOT EXISTS (SELECT 1 FROM {_rows(table)} s WHERE {_stands(table)})"
    deleted = f"(({taken}) OR {gone})"
    places = f"SELECT place FROM stsync_replacing n WHERE {mine} AND {deleted}"
    kept = f"UPDATE stsync_outbox SET row_count = 1 WHERE id IN ({places});"
    forget = "DELETE FROM stsync_replacing WHERE "
    found = [
        _trigger(table, "stsync_x_", "AFTER UPDATE", [noted, f"NOT ({changed})"], f"{forget}{inserted};"),
        _trigger(table, "stsync_q_", "AFTER UPDATE", [noted, changed], f"{kept}\n  {_deleted(table, mine, deleted)}"),
        _trigger(
            table, "stsync_b_", "BEFORE UPDATE", [changed], "\n  ".join([f"{forget}{mine};", *_notes(table, updating=True)])
        ),
    ]
    if table.where or len(table.table.uniques) > 1 or any(column.equality != "exact" for column in table.key):
        found.append(_trigger(table, "stsync_p_", "AFTER INSERT", [noted], _deleted(table, inserted, gone)))
        found.append(_trigger(table, "stsync_a_", "BEFORE INSERT", [], "\n  ".join(_notes(table, updating=False))))
    return found


def _deleted(table: ListedTable, mine: str, which: str) -> str:
    """Capture those of these notes as deleted rows, and forget them all."""
    late = f" FROM stsync_replacing n WHERE {mine} AND place IS NULL AND {which}"
    return f"{_emit(table, 'D', _noted_key(table), table.key, late, distinct=True)}\n  DELETE FROM stsync_replacing WHERE {mine};"


def _causes(table: ListedTable) -> list[str]:
    """For each unique key of the table, the primary one first, its values in the row that arrives, as text."""
    return [
        f"'{place}' || {row_json(f'NEW.{quote(name)}' for name in unique.columns)}"
        for place, unique in enumerate(table.table.uniques)
    ]


def _noted_key(table: ListedTable) -> list[str]:
    return [f"n.k{place}" for place in range(len(table.key))]


def _stands(table: ListedTable) -> str:
    """The noted row s was not deleted: it stands there to the byte, or another one than the arriving has an equal key, so that the
    note must be an old one."""
    keys, noted = _of("s", table.key), _noted_key(table)
    equal = " AND ".join(f"{key} = {value}" for key, value in zip(keys, noted, strict=True))
    arriving = " AND ".join(f"{key} = {new}" for key, new in zip(keys, _of("NEW", table.key), strict=True))
    return f"{equal} AND ({_identical(keys, noted)} OR NOT ({arriving}))"


def _identical(left: Iterable[str], right: Iterable[str]) -> str:
    pairs = zip(left, right, strict=True)
    return _chained(
        " AND ", (f"{one} COLLATE BINARY IS {other} AND typeof({one}) = typeof({other})" for one, other in pairs)
    )


def _notes(table: ListedTable, *, updating: bool) -> list[str]:
    """Note the rows that stand in the way of the one that arrives, but for itself.

    An update moves children along, by cascade, before our triggers see it: what is deleted for it has to stand before them, and
    keeps a place in the outbox (a change of no rows, which the relay skips).
    """
    itself = " AND ".join(f"t.{quote(c.name)} IS OLD.{quote(c.name)}" for c in table.key)
    found = []
    for cause, unique in zip(_causes(table), table.table.uniques, strict=True):
        met = " AND ".join(
            f"t.{quote(column)} = NEW.{quote(column)} COLLATE {quote(collation)}"
            for column, collation in zip(unique.columns, unique.collations, strict=True)
        )
        if not updating:
            found.append(_note(table, cause, "NULL", f"{met} AND NOT EXISTS ({_known(table, cause)})"))
        elif unique.partial:
            found.append(_note(table, cause, "NULL", f"{met} AND NOT ({itself})"))
        else:
            source = f" FROM {_rows(table)} t WHERE {met} AND NOT ({itself})"
            found.append(_emit(table, "D", _of("t", table.key), table.key, source, count=0))
            found.append(_note(table, cause, "(SELECT max(id) FROM stsync_outbox)", f"{met} AND NOT ({itself})"))
    return found


def _note(table: ListedTable, cause: str, place: str, which: str) -> str:
    columns, keys = ", ".join(f"k{number}" for number in range(len(table.key))), ", ".join(_of("t", table.key))
    return (
        f"INSERT INTO stsync_replacing (table_name, cause, place, {columns})"
        f" SELECT {_literal(table.name)}, {cause}, {place}, {keys} FROM {_rows(table)} t WHERE {which};"
    )


def _known(table: ListedTable, cause: str) -> str:
    same, name = _identical(_noted_key(table), _of("t", table.key)), _literal(table.name)
    return (
        f"SELECT 1 FROM stsync_replacing n WHERE n.table_name = {name} AND n.cause = {cause} AND n.place IS NULL AND {same}"
    )
