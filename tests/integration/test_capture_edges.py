"""Where capture meets what other programs put into the database: their triggers, filters, wide rows, bad rows."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from common.errors import Misconfigured
from deploy.servers import PrivateMariaDB
from publisher import capture
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, Cluster, Node, make_cluster, wait_for
from tests.integration.conftest import MakeCluster, MakePipeline
from tests.pipeline import Pipeline

ITEM = "CREATE TABLE item (id BIGINT PRIMARY KEY, name VARCHAR(40), stamp BIGINT NOT NULL DEFAULT 0)"
PG_STAMP = """CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
 IF current_setting('stsync.replay', true) = 'on' OR pg_trigger_depth() > 1 THEN RETURN NULL; END IF;
 UPDATE item SET stamp = stamp + 1 WHERE id = NEW.id; RETURN NULL; END $$"""
PG_BACK = """CREATE FUNCTION back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
 IF current_setting('stsync.replay', true) = 'on' THEN RETURN NULL; END IF;
 IF OLD.id = 7 THEN INSERT INTO item VALUES (7, 'never goes', 0); END IF; RETURN NULL; END $$"""
STAMPING = {
    "postgresql": [
        PG_STAMP,
        PG_BACK,
        "CREATE TRIGGER b_stamp AFTER INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION stamp()",
        "CREATE TRIGGER b_back AFTER DELETE ON item FOR EACH ROW EXECUTE FUNCTION back()",
    ],
    "sqlite": [
        "CREATE TRIGGER b_stamp AFTER INSERT ON item WHEN NOT EXISTS (SELECT 1 FROM stsync_replaying)"
        " BEGIN UPDATE item SET stamp = stamp + 1 WHERE id = NEW.id; END",
        "CREATE TRIGGER b_again AFTER UPDATE OF name ON item WHEN NOT EXISTS (SELECT 1 FROM stsync_replaying)"
        " BEGIN UPDATE item SET stamp = stamp + 1 WHERE id = NEW.id; END",
        "CREATE TRIGGER b_back AFTER DELETE ON item WHEN OLD.id = 7 AND NOT EXISTS (SELECT 1 FROM stsync_replaying)"
        " BEGIN INSERT INTO item VALUES (7, 'never goes', 0); END",
    ],
}


@pytest.mark.parametrize("database_kind", ["postgresql", "sqlite"])
@pytest.mark.parametrize("tables", ["item\n", 'item where="stamp < 3"\n'], ids=["whole", "filtered"])
def test_a_row_that_a_trigger_changes_again_arrives_as_it_stands(
    new_cluster: MakeCluster, database_kind: str, tables: str
) -> None:
    """TRAPS 1: the inner change is captured before the outer one, and must not be overwritten by it."""
    cluster: Cluster = new_cluster(database_kind, schema=(ITEM,), tables=tables, nodes=("st1", "st2"))
    primary = cluster.primary
    primary.execute(*STAMPING[database_kind])  # younger than ours, and SQLite runs the youngest first
    assert any("other programs' triggers" in warning for warning in primary.status()["warnings"])
    with primary.database.connect() as connection:
        again = capture.plan(primary.database, connection, primary.settings)
    assert again.sql, "`install` notices the new triggers"
    assert primary.command("install").returncode == 0
    assert primary.faults() == []
    cluster.start()
    primary.execute("INSERT INTO item VALUES (1, 'one', 0), (2, 'two', 0), (7, 'seven', 0)")
    cluster.wait_equal()
    primary.execute("UPDATE item SET name = 'eins' WHERE id = 1", "DELETE FROM item WHERE id IN (2, 7)")
    cluster.wait_equal()
    primary.execute("UPDATE item SET name = 'un' WHERE id = 1", "UPDATE item SET id = 3 WHERE id = 1")
    cluster.wait_equal()
    stamps = {"postgresql": (3, 4), "sqlite": (3, 3)}[database_kind]
    assert primary.rows("SELECT id, stamp FROM item WHERE id = 3") == [stamps]


def test_install_names_triggers_that_would_run_again_in_replay(new_node: "NewNode", database_kind: str) -> None:
    """DESIGN §4: what another program's trigger does is captured on the primary, and would happen twice on a secondary."""
    node = new_node((ITEM, "CREATE TABLE log (id BIGINT PRIMARY KEY)"), "item\n")
    body = {
        "postgresql": "FOR EACH ROW EXECUTE FUNCTION other()",
        "mariadb": "FOR EACH ROW INSERT INTO log VALUES (NEW.id)",
        "sqlite": "BEGIN INSERT INTO log VALUES (NEW.id); END",
    }
    if database_kind == "postgresql":
        node.execute("CREATE FUNCTION other() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$")
    node.execute(f"CREATE TRIGGER other AFTER INSERT ON item {body[database_kind]}")
    done = node.command("install")
    assert done.returncode == 0
    assert "trigger other" in done.stderr
    assert node.database.dialect.replay_mark in done.stderr


class NewNode:
    """Makes primaries with capture installed and no service: what stands in the outbox stays there."""

    def __init__(self, directory: Path, kind: str, new_database: NewDatabase) -> None:
        self._directory, self._kind, self._new_database = directory, kind, new_database
        self.made: list[Node] = []

    def __call__(self, schema: tuple[str, ...], tables: str) -> Node:
        home = self._directory / str(len(self.made))
        cluster = make_cluster(home, self._kind, NO_BROKER, self._new_database, schema=schema, tables=tables, nodes=("st1",))
        self.made.append(cluster.primary)
        return cluster.primary


@pytest.fixture
def new_node(tmp_path: Path, database_kind: str, new_database: NewDatabase) -> Iterator[NewNode]:
    factory = NewNode(tmp_path, database_kind, new_database)
    yield factory
    for node in factory.made:
        node.close()


def refused(node: Node, tables: str) -> str:
    (node.home / "conf/sync_tables.conf").write_text(tables)
    with pytest.raises(Misconfigured) as caught:
        capture.install(node.database, node.settings)
    assert node.command("install").returncode == 2
    return str(caught.value)


@pytest.mark.parametrize("database_kind", ["mariadb"])
def test_a_cascade_that_fires_no_trigger_needs_its_parent_whole(new_node: NewNode) -> None:
    """TRAPS 2: MariaDB fires no triggers for cascades; the secondary does the same only where it has the same parent."""
    schema = (
        "CREATE TABLE parent (id BIGINT PRIMARY KEY, kind INT)",
        "CREATE TABLE child (id BIGINT PRIMARY KEY, parent BIGINT, FOREIGN KEY (parent) REFERENCES parent (id) ON DELETE SET NULL)",
    )
    node = new_node(schema, "parent\nchild\n")
    for tables in ("child\n", 'parent where="kind = 1"\nchild\n'):
        reason = refused(node, tables)
        assert "parent" in reason
        assert "child" in reason
        assert "sync_tables.conf:" in reason


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_tables_that_cannot_be_captured_whole_are_refused(new_node: NewNode) -> None:
    """TRAPS 2: a partition's own changes fire no trigger of the whole; so with inheritance."""
    schema = (
        "CREATE TABLE plain (id BIGINT PRIMARY KEY)",
        "CREATE TABLE parts (id BIGINT PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE base (id BIGINT PRIMARY KEY)",
        "CREATE TABLE derived (PRIMARY KEY (id)) INHERITS (base)",
        "CREATE TABLE late (id BIGINT PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)",
    )
    node = new_node(schema, "plain\n")
    assert "partition" in refused(node, "parts\n")
    assert "inherit" in refused(node, "base\n")
    assert "inherit" in refused(node, "derived\n")
    assert "deferrable" in refused(node, "late\n")


FILTERED = {
    "sqlite": ("CREATE TABLE f (id INTEGER PRIMARY KEY, code TEXT, tag TEXT COLLATE NOCASE)", 'f where="code = 5 AND tag = \'x\'"\n'),
    "mariadb": (
        "CREATE TABLE f (id BIGINT PRIMARY KEY, code VARCHAR(9), tag VARCHAR(9) COLLATE utf8mb4_general_ci, n DECIMAL(9,2), d DATE)",
        "f where=\"code = 5 AND tag = 'x' AND n > 9.5 AND d > '2001-2-3'\"\n",
    ),
    "postgresql": (
        "CREATE TABLE f (id BIGINT PRIMARY KEY, code VARCHAR(9), tag VARCHAR(9), n DECIMAL(9,2), d DATE)",
        "f where=\"code = '5' AND lower(tag) = 'x' AND n > 9.5 AND d > '2001-2-3'\"\n",
    ),
}  # fmt: skip


def test_a_row_filter_means_the_same_everywhere(new_cluster: MakeCluster, database_kind: str) -> None:
    """TRAPS 32: in the triggers, over what arrives and over what stands: with the columns' own types and collations."""
    table, listed = FILTERED[database_kind]
    cluster: Cluster = new_cluster(database_kind, schema=(table,), tables=listed, nodes=("st1", "st2"))
    cluster.start()
    primary, node = cluster.primary, cluster.nodes["st2"]
    more = "" if database_kind == "sqlite" else ", 10.00, '2001-10-10'"
    primary.execute(f"INSERT INTO f VALUES (1, '5', 'X'{more})", f"INSERT INTO f VALUES (2, '6', 'x'{more})")
    cluster.wait_equal()
    assert node.rows("SELECT id FROM f") == [(1,)]
    primary.execute("UPDATE f SET tag = 'x' WHERE id = 1", "UPDATE f SET code = '5' WHERE id = 2")
    cluster.wait_equal()
    assert node.rows("SELECT id, tag FROM f ORDER BY id") == [(1, "x"), (2, "x")]
    primary.execute("UPDATE f SET id = 9 WHERE id = 1", "UPDATE f SET tag = 'no' WHERE id = 2")
    cluster.wait_equal()
    assert node.rows("SELECT id FROM f") == [(9,)]
    assert node.rows("SELECT * FROM stsync_quarantine") == []


@pytest.mark.parametrize("database_kind", ["mariadb"])
@pytest.mark.parametrize("zone", ["-05:00", "+00:00", "+11:00"])
def test_a_row_filter_over_a_time_does_not_depend_on_the_writers_zone(
    tmp_path: Path, new_database: NewDatabase, database_kind: str, zone: str
) -> None:
    """TRAPS 30, 32: triggers have no time zone of their own here; in a row filter a TIMESTAMP is its date and time in UTC."""
    schema = (
        "CREATE TABLE f (id INT PRIMARY KEY, valid TIMESTAMP(6) NULL, at TIMESTAMP NOT NULL DEFAULT '2020-01-01 00:00:00')"
    )
    tables = "f where=\"valid > '2026-1-1 0:00:00.5' AND at <> 0\"\n"
    cluster = make_cluster(
        tmp_path / "c", database_kind, NO_BROKER, new_database, schema=(schema,), tables=tables, nodes=("st1", "st2")
    )
    pipeline = Pipeline(cluster)

    def write(*statements: str) -> None:
        pipeline.primary.execute("SET SESSION sql_mode = ''", f"SET SESSION time_zone = '{zone}'", *statements)
        pipeline.move()
        assert pipeline.wrong() == []

    # 1767225600 is 2026-01-01 00:00:00 UTC
    for number, seconds in enumerate(("1767225600.400000", "1767225600.600000", "1767225600.500000", "NULL", "1767229200")):
        write(f"INSERT INTO f (id, valid) VALUES ({number}, FROM_UNIXTIME({seconds}))")
    assert pipeline.secondary.rows("SELECT id FROM f ORDER BY id") == [(1,), (4,)]
    write("UPDATE f SET at = 0 WHERE id = 1", "UPDATE f SET valid = FROM_UNIXTIME(1767225601) WHERE id = 0")
    assert pipeline.secondary.rows("SELECT id FROM f ORDER BY id") == [(0,), (4,)]
    write("UPDATE f SET valid = FROM_UNIXTIME(1767225600) WHERE id = 4", "DELETE FROM f WHERE id = 0")
    assert pipeline.secondary.rows("SELECT id FROM f") == []
    pipeline.close()


NAMES = '["id","name","stamp"]'
BAD_ROWS = {
    "a lone surrogate": (r'[1,"\ud800",0]', NAMES, 1, 0),
    "too deep": ("[1," + "[" * 5000 + "]" * 5000 + ",0]", NAMES, 1, 0),
    "an object": ('[1,{"a":1},0]', NAMES, 1, 0),
    "as a trigger's, of two rows": ('["1","a","0"]', NAMES, 2, 1),
    "as a trigger's, of no array": ('"1"', NAMES, 1, 1),
    "as a trigger's, without columns": ('["1","a","0"]', "5", 1, 1),
    "as a trigger's, of nameless columns": ('["1","a","0"]', "[1,2,3]", 1, 1),
    "as a trigger's, of half a list": ('["1","a","0"]', '["id"', 1, 1),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_a_row_of_the_outbox_that_is_no_change_stops_nobody(new_cluster: MakeCluster, database_kind: str, what: str) -> None:
    """README, the outbox contract: it is set aside with its reason, and everything else goes on."""
    cluster: Cluster = new_cluster(database_kind, schema=(ITEM,), tables="item\n", nodes=("st1", "st2"))
    cluster.start()
    primary = cluster.primary
    rows, columns, count, canonical = BAD_ROWS[what]
    primary.execute(
        "INSERT INTO item VALUES (4, 'four', 0)",
        "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json, row_count, canonical)"
        " VALUES ('item', 'I', :columns, :rows, :count, :canonical)",
        columns=columns,
        rows=rows,
        count=count,
        canonical=canonical,
    )
    primary.execute("INSERT INTO item VALUES (5, 'five', 0)")
    cluster.wait_equal()
    assert primary.rows("SELECT count(*) FROM stsync_rejected") == [(1,)]
    assert cluster.nodes["st2"].rows("SELECT id FROM item ORDER BY id") == [(4,), (5,)]


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_text_that_is_not_utf8_is_set_aside(new_cluster: MakeCluster, database_kind: str) -> None:
    """TRAPS 30: SQLite stores whatever bytes a program calls text; it is told, and everything else goes on."""
    cluster: Cluster = new_cluster(database_kind, schema=(ITEM,), tables="item\n", nodes=("st1", "st2"))
    cluster.start()
    primary = cluster.primary
    primary.execute("INSERT INTO item VALUES (1, CAST(x'ff80' AS TEXT), 0)", "INSERT INTO item VALUES (2, 'two', 0)")
    for table, columns in (
        ("CAST(x'ff' AS TEXT)", "'[\"id\"]'"),
        ("'item'", """CAST('["id' || CAST(x'ff' AS TEXT) || '"]' AS TEXT)"""),
    ):
        primary.execute(
            "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json, canonical)"
            f""" VALUES ({table}, 'D', {columns}, '["1"]', 1)"""
        )
    primary.execute("INSERT INTO item VALUES (3, 'a' || char(0) || 'b', 0)")
    cluster.nodes["st2"].execute("INSERT INTO item VALUES (1, CAST(x'ff80' AS TEXT), 0)")  # what cannot be sent
    cluster.wait_equal()
    assert primary.rows("SELECT count(*) FROM stsync_rejected WHERE reason LIKE '%UTF-8%'") == [(3,)]
    found = cluster.nodes["st2"].rows("SELECT id, hex(name), typeof(name) FROM item WHERE id > 1 ORDER BY id")
    assert found == [(2, "74776F", "text"), (3, "610062", "text")]
    assert "not valid UTF-8" in primary.command("status").stdout


@pytest.mark.parametrize("many", [1, 5_000], ids=["alone", "among many"])
def test_half_of_a_surrogate_pair_is_set_aside(new_pipeline: MakePipeline, many: int) -> None:
    """TRAPS 30: to MariaDB it is a character; elsewhere it is none."""
    pipeline = new_pipeline("mariadb", "CREATE TABLE item (id BIGINT PRIMARY KEY, name VARCHAR(40))", tables="item\n")
    pipeline.primary.execute(
        "INSERT INTO item VALUES (-1, _utf8mb4 X'EDA0BDEDB880'), (-2, _utf8mb4 X'EDA080')",
        f"INSERT INTO item SELECT seq, CONCAT('plain ä ', seq) FROM seq_1_to_{many}",
        "INSERT INTO item VALUES (0, 'after')",
    )
    pipeline.move()
    assert pipeline.primary.rows("SELECT count(*) FROM stsync_rejected WHERE reason LIKE '%UTF-8%'") == [(2,)]
    assert pipeline.secondary.rows("SELECT count(*), MIN(id) FROM item") == [(many + 1, 0)]
    pipeline.primary.execute("INSERT INTO item VALUES (9999, 'later')")
    pipeline.move()
    assert pipeline.secondary.rows("SELECT name FROM item WHERE id = 9999") == [("later",)]


def test_many_wide_rows_in_one_statement_arrive(new_cluster: MakeCluster, database_kind: str) -> None:
    """TRAPS 17: no change in the log is larger than a secondary takes, however wide the rows of one statement are."""
    settings = "[replay]\nmax_change_bytes = 2097152\n"
    schema = ("CREATE TABLE wide (id BIGINT PRIMARY KEY, body TEXT)",)
    cluster: Cluster = new_cluster(database_kind, schema=schema, tables="wide\n", nodes=("st1", "st2"), settings=settings)
    cluster.start()
    with cluster.primary.engine.connect() as connection:
        connection.execute(
            text("INSERT INTO wide VALUES (:i, :b)"), [{"i": one, "b": f"{one}" + "x" * 20_000} for one in range(300)]
        )
        connection.execute(
            text(
                "UPDATE wide SET body = body || 'y'"
                if database_kind != "mariadb"
                else "UPDATE wide SET body = CONCAT(body, 'y')"
            )
        )
        connection.commit()
    cluster.wait_equal()


@pytest.mark.parametrize("database_kind", ["mariadb"])
def test_a_row_wider_than_a_packet_is_an_error_for_its_writer(new_node: NewNode) -> None:
    """TRAPS 30: MariaDB's functions give NULL beyond max_allowed_packet; the change must not be lost for it."""
    node = new_node(("CREATE TABLE wide (id BIGINT PRIMARY KEY, body LONGTEXT, more LONGTEXT)",), "wide\n")
    (packet,) = node.rows("SELECT @@max_allowed_packet")[0]
    for mode in ("STRICT_ALL_TABLES", ""):
        with node.engine.connect() as connection:
            connection.execute(text(f"SET sql_mode = '{mode}'"))
            with pytest.raises(Exception, match=r"(?i)null|packet"):
                connection.execute(
                    text("INSERT INTO wide VALUES (1, REPEAT('a', :n), REPEAT('b', :n))"), {"n": packet // 2 + 1000}
                )
            connection.rollback()
    assert node.rows("SELECT count(*) FROM wide") == [(0,)]


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_an_identity_that_is_always_generated_keeps_its_value(new_cluster: MakeCluster, database_kind: str) -> None:
    schema = ("CREATE TABLE thing (code TEXT PRIMARY KEY, n BIGINT GENERATED ALWAYS AS IDENTITY, note TEXT)",)
    cluster: Cluster = new_cluster(database_kind, schema=schema, tables="thing\n", nodes=("st1", "st2"))
    cluster.start()
    primary = cluster.primary
    primary.execute("INSERT INTO thing (code) VALUES ('gone')", "DELETE FROM thing", "INSERT INTO thing (code) VALUES ('a')")
    primary.execute("UPDATE thing SET note = 'x'")
    primary.execute("UPDATE thing SET code = 'b'")
    cluster.wait_equal()
    assert cluster.nodes["st2"].rows("SELECT code, n, note FROM thing") == [("b", 2, "x")]


@pytest.mark.parametrize("database_kind", ["mariadb"])
def test_a_change_larger_than_a_packet_waits_for_the_operator(
    new_cluster: MakeCluster, database_kind: str, mariadb: PrivateMariaDB
) -> None:
    """TRAPS 29: the server would cut the connection each time; the reason is told, nothing is lost, and it goes on by itself."""
    schema = ("CREATE TABLE wide (id BIGINT PRIMARY KEY, body LONGTEXT)",)
    cluster: Cluster = new_cluster(database_kind, schema=schema, tables="wide\n", nodes=("st1", "st2"))
    cluster.start()
    primary, node = cluster.primary, cluster.nodes["st2"]
    (packet,) = primary.rows("SELECT @@global.max_allowed_packet")[0]
    primary.execute("INSERT INTO wide VALUES (1, CONCAT(CHAR(12), REPEAT('''', :n)))", n=packet * 3 // 5)
    primary.execute("INSERT INTO wide VALUES (2, 'small')")
    wait_for(lambda: "max_allowed_packet" in node.log, "the reason in the log")
    administrator = create_engine(mariadb.admin_url, poolclass=NullPool)

    def allow(size: int) -> None:
        with administrator.connect() as connection:
            connection.execute(text(f"SET GLOBAL max_allowed_packet = {size}"))

    allow(packet * 4)
    try:
        cluster.wait_equal()
        assert node.rows("SELECT id FROM stsync_quarantine") == []
    finally:
        allow(packet)


TAGS = (
    "CREATE TABLE a (id INTEGER PRIMARY KEY, name TEXT UNIQUE, tag TEXT)",
    "CREATE TABLE tag (id INTEGER PRIMARY KEY, name TEXT UNIQUE)",
)


@pytest.mark.parametrize("moment", ["BEFORE", "AFTER"])
@pytest.mark.parametrize("first", [True, False], ids=["theirs-first", "ours-first"])
def test_an_insert_within_an_insert_deletes_nothing_else(new_cluster: MakeCluster, moment: str, first: bool) -> None:
    """TRAPS 2: what REPLACE deleted is told for the table that it was deleted from, and only if it is gone."""
    theirs = (
        f"CREATE TRIGGER ensure {moment} INSERT ON a WHEN NOT EXISTS (SELECT 1 FROM stsync_replaying)"
        " BEGIN INSERT OR IGNORE INTO tag (name) VALUES (NEW.tag); END"
    )
    schema = ("CREATE TABLE stsync_replaying (id INTEGER PRIMARY KEY)", *TAGS, theirs) if first else TAGS
    cluster = new_cluster("sqlite", schema=schema, tables="a\ntag\n", nodes=("st1", "st2"))
    if not first:
        cluster.on_all(theirs)
        cluster.install()
    cluster.start()
    primary = cluster.primary
    primary.execute("INSERT INTO a VALUES (1, 'one', 'x')", "INSERT INTO a VALUES (2, 'two', 'y')")
    primary.execute("INSERT INTO a VALUES (3, 'three', 'x')")
    cluster.wait_equal()
    primary.execute("INSERT OR REPLACE INTO a VALUES (9, 'two', 'zz')")
    cluster.wait_equal()
    assert cluster.nodes["st2"].rows("SELECT id FROM a ORDER BY id") == [(1,), (3,), (9,)]


def test_replace_takes_a_row_out_of_the_row_filter(new_cluster: MakeCluster) -> None:
    """TRAPS 2, 3."""
    schema = ("CREATE TABLE a (id INTEGER PRIMARY KEY, name TEXT, loc INTEGER)",)
    cluster = new_cluster("sqlite", schema=schema, tables='a where="loc = 0"\n', nodes=("st1", "st2"))
    cluster.start()
    cluster.primary.execute("INSERT INTO a VALUES (1, 'one', 0)", "INSERT INTO a VALUES (2, 'two', 0)")
    cluster.wait_equal()
    cluster.primary.execute(
        "INSERT OR REPLACE INTO a VALUES (1, 'mine', 1)", "INSERT OR REPLACE INTO a VALUES (2, 'zwei', 0)"
    )
    cluster.wait_equal()
    assert cluster.nodes["st2"].rows("SELECT id, name FROM a") == [(2, "zwei")]


def test_a_row_without_a_key_is_told_of_and_stays_where_it_is(new_cluster: MakeCluster) -> None:
    """TRAPS 4: a primary key of SQLite that is no INTEGER takes NULL, any number of times."""
    schema = ("CREATE TABLE a (k TEXT PRIMARY KEY, v TEXT)",)
    cluster = new_cluster("sqlite", schema=schema, tables="a\n", nodes=("st1", "st2"))
    cluster.start()
    primary, node = cluster.primary, cluster.nodes["st2"]
    primary.execute("INSERT INTO a VALUES (NULL, 'one'), (NULL, 'two'), ('k', 'three'), ('l', 'four')")
    wait_for(lambda: node.rows("SELECT * FROM a ORDER BY k") == [("k", "three"), ("l", "four")], "the rows that have a key")
    primary.execute("UPDATE a SET k = NULL WHERE k = 'k'", "UPDATE a SET k = 'one' WHERE v = 'one'")
    wait_for(lambda: node.rows("SELECT * FROM a ORDER BY k") == [("l", "four"), ("one", "one")], "what has a key now")
    primary.execute("DELETE FROM a WHERE k IS NULL")
    primary.execute("DELETE FROM a WHERE k = 'l'")
    cluster.wait_equal()
    assert primary.rows("SELECT count(*) FROM stsync_rejected") == [(3,)]
    assert any("whose key is NULL" in warning for warning in primary.status()["warnings"])


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_a_temporary_table_of_a_writer_never_stands_for_ours(new_node: NewNode) -> None:
    """DOMAIN 5: the trigger functions run with their owner's rights; PostgreSQL searches temporary tables first unless told."""
    node = new_node(("CREATE TABLE a (id BIGINT PRIMARY KEY)",), "a\n")
    node.execute(
        "CREATE TEMPORARY TABLE stsync_outbox (table_name text, kind text, columns_json text, rows_json text, row_count int,"
        " canonical int)",
        "INSERT INTO a VALUES (1)",
    )
    assert node.rows("SELECT count(*) FROM public.stsync_outbox") == [(1,)]


@pytest.mark.parametrize("value", ['{"x":"\\ud800"}', '{"r":"1,\\n2"}', '{"r":"one"}', '{"x":"abc"}', '{"y":"00"}'])
def test_tagged_values_of_programs_are_checked(new_cluster: MakeCluster, value: str) -> None:
    """TRAPS 30: one that is no value stops nobody and reaches nobody."""
    schema = ("CREATE TABLE a (id INTEGER PRIMARY KEY, v)",)
    cluster = new_cluster("sqlite", schema=schema, tables="a\n", nodes=("st1", "st2"))
    cluster.start()
    insert = "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json) VALUES ('a', 'I', '[\"id\",\"v\"]', "
    cluster.primary.execute(insert + ":rows)", rows=f"[1,{value}]")
    cluster.primary.execute("INSERT INTO a VALUES (2, 'goes on')")
    cluster.wait_equal()
    assert cluster.primary.rows("SELECT count(*) FROM stsync_rejected") == [(1,)]


@pytest.mark.parametrize("tables", ["a\n", 'a where="loc = 0"\n'], ids=["whole", "filtered"])
def test_update_or_replace_captures_the_rows_that_it_deletes(new_cluster: MakeCluster, tables: str) -> None:
    """TRAPS 2, 3: by a unique value, by the key, and into the row filter and out of it."""
    schema = ("CREATE TABLE a (id INTEGER PRIMARY KEY, name TEXT UNIQUE, loc INTEGER)",)
    cluster = new_cluster("sqlite", schema=schema, tables=tables, nodes=("st1", "st2"))
    cluster.start()
    primary, node = cluster.primary, cluster.nodes["st2"]
    primary.execute(*[f"INSERT INTO a VALUES ({i}, 'n{i}', {int(i > 7)})" for i in range(1, 10)])
    cluster.wait_equal()
    primary.execute(
        "UPDATE OR REPLACE a SET name = 'n2' WHERE id = 1",
        "UPDATE OR REPLACE a SET id = 4 WHERE id = 3",
        "UPDATE OR REPLACE a SET id = 6, name = 'n7' WHERE id = 5",
        "UPDATE OR IGNORE a SET name = 'n4' WHERE id = 1",
        "UPDATE OR REPLACE a SET id = 1 WHERE id = 8",
        "UPDATE a SET name = 'free' WHERE id = 4",
    )
    cluster.wait_equal()
    assert primary.rows("SELECT id, name FROM a WHERE loc = 0 ORDER BY id") == [(4, "free"), (6, "n7")]
    assert node.rows("SELECT id FROM a WHERE loc = 0 ORDER BY id") == [(4,), (6,)]
    assert node.command("quarantine", "list").returncode == 0


@pytest.mark.parametrize("key", ["x'00ff'", "1.5", "'two'"])
def test_a_key_of_any_storage_class_is_found_again_after_replace(new_cluster: MakeCluster, key: str) -> None:
    """TRAPS 2, 30: a row that an ignored insert met still stands; one that REPLACE deleted is gone."""
    schema = ("CREATE TABLE a (k PRIMARY KEY, name TEXT UNIQUE)",)
    cluster = new_cluster("sqlite", schema=schema, tables="a\n", nodes=("st1", "st2"))
    cluster.start()
    cluster.primary.execute(f"INSERT INTO a VALUES ({key}, 'met')", "INSERT INTO a VALUES (x'aa', 'other')")
    cluster.primary.execute("INSERT OR IGNORE INTO a VALUES (3, 'met')", "INSERT INTO a VALUES (4, 'next')")
    cluster.wait_equal()
    assert len(cluster.nodes["st2"].rows("SELECT 1 FROM a")) == 3
    cluster.primary.execute("INSERT OR REPLACE INTO a VALUES (5, 'met')")
    cluster.wait_equal()
    assert cluster.nodes["st2"].rows("SELECT k FROM a WHERE name = 'met'") == [(5,)]


NOT_IN_REPLAY = "NOT EXISTS (SELECT 1 FROM stsync_replaying)"
REKEYED = {
    "changes-it": f"CREATE TRIGGER u AFTER UPDATE OF id ON item WHEN {NOT_IN_REPLAY}"
    " BEGIN UPDATE item SET name = name || '!' WHERE id = NEW.id; END",
    "moves-it-on": f"CREATE TRIGGER u AFTER UPDATE OF id ON item WHEN NEW.id < 100 AND {NOT_IN_REPLAY}"
    " BEGIN UPDATE item SET id = id + 100 WHERE id = NEW.id; END",
    "takes-the-old-key": f"CREATE TRIGGER u AFTER UPDATE OF id ON item WHEN {NOT_IN_REPLAY}"
    " BEGIN INSERT INTO item VALUES (OLD.id, 'instead', 0); END",
    "deletes-it": f"CREATE TRIGGER u AFTER UPDATE OF id ON item WHEN {NOT_IN_REPLAY} BEGIN DELETE FROM item WHERE id = NEW.id; END",
}


@pytest.mark.parametrize("trigger", REKEYED.values(), ids=REKEYED)
def test_a_key_update_followed_by_triggers_arrives_as_it_stands(new_cluster: MakeCluster, trigger: str) -> None:
    """TRAPS 1, 4, 6: SQLite runs the youngest trigger first; one that is made after ours is told of, and `install` passes it."""
    cluster = new_cluster("sqlite", schema=(ITEM,), tables="item\n", nodes=("st1", "st2"))
    cluster.start()
    cluster.primary.execute("INSERT INTO item VALUES (1, 'one', 0), (2, 'two', 0)")
    cluster.wait_equal()
    cluster.primary.execute(trigger)
    assert any("other programs' triggers" in warning for warning in cluster.primary.status()["warnings"])
    assert cluster.primary.command("install").returncode == 0
    assert cluster.primary.faults() == []
    cluster.primary.execute("UPDATE item SET id = 11 WHERE id = 1")
    cluster.wait_equal()
    cluster.primary.execute(
        "UPDATE item SET id = 12, name = 'zwei' WHERE id = 2", "UPDATE item SET id = '0013' WHERE id = 12"
    )
    cluster.primary.execute(
        "INSERT INTO item VALUES (30, 'a', 0), (31, 'b', 0)", "UPDATE item SET id = id + 10 WHERE id IN (30, 31)"
    )
    cluster.wait_equal()
    assert cluster.nodes["st2"].command("quarantine", "list").returncode == 0


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_a_key_update_is_captured_before_other_programs_row_triggers(new_cluster: MakeCluster, database_kind: str) -> None:
    """TRAPS 4: PostgreSQL runs them by name; one that would run before ours is refused with its name."""
    cluster = new_cluster(database_kind, schema=(ITEM,), tables="item\n", nodes=("st1", "st2"))
    primary = cluster.primary
    primary.execute(PG_STAMP, 'CREATE TRIGGER "0_stamp" AFTER UPDATE ON item FOR EACH ROW EXECUTE FUNCTION stamp()')
    assert primary.command("install").returncode == 0
    cluster.start()
    primary.execute("INSERT INTO item VALUES (1, 'one', 0)")
    cluster.wait_equal()
    primary.execute("UPDATE item SET id = 2")
    cluster.wait_equal()
    assert cluster.nodes["st2"].rows("SELECT id, stamp FROM item") == [(2, 1)]
    primary.execute('ALTER TRIGGER "0_stamp" ON item RENAME TO " stamp"')
    assert 'has a trigger named " stamp"' in refused(primary, "item\n")


@pytest.mark.parametrize("database_kind", ["mariadb"])
def test_a_cascade_over_an_excluded_column_is_refused(new_node: NewNode) -> None:
    """TRAPS 2, 3: the secondary would neither get the update nor cascade it."""
    schema = (
        "CREATE TABLE parent (id BIGINT PRIMARY KEY, code INT UNIQUE)",
        "CREATE TABLE child (id BIGINT PRIMARY KEY, code INT, FOREIGN KEY (code) REFERENCES parent (code) ON UPDATE CASCADE)",
    )
    node = new_node(schema, "parent\nchild\n")
    assert "parent excludes code" in refused(node, "parent exclude=code\nchild\n")


@pytest.mark.parametrize("database_kind", ["mariadb"])
def test_system_versioned_tables_are_tables_too(new_cluster: MakeCluster, database_kind: str) -> None:
    """DESIGN §4: a glob that skips them would lose them silently; each node keeps its own history of them."""
    schema = (
        "CREATE TABLE t1 (id BIGINT PRIMARY KEY, name VARCHAR(20)) WITH SYSTEM VERSIONING",
        "CREATE TABLE t2 (id BIGINT PRIMARY KEY, name VARCHAR(20), a TIMESTAMP(6) GENERATED ALWAYS AS ROW START,"
        " b TIMESTAMP(6) GENERATED ALWAYS AS ROW END, PERIOD FOR SYSTEM_TIME (a, b)) WITH SYSTEM VERSIONING",
    )
    cluster = new_cluster(database_kind, schema=schema, tables="t*\n", nodes=("st1", "st2"))
    cluster.start()
    primary, node = cluster.primary, cluster.nodes["st2"]
    primary.execute(*[f"INSERT INTO {t} (id, name) VALUES (1, 'one'), (2, 'two')" for t in ("t1", "t2")])
    primary.execute(
        *[f"UPDATE {t} SET name = 'eins' WHERE id = 1" for t in ("t1", "t2")], "UPDATE t1 SET id = 3 WHERE id = 2"
    )
    primary.execute("DELETE FROM t2 WHERE id = 2")
    cluster.wait_equal()
    assert node.rows("SELECT id, name FROM t1 ORDER BY id") == [(1, "eins"), (3, "two")]
    assert node.rows("SELECT id, name FROM t2") == [(1, "eins")]
    assert node.rows("SELECT count(*) FROM t2 FOR SYSTEM_TIME ALL WHERE id = 1") == [(2,)]
