"""Nothing is installed that is not proven to be equal to the primary: of what can have been changed all is looked at (TRAPS 7)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from common.database import Database
from common.digests import whole
from common.errors import NotApplicable
from common.schema import ListedTable
from common.session import ColumnShape, TableShape
from common.settings import DatabaseSettings
from consumer.proving import Claim, Differing, changes_nothing_else, prove
from consumer.scratch import Difference
from tests.conftest import NewDatabase
from tests.installing import portions
from tests.integration.conftest import MakeCluster

ROWS, BUCKETS = 200, 6
A = "CREATE TABLE a (id BIGINT PRIMARY KEY, n INT UNIQUE)"
FILL = tuple(f"INSERT INTO {t} VALUES " + ", ".join(f"({i}, {i})" for i in range(1, ROWS + 1)) for t in ("a", "b"))
# What is changed in a has a row of b changed, which is in another bucket than the first.
TRIGGER = {
    "postgresql": (
        "CREATE FUNCTION more() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN UPDATE b SET n = 5 WHERE id = 150; RETURN NULL; END'",
        "CREATE TRIGGER more AFTER UPDATE ON a FOR EACH ROW EXECUTE FUNCTION more()",
    ),
    "mariadb": ("CREATE TRIGGER more AFTER UPDATE ON a FOR EACH ROW UPDATE b SET n = 5 WHERE id = 150",),
    "sqlite": ("CREATE TRIGGER more AFTER UPDATE ON a BEGIN UPDATE b SET n = 5 WHERE id = 150; END",),
}


@dataclass
class Place:
    """A database with the tables a and b; b refers to a."""

    database: Database
    tables: dict[str, ListedTable]

    def execute(self, *statements: str) -> None:
        with self.database.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
            connection.commit()

    def claim(self, *differed: int) -> Claim:
        """What b is now is what the primary has; rows with these ids differed before."""
        table, dialect = self.tables["b"], self.database.dialect
        shape = TableShape("b", tuple(ColumnShape(one.name, one.shape) for one in table.columns), 1, BUCKETS)
        keys = {text for one in differed for text in (str(one), f'"{one}"')}
        with self.database.connect(read_only=True) as connection:
            found = dialect.buckets(connection, table, shape.names, BUCKETS)
            wanted = {}
            for place, bucket in found.items():
                digests = list(dialect.row_digests(connection, table, shape.names, BUCKETS, [place]))
                if not keys.isdisjoint(key for some in digests for key, _ in some):
                    wanted[place] = bucket.digest
        return Claim(table, shape, whole(found.values()), wanted)

    def proves(self, claim: Claim, *, only_differing: bool) -> bool:
        with self.database.connect(read_only=True) as connection:
            try:
                prove(self.database.dialect, connection, claim, only_differing=only_differing)
            except NotApplicable:
                return False
        return True

    def difference(self, name: str, deletes: Sequence[str] = ()) -> Difference:
        some = portions(['["1","9"]'], 1)
        return Difference(self.tables[name], ("id", "n"), portions(deletes, 1), some, some)

    def changes_nothing_else(self, *differences: Difference) -> bool:
        with self.database.connect(read_only=True) as connection:
            return changes_nothing_else(self.database.dialect, connection, differences)


@pytest.fixture
def place(database_kind: str, new_database: NewDatabase, request: pytest.FixtureRequest) -> Place:
    """The parameter: what b's foreign key does besides."""
    database = Database(DatabaseSettings(url=new_database(database_kind)))  # type: ignore[arg-type]
    made = Place(database, {})
    rule = getattr(request, "param", "")
    made.execute(A, f"CREATE TABLE b (id BIGINT PRIMARY KEY, n INT, FOREIGN KEY (n) REFERENCES a (n) {rule})", *FILL)
    _read(made)
    return made


def _read(place: Place) -> None:
    with place.database.connect(read_only=True) as connection:
        found = place.database.dialect.tables(connection)
        connection.rollback()
    place.tables = {name: ListedTable(found[name], None, frozenset()) for name in ("a", "b")}


@pytest.mark.parametrize("only_differing", [True, False])
def test_a_table_is_proven_where_it_is_as_on_the_primary_and_else_not(place: Place, only_differing: bool) -> None:
    claim = place.claim(3, 90)
    assert len(claim.buckets or ()) in {1, 2}
    assert place.proves(claim, only_differing=only_differing)
    for broken, mended in (
        ("UPDATE b SET n = 7 WHERE id = 3", "UPDATE b SET n = 3 WHERE id = 3"),
        ("DELETE FROM b WHERE id = 90", "INSERT INTO b VALUES (90, 90)"),
        ("DELETE FROM b WHERE id = 150", "INSERT INTO b VALUES (150, 150)"),  # of any bucket
        ("INSERT INTO b VALUES (999, 1)", "DELETE FROM b WHERE id = 999"),
    ):
        place.execute(broken)
        assert not place.proves(claim, only_differing=only_differing), broken
        place.execute(mended)
        assert place.proves(claim, only_differing=only_differing), mended


def test_all_of_a_table_is_looked_at_where_more_than_what_differed_can_have_changed(place: Place) -> None:
    claim = place.claim(3)
    assert len(claim.buckets or ()) == 1
    place.execute("UPDATE b SET n = 5 WHERE id > 100")
    assert not place.proves(claim, only_differing=False)
    assert not place.proves(replace(claim, buckets=None), only_differing=True)


def test_a_bucket_without_rows_is_one_of_zeros(place: Place) -> None:
    place.execute("DELETE FROM b")
    claim = replace(place.claim(), buckets={2: bytes(8)})
    assert place.proves(claim, only_differing=True)
    assert not place.proves(replace(claim, buckets={2: b"x" * 8}), only_differing=True)


@pytest.mark.parametrize("place", [""], indirect=True)
def test_who_puts_rows_in_place_changes_no_others(place: Place) -> None:
    assert place.changes_nothing_else(place.difference("a"), place.difference("b"))
    assert not place.changes_nothing_else(place.difference("a"), place.difference("b", deletes=['["1"]']))
    place.execute(*TRIGGER[place.database.dialect.name])
    _read(place)
    assert not place.changes_nothing_else(place.difference("a"))
    assert place.changes_nothing_else(place.difference("b"))


@pytest.mark.parametrize("place", [""], indirect=True)
@pytest.mark.parametrize("database_kind", ["postgresql"])
@pytest.mark.parametrize(
    "made",
    [
        "CREATE RULE more AS ON UPDATE TO a DO ALSO UPDATE b SET n = 5 WHERE id = 150",
        "CREATE TRIGGER more AFTER INSERT ON a FOR EACH ROW EXECUTE FUNCTION more(); ALTER TABLE a ENABLE REPLICA TRIGGER more",
    ],
    ids=["a rule", "a trigger for sessions that replicate"],
)
def test_what_answers_a_write_may_change_others(place: Place, made: str) -> None:
    place.execute(
        "CREATE FUNCTION more() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN UPDATE b SET n = 5; RETURN NULL; END'", made
    )
    _read(place)
    assert not place.changes_nothing_else(place.difference("a"))
    assert place.changes_nothing_else(place.difference("b"))


@pytest.mark.parametrize("place", ["ON UPDATE CASCADE", "ON UPDATE SET NULL"], indirect=True)
def test_what_a_foreign_key_hands_on_may_change_others(place: Place) -> None:
    assert not place.changes_nothing_else(place.difference("a"))
    assert place.changes_nothing_else(place.difference("b"))


def test_the_digests_of_a_few_buckets_are_kept_and_none_of_many() -> None:
    shape, found = TableShape("b", (), 1, 10), Differing()
    assert found.of(0) is None
    found.add(0, shape, {1: b"a", 2: b"b"})
    found.add(0, shape, {7: b"c"})
    found.add(1, shape, {})
    assert (found.of(0), found.of(1)) == ({1: b"a", 2: b"b", 7: b"c"}, {})
    found.add(0, shape, {3: b"d", 4: b"e", 5: b"f"})
    assert found.of(0) is None
    found.add(0, shape, {6: b"g"})
    assert found.of(0) is None, "it is not taken for one of which all are known"


def test_what_a_trigger_of_others_does_to_equal_rows_is_not_installed(database_kind: str, new_cluster: MakeCluster) -> None:
    """Each table has one row that differs; an update of that row in one of them changes rows of the other that were equal."""
    schema = (A, "CREATE TABLE b (id BIGINT PRIMARY KEY, n INT)")
    made = new_cluster(database_kind, nodes=("st1", "st2"), schema=schema, tables="b\na\n")
    st2 = made.nodes["st2"]
    for node in made.nodes.values():
        node.execute(*FILL, "DELETE FROM stsync_outbox")
    st2.execute(*TRIGGER[database_kind])
    st2.command("install")
    made.start()
    for name in ("a", "b"):
        made.primary.execute(f"UPDATE {name} SET n = 1000 WHERE id = 1", "DELETE FROM stsync_outbox")
    before = st2.rows("SELECT id, n FROM b ORDER BY id")
    done = made.primary.command("sync", "--json")
    assert done.returncode == 1, done.stdout
    (found,) = json.loads(done.stdout)["nodes"]
    assert found["result"] == "failed"
    assert "something else changes it on this node" in found["reason"]
    assert st2.rows("SELECT id, n FROM b ORDER BY id") == before
