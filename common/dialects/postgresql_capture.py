"""PostgreSQL's triggers that capture changes: statement-level, with transition tables."""

import hashlib
from collections.abc import Iterable, Sequence

from common.changes import Kind
from common.dialects.base import CANONICAL, UNCHECKED, Trigger, columns_json
from common.dialects.postgresql_waker import TELL
from common.dialects.postgresql_writer import quote
from common.schema import Column, ListedTable

ROWS_AN_OUTBOX_ROW = 1000
BYTES_AN_OUTBOX_ROW = 256 << 10
_FUNCTION_SETTINGS = (
    "SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET extra_float_digits = 1"
    " SET bytea_output = 'hex' SET lc_monetary = 'C' SET standard_conforming_strings = on"
)
# The functions run with their owner's rights and take over the path of `install`: a writer's temporary tables, which come first
# where the path does not name them, must never stand for ours.
_PATH_SQL = (
    "SELECT set_config('search_path', current_setting('search_path') || CASE WHEN current_setting('search_path') LIKE '%pg_temp%'"
    " THEN '' ELSE ', pg_temp' END, true)"
)
_CANONICAL = f"CASE current_setting('session_replication_role') WHEN 'replica' THEN {UNCHECKED} ELSE {CANONICAL} END"


def triggers(table: ListedTable) -> list[Trigger]:
    """What captures the changes of a table (see CaptureDialect).

    Statement-level, so that one outbox row holds many changes; key updates are captured row by row before the foreign
    keys cascade them and before other programs' row triggers (PostgreSQL fires them by name, and `!` comes before every
    letter and digit): TRAPS 4. They run for writers with session_replication_role = replica too; and whoever disables and
    enables all of a table's triggers leaves ours enabled in another way, by which it is seen.
    """
    return [
        _trigger(table, "stsync_i_", "AFTER INSERT", "REFERENCING NEW TABLE AS stsync_new", _insert_body(table)),
        _trigger(
            table,
            "stsync_u_",
            "AFTER UPDATE",
            "REFERENCING NEW TABLE AS stsync_new OLD TABLE AS stsync_old",
            _update_body(table),
        ),
        _trigger(table, "stsync_d_", "AFTER DELETE", "REFERENCING OLD TABLE AS stsync_old", _delete_body(table)),
        _trigger(table, "stsync_t_", "AFTER TRUNCATE", "", _outbox(table, "T", "'[]'", "1") + ";"),
        _trigger(
            table,
            "!stsync_k_",
            "AFTER UPDATE",
            "",
            _rekey_body(table),
            row_when=_rekeyed(table, "OLD", "NEW"),
        ),
    ]


def _trigger(
    table: ListedTable,
    prefix: str,
    when: str,
    referencing: str,
    body: str,
    row_when: str | None = None,
) -> Trigger:
    name = _name(prefix, table.name)
    each = f"FOR EACH ROW WHEN ({row_when})" if row_when else "FOR EACH STATEMENT"
    function = f"""CREATE OR REPLACE FUNCTION {quote(name)}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT {_FUNCTION_SETTINGS} AS $stsync$
#variable_conflict use_column
BEGIN
  IF current_setting('stsync.replay', true) = 'on' THEN RETURN NULL; END IF;
  {body}
  {TELL}
  RETURN NULL;
END $stsync$"""
    drop = f"DROP TRIGGER IF EXISTS {quote(name)} ON {quote(table.name)}"
    how = f"{when} ON {quote(table.name)} {referencing} {each} EXECUTE FUNCTION {quote(name)}()"
    create = f"CREATE OR REPLACE TRIGGER {quote(name)} {how}"  # its lock, unlike that of dropping, lets readers by
    always = f"ALTER TABLE {quote(table.name)} ENABLE ALWAYS TRIGGER {quote(name)}"
    return Trigger(
        name, table.name, (_PATH_SQL, function, create, always), (drop, f"DROP FUNCTION IF EXISTS {quote(name)}()")
    )


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _name(what: str, table: str) -> str:
    """A trigger's name within PostgreSQL's 63 bytes."""
    full = f"{what}{table}"
    if len(full.encode()) <= 63:
        return full
    return f"{what}{table.encode()[:30].decode(errors='ignore')}_{hashlib.sha256(table.encode()).hexdigest()[:12]}"


def _row(table: ListedTable, alias: str, columns: Iterable[Column] | None = None) -> str:
    values = ", ".join(f"{alias}.{quote(c.name)}::text" for c in (columns or table.columns))
    return f"pg_catalog.array_to_json(ARRAY[{values}])::text"


def _outbox(table: ListedTable, kind: str, rows: str, count: str, columns: Sequence[Column] | None = None) -> str:
    names = columns_json(c.name for c in (columns or table.columns))
    return (
        "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json, row_count, canonical)"
        f" SELECT {_literal(table.name)}, '{kind}', {_literal(names)}, {rows}, {count}, {_CANONICAL}"
    )


def _gathered(table: ListedTable, kind: str, rows: str, columns: Sequence[Column] | None = None) -> str:
    """One outbox row for up to ROWS_AN_OUTBOX_ROW changes and about BYTES_AN_OUTBOX_ROW; `rows` is a SELECT of the row's JSON
    text as j, which OFFSET 0 has made once, not at each place where it is read. A statement that changed one row, as most do, is
    spared the grouping."""
    changed = "stsync_old" if kind == Kind.DELETE else "stsync_new"
    one = f"{_outbox(table, kind, 'q.j', '1', columns)} FROM ({rows}) q;"
    number = f"(row_number() OVER w - 1) / {ROWS_AN_OUTBOX_ROW} AS g"
    size = f"sum(octet_length(q.j)) OVER w / {BYTES_AN_OUTBOX_ROW} AS b"
    many = (
        _outbox(table, kind, "string_agg(z.j, E',\\n')", "count(*)", columns)
        + f" FROM (SELECT q.j, {number}, {size} FROM ({rows} OFFSET 0) q WINDOW w AS (ROWS UNBOUNDED PRECEDING)) z"
        " GROUP BY z.g, z.b ORDER BY z.g, z.b;"
    )
    return f"IF EXISTS (SELECT FROM {changed} OFFSET 1) THEN {many} ELSE {one} END IF;"


def _inside(table: ListedTable, alias: str) -> str:
    return f"COALESCE((SELECT ({table.where}) FROM (SELECT {alias}.*) stsync_f), false)" if table.where else "true"


def _filtered(table: ListedTable) -> str:
    return f" WHERE ({table.where})" if table.where else ""


def _insert_body(table: ListedTable) -> str:
    rows = f"SELECT {_row(table, 'q')} AS j FROM stsync_new q{_filtered(table)}"
    if table.table.followed:
        rows = f"SELECT {_row(table, 's')} AS j FROM stsync_new n {_standing(table)} WHERE {_inside(table, 's')}"
    return _gathered(table, "I", rows)


def _delete_body(table: ListedTable) -> str:
    """With what stands under such a key by now: the same statement (MERGE, or a WITH that changes rows) or a trigger may have given it
    to another row, and that was captured before."""
    rows = f"SELECT {_row(table, 'q', table.key)} AS j FROM stsync_old q{_filtered(table)}"
    again = (
        _outbox(table, "I", _row(table, "s"), "1") + f" FROM stsync_old n {_standing(table)} WHERE {_inside(table, 's')};"
    )
    return "\n  ".join([_gathered(table, "D", rows, table.key), TELL, again])


def _standing(table: ListedTable) -> str:
    """Joins to n the rows as they stand, called s: a trigger of another program may have changed them again by now, and what
    that did was captured before (a statement's own triggers come after its row triggers and all that they do)."""
    keys = " AND ".join(f"s.{quote(c.name)} = n.{quote(c.name)}" for c in table.key)
    return f"JOIN {quote(table.name)} s ON {keys}"


def _rekeyed(table: ListedTable, old: str, new: str) -> str:
    """As texts, byte by byte, for to a collation two texts may be the same. And as values, where these are of the server's own types:
    the text of a float depends on settings, which where this is asked are the writer's. A dump has to be able to say all this."""
    differ = []
    for column in table.key:
        before, now = (f"{row}.{quote(column.name)}" for row in (old, new))
        if column.type.startswith("pg_catalog."):
            differ.append(f"{before} IS DISTINCT FROM {now}")
        differ.append(f'{before}::text COLLATE "C" IS DISTINCT FROM {now}::text')
    return " OR ".join(differ)


def _update_body(table: ListedTable) -> str:
    join = " AND ".join(f"n.{quote(c.name)} = o.{quote(c.name)}" for c in table.key)
    pairs = f"FROM stsync_new n JOIN stsync_old o ON {join} AND NOT ({_rekeyed(table, 'o', 'n')})"
    now = "n"
    if table.table.followed:
        pairs, now = f"{pairs} {_standing(table)}", "s"
    rest = table.columns[len(table.key) :]
    old, new = _inside(table, "o"), _inside(table, now)
    body = ""
    if rest:
        news, olds = (", ".join(f"{a}.{quote(c.name)}::text" for c in rest) for a in "no")
        # Byte by byte: texts of two collations cannot be compared at all.
        changed = f'ARRAY[{news}] COLLATE "C" IS DISTINCT FROM ARRAY[{olds}]'
        both = f" AND {old} AND {new}" if table.where else ""
        body = _gathered(table, "U", f"SELECT {_row(table, now)} AS j {pairs} WHERE {changed}{both}")
    if not table.where:
        return body or "PERFORM 1 WHERE false;"
    gone = f"SELECT {_row(table, 'o', table.key)} AS j {pairs} WHERE {old} AND NOT {new}"
    come = f"SELECT {_row(table, now)} AS j {pairs} WHERE {new} AND NOT {old}"
    return "\n  ".join([body, TELL, _gathered(table, "D", gone, table.key), TELL, _gathered(table, "I", come)])


def _rekey_body(table: ListedTable) -> str:
    olds = [f"OLD.{quote(c.name)}::text" for c in table.key]
    news = [f"NEW.{quote(c.name)}::text" for c in table.columns]
    both = f"array_to_json(ARRAY[{', '.join([*olds, *news])}])::text"
    rekey = _outbox(table, "K", both, "1") + ";"
    if not table.where:
        return rekey
    gone = _outbox(table, "D", _row(table, "OLD", table.key), "1", table.key)
    come = _outbox(table, "I", _row(table, "NEW"), "1")
    old, new = _inside(table, "OLD"), _inside(table, "NEW")
    return f"IF {old} AND {new} THEN {rekey} ELSIF {old} THEN {gone}; ELSIF {new} THEN {come}; ELSE RETURN NULL; END IF;"
