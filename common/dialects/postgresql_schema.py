"""What PostgreSQL's catalogs tell of the tables that can be listed."""

from sqlalchemy.engine import Connection

from common.dialects.base import by_name
from common.schema import Column, OtherTrigger, Table

_TABLES_SQL = """
SELECT c.oid, c.relname,
       (SELECT array_agg(a.attname ORDER BY k.n)
          FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, n), pg_attribute a
         WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid AND a.attnum = k.attnum),
       (SELECT array_agg(DISTINCT p.relname) FROM pg_constraint f JOIN pg_class p ON p.oid = f.confrelid
         WHERE f.conrelid = c.oid AND f.contype = 'f'),
       CASE WHEN c.relkind = 'p' THEN 'is partitioned, and changes made in a partition itself would be missed'
            WHEN EXISTS (SELECT 1 FROM pg_inherits h WHERE c.oid IN (h.inhrelid, h.inhparent))
            THEN 'inherits or is inherited from, and changes made through the other table would be missed'
            WHEN EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate)
            THEN 'has a deferrable primary key, so that two rows may have one key for a while'
            WHEN EXISTS (SELECT 1 FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey::int2[])
             WHERE i.indrelid = c.oid AND i.indisprimary AND a.attgenerated <> '') THEN 'has a computed column in its primary key'
            WHEN EXISTS (SELECT 1 FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey::int2[])
             JOIN pg_type y ON y.oid = a.atttypid JOIN pg_type b ON b.oid = COALESCE(NULLIF(y.typbasetype, 0), y.oid)
             WHERE i.indrelid = c.oid AND i.indisprimary AND b.typtype = 'b' AND b.typelem = 0 AND NOT pg_type_is_visible(b.oid))
            THEN 'has a key whose type is in a schema outside of the search_path, so that its values cannot be compared; ALTER ROLE '
             || quote_ident(current_user) || ' SET search_path to one with it'
            WHEN c.relforcerowsecurity AND NOT (SELECT r.rolsuper OR r.rolbypassrls FROM pg_roles r WHERE r.rolname = current_user)
            THEN 'is under FORCE ROW LEVEL SECURITY, which hides rows from the user in database.url; give that user BYPASSRLS'
            WHEN c.relpersistence = 'u' THEN 'is UNLOGGED: a crash of the server empties it, and no other node knows; ALTER TABLE '
             || quote_ident(c.relname) || ' SET LOGGED, or take it from the list' END,
       NOT c.relhasrules AND NOT c.relrowsecurity
        -- with such a trigger the server's log quotes the row at which a COPY failed
        AND NOT EXISTS (SELECT 1 FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgtype & 3 = 3)
        AND NOT EXISTS (SELECT 1 FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
          AND (y.typnotnull OR EXISTS (SELECT 1 FROM pg_cast k WHERE k.castsource = 'text'::regtype AND k.castmethod = 'f'
            AND k.casttarget IN (y.oid, y.typbasetype) AND k.oid >= 16384))),
       (SELECT array_agg(a.attname) FROM pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
          AND (EXISTS (SELECT 1 FROM pg_constraint f WHERE f.conrelid = c.oid AND f.contype = 'f' AND (a.attnum = ANY (f.conkey)
              OR EXISTS (SELECT 1 FROM pg_attribute g
               WHERE g.attrelid = c.oid AND g.attgenerated <> '' AND g.attnum = ANY (f.conkey))))
            OR EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND (i.indisunique OR i.indisexclusion)
             AND (a.attnum = ANY (i.indkey::int2[]) OR i.indpred IS NOT NULL OR i.indexprs IS NOT NULL
              OR EXISTS (SELECT 1 FROM pg_attribute g
               WHERE g.attrelid = c.oid AND g.attgenerated <> '' AND g.attnum = ANY (i.indkey::int2[])))))),
       c.relhasrules OR EXISTS (SELECT 1 FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled = 'R')
FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
 AND c.relname NOT LIKE 'stsync\\_%%'
"""
_COLUMNS_SQL = """
SELECT a.attrelid, a.attname, quote_ident(n.nspname) || '.' || quote_ident(t.typname), a.attgenerated <> '',
       a.attnotnull AND NOT a.atthasdef AND a.attidentity = '', a.attidentity = 'a', false,
       CASE WHEN (t.typtype = 'e' OR COALESCE(NULLIF(t.typbasetype, 0), t.oid) = ANY ('{bool,bytea,"char",name,int8,int2,int4,'
         'text,oid,bpchar,varchar,date,time,timestamp,timestamptz,uuid,inet,cidr,macaddr,macaddr8}'::regtype[]::oid[]))
         AND COALESCE(l.collisdeterministic, true) THEN 'exact'
        WHEN t.typname = 'citext' THEN 'folded' ELSE 'unknown' END,
       COALESCE(NULLIF(l.collname, 'default'), ''), format_type(a.atttypid, a.atttypmod)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid LEFT JOIN pg_collation l ON l.oid = a.attcollation
 JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""
_OTHERS_SQL = """
SELECT t.tgrelid, t.tgname, pg_get_triggerdef(t.oid) || p.prosrc LIKE '%%stsync.replay%%', t.tgtype & 66 = 0,
       t.tgtype & 83 = 17 AND t.tgname::text COLLATE "C" < '!stsync_k_'
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid
WHERE NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND c.relnamespace = current_schema()::regnamespace
 AND t.tgname NOT LIKE 'stsync\\_%%' AND t.tgname NOT LIKE '!stsync\\_%%'
ORDER BY t.tgname
"""


def tables(connection: Connection) -> dict[str, Table]:
    """See CaptureDialect."""
    columns: dict[int, list[Column]] = {}
    for oid, *column in connection.exec_driver_sql(_COLUMNS_SQL):
        columns.setdefault(oid, []).append(Column(*column))
    others: dict[int, list[OtherTrigger]] = {}
    followed: set[int] = set()
    hindered: dict[int, str] = {}
    for oid, name, minds, after, earlier in connection.exec_driver_sql(_OTHERS_SQL):
        others.setdefault(oid, []).append(OtherTrigger(name, minds))
        if after:
            followed.add(oid)
        if earlier:
            hindered[oid] = (
                f'has a trigger named "{name}": PostgreSQL runs it before ours, whose names begin with "!"; rename it'
            )
    rows = connection.exec_driver_sql(_TABLES_SQL).all()
    return by_name(
        Table(
            name,
            tuple(columns.get(oid, ())),
            tuple(key or ()),
            frozenset(parents or ()),
            triggers=tuple(others.get(oid, ())),
            obstacle=obstacle or hindered.get(oid),
            followed=oid in followed,
            copyable=copyable,
            guarded=frozenset(guarded or ()),
            answered=answered,
        )
        for oid, name, key, parents, obstacle, copyable, guarded, answered in rows
    )
