"""MariaDB hands deletes and key updates on to children and tells nobody: a change that waits for such a row is not brought back."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from consumer import retries
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, make_cluster
from tests.integration.test_refused_rows import Clock
from tests.pipeline import Pipeline

UNIT = "CREATE TABLE unit (id BIGINT NOT NULL PRIMARY KEY, name VARCHAR(40))"
RULES = ("ON DELETE CASCADE ON UPDATE CASCADE", "ON DELETE SET NULL ON UPDATE CASCADE")
ACCOUNT = (
    "CREATE TABLE account (id BIGINT NOT NULL PRIMARY KEY, name VARCHAR(40) UNIQUE, unit_id BIGINT,"
    " FOREIGN KEY (unit_id) REFERENCES unit (id) {rule})"
)
LOGIN = (
    "CREATE TABLE login (account_id BIGINT NOT NULL, name VARCHAR(40) NOT NULL, digest VARCHAR(40) UNIQUE,"
    " PRIMARY KEY (account_id, name), FOREIGN KEY (account_id) REFERENCES account (id) ON DELETE CASCADE ON UPDATE CASCADE)"
)
UNIT_1_GOES = "DELETE FROM unit WHERE id = 1"
TAKEN = "INSERT INTO login VALUES (10, 'x', 'taken')"
Make = Callable[..., Pipeline]


@pytest.fixture
def make(tmp_path: Path, new_database: NewDatabase) -> Iterator[Make]:
    made: list[Pipeline] = []

    def pipeline(*schema: str, tables: str = "unit\naccount\nlogin\n") -> Pipeline:
        cluster = make_cluster(
            tmp_path / "c", "mariadb", NO_BROKER, new_database, schema=schema, tables=tables, nodes=("st1", "st2")
        )
        made.append(Pipeline(cluster))
        return made[-1]

    yield pipeline
    for one in made:
        one.close()


def free(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, *statements: str) -> None:
    """What stood in the way is gone, and all that may be tried again is, several times."""
    pipeline.secondary.execute(*statements)
    clock = Clock(time.monotonic() + 60)
    monkeypatch.setattr(retries, "time", clock)
    for _ in range(8):
        pipeline.move()
        clock.now += 60


def told(pipeline: Pipeline) -> bool:
    """Whether something waits, and all that waits says that only a full synchronization heals it."""
    waiting = pipeline.secondary.rows("SELECT reason FROM stsync_quarantine")
    return bool(waiting) and all("a full synchronization is needed" in reason for (reason,) in waiting)


def one_by_one(pipeline: Pipeline, statements: tuple[str, ...], *, together: bool) -> None:
    for statement in statements:
        pipeline.primary.execute(statement)
        if not together:
            pipeline.move()
    pipeline.move()


@pytest.mark.parametrize("together", [False, True], ids=["in turn", "in one unit"])
@pytest.mark.parametrize("rule", RULES, ids=["delete", "null"])
@pytest.mark.parametrize(
    "parents",
    [
        ("DELETE FROM unit WHERE id = 1", "INSERT INTO unit VALUES (1, 'anew')"),
        ("UPDATE unit SET id = 5 WHERE id = 1", "INSERT INTO unit VALUES (1, 'anew')"),
        ("UPDATE unit SET id = 5 WHERE id = 1", "UPDATE unit SET id = 7 WHERE id = 5"),
        (
            "DELETE FROM unit WHERE id = 1",
            "INSERT INTO unit VALUES (1, 'anew')",
            "UPDATE unit SET id = 5 WHERE id = 1",
            "INSERT INTO unit VALUES (1, 'again')",
        ),
    ],
    ids=["deleted", "renamed", "renamed twice", "deleted and renamed"],
)
def test_a_child_that_waits_does_not_come_back(
    make: Make, monkeypatch: pytest.MonkeyPatch, parents: tuple[str, ...], rule: str, together: bool
) -> None:
    """TRAPS 2, 29."""
    pipeline = make(UNIT, ACCOUNT.format(rule=rule), LOGIN)
    pipeline.primary.execute("INSERT INTO unit VALUES (1, 'one'), (2, 'two')")
    pipeline.move()
    pipeline.secondary.execute("INSERT INTO account VALUES (900, 'taken', NULL), (901, 'taken too', NULL)")
    children = ("INSERT INTO account VALUES (10, 'taken', 1)", "INSERT INTO account VALUES (20, 'taken too', 2)")
    one_by_one(pipeline, (*children, *parents), together=together)
    free(pipeline, monkeypatch, "DELETE FROM account WHERE id >= 900")
    assert pipeline.secondary.rows("SELECT id, name, unit_id FROM account") == [(20, "taken too", 2)]
    assert told(pipeline)


@pytest.mark.parametrize(
    ("waits", "after"),
    [
        pytest.param("UPDATE account SET unit_id = 1, name = 'taken' WHERE id = 10", UNIT_1_GOES, id="update"),
        pytest.param("UPDATE account SET id = 11, unit_id = 1, name = 'taken' WHERE id = 10", UNIT_1_GOES, id="rekey"),
        pytest.param(TAKEN, "UPDATE account SET id = 12 WHERE id = 10", id="key that follows"),
        pytest.param(TAKEN, "DELETE FROM unit WHERE id = 2", id="three levels"),
    ],
)
def test_what_became_of_a_row_that_waits_is_not_guessed(
    make: Make, monkeypatch: pytest.MonkeyPatch, waits: str, after: str
) -> None:
    """TRAPS 2, 29: where this node differs in the end, it says so."""
    pipeline = make(UNIT, ACCOUNT.format(rule=RULES[0]), LOGIN)
    pipeline.primary.execute(
        "INSERT INTO unit VALUES (1, 'one'), (2, 'two')", "INSERT INTO account VALUES (10, 'a', 2), (30, 'b', NULL)"
    )
    pipeline.move()
    pipeline.secondary.execute(
        "INSERT INTO account VALUES (900, 'taken', NULL)", "INSERT INTO login VALUES (30, 'y', 'taken')"
    )
    pipeline.primary.execute(waits)
    pipeline.move()
    pipeline.primary.execute(after)
    pipeline.move()
    free(pipeline, monkeypatch, "DELETE FROM account WHERE id = 900", "DELETE FROM login WHERE name = 'y'")
    assert told(pipeline)


@pytest.mark.parametrize(
    ("collation", "child", "gone", "held"),
    [
        ("utf8mb4_bin", "a", "b", False),
        ("utf8mb4_general_ci", "a", "b", False),
        ("utf8mb4_general_ci", "A", "a", True),
        ("utf8mb4_general_ci", "Zürich", "zurich", True),
        ("utf8mb4_nopad_bin", "a", "A", False),
    ],
)
def test_a_parent_is_known_by_its_key(
    make: Make, monkeypatch: pytest.MonkeyPatch, collation: str, child: str, gone: str, held: bool
) -> None:
    """TRAPS 29: in whatever spelling; what has another parent is retried as ever."""
    code = f"code VARCHAR(20) CHARACTER SET utf8mb4 COLLATE {collation}"
    pipeline = make(
        f"CREATE TABLE unit ({code} NOT NULL PRIMARY KEY)",
        f"CREATE TABLE account (id BIGINT NOT NULL PRIMARY KEY, name VARCHAR(40) UNIQUE, {code}, FOREIGN KEY (code)"
        " REFERENCES unit (code) ON DELETE CASCADE)",
        tables="unit\naccount\n",
    )
    pipeline.primary.execute(f"INSERT INTO unit VALUES ('{gone}')")
    if not held:
        pipeline.primary.execute(f"INSERT INTO unit VALUES ('{child}')")
    pipeline.move()
    pipeline.secondary.execute("INSERT INTO account VALUES (900, 'taken', NULL)")
    pipeline.primary.execute(f"INSERT INTO account VALUES (10, 'taken', '{child}')")
    pipeline.move()
    pipeline.primary.execute(f"DELETE FROM unit WHERE code = '{gone}'", f"INSERT INTO unit VALUES ('{gone}')")
    pipeline.move()
    free(pipeline, monkeypatch, "DELETE FROM account WHERE id = 900")
    assert told(pipeline) is held
    assert bool(pipeline.wrong()) is held


def test_a_row_that_cannot_be_read_does_not_matter(make: Make) -> None:
    """TRAPS 29: what a program wrote into the outbox."""
    pipeline = make(UNIT, ACCOUNT.format(rule=RULES[0]), LOGIN)
    pipeline.primary.execute("INSERT INTO unit VALUES (1, 'one')")
    row = (
        "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json, row_count, canonical) VALUES ('account', 'I',"
    )
    pipeline.primary.execute(f"""{row} '["id", "name", "unit_id"]', '["10"]', 1, 1)""")
    pipeline.move()
    pipeline.primary.execute("DELETE FROM unit WHERE id = 1", "INSERT INTO unit VALUES (2, 'two')")
    pipeline.move()
    assert pipeline.secondary.rows("SELECT id FROM unit") == [(2,)]
    assert len(pipeline.wrong()) == 1, "the unreadable one waits, and that is all"


def test_a_unique_key_with_the_name_of_the_foreign_key(make: Make) -> None:
    """TRAPS 2."""
    account = ACCOUNT.format(rule=RULES[0]).replace("FOREIGN KEY", "UNIQUE KEY same (unit_id), CONSTRAINT same FOREIGN KEY")
    pipeline = make(UNIT, account, LOGIN)
    pipeline.primary.execute("INSERT INTO unit VALUES (1, 'one')", "INSERT INTO account VALUES (10, 'a', 1)")
    pipeline.move()
    assert pipeline.wrong() == []


def test_what_failed_is_not_tried_again_in_its_unit_after_its_parent_went(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRAPS 2, 29: the parent was missing here, and the one that comes later in the unit is another."""
    pipeline = make(UNIT, ACCOUNT.format(rule=RULES[0]), LOGIN)
    pipeline.primary.execute("INSERT INTO unit VALUES (1, 'one')")
    pipeline.move()
    pipeline.secondary.execute("DELETE FROM unit")
    one_by_one(
        pipeline,
        ("INSERT INTO account VALUES (10, 'a', 1)", UNIT_1_GOES, "INSERT INTO unit VALUES (1, 'anew')"),
        together=True,
    )
    free(pipeline, monkeypatch)
    assert pipeline.secondary.rows("SELECT id FROM account") == []
    assert told(pipeline)


PARENT = "CREATE TABLE parent (id BIGINT NOT NULL PRIMARY KEY, name VARCHAR(40) UNIQUE)"
CHILD = "CREATE TABLE child (id BIGINT NOT NULL PRIMARY KEY, parent_id BIGINT, FOREIGN KEY (parent_id) REFERENCES parent (id) {rule})"
OTHER = "CREATE TABLE other (id INT PRIMARY KEY, parent_id BIGINT, FOREIGN KEY (parent_id) REFERENCES parent (id) ON UPDATE CASCADE)"
MOVED = "UPDATE parent SET id = 2, name = 'taken' WHERE id = 1"
IN_THE_WAY = ("INSERT INTO parent VALUES (9, 'taken')", "INSERT INTO other VALUES (9, 1)")


@pytest.mark.parametrize("together", [False, True], ids=["in turn", "in one unit"])
@pytest.mark.parametrize("rule", RULES, ids=["delete", "null"])
@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        (("DELETE FROM parent WHERE id = 1", "INSERT INTO parent VALUES (1, 'anew')"), True),
        ((MOVED, "INSERT INTO parent VALUES (1, 'anew')"), True),
        ((MOVED, "UPDATE parent SET name = 'free' WHERE id = 2"), True),
        ((MOVED, "INSERT INTO parent VALUES (1, 'anew')", "DELETE FROM parent WHERE id = 1"), True),
        ((MOVED, "UPDATE parent SET id = 3, name = 'free' WHERE id = 2"), True),
        (
            (
                "DELETE FROM parent WHERE id = 1",
                "INSERT INTO parent VALUES (1, 'taken')",
                "UPDATE parent SET id = 3, name = 'free' WHERE id = 1",
            ),
            True,
        ),
        ((MOVED, "DELETE FROM parent WHERE id = 2", "INSERT INTO parent VALUES (2, 'anew')"), False),
        (("DELETE FROM parent WHERE id = 1",), False),
        ((MOVED,), False),
    ],
)
def test_a_parent_that_could_not_go_is_told_where_its_children_cannot_be_known(
    make: Make, monkeypatch: pytest.MonkeyPatch, changes: tuple[str, ...], rule: str, *, lost: bool, together: bool
) -> None:
    """TRAPS 2, 29: once its key is another row's, nobody can say which children were the old one's."""
    pipeline = make(PARENT, CHILD.format(rule=rule), OTHER, tables="parent\nchild\nother\n")
    pipeline.primary.execute("INSERT INTO parent VALUES (1, 'first')", "INSERT INTO child VALUES (1, 1)")
    pipeline.move()
    pipeline.secondary.execute(*IN_THE_WAY)
    if together:
        pipeline.primary.execute(*changes)
        pipeline.move()
    else:
        one_by_one(pipeline, changes, together=False)
    free(pipeline, monkeypatch, "DELETE FROM other", "DELETE FROM parent WHERE id = 9")
    if not lost:
        assert pipeline.wrong() == []
        return
    assert told(pipeline)
    newest = pipeline.primary.rows("SELECT * FROM parent")
    tried = [id_ for (id_,) in pipeline.secondary.rows("SELECT id FROM stsync_quarantine")]
    assert pipeline.secondary.command("quarantine", "retry", *map(str, tried)).returncode == 1
    assert set(newest) <= set(pipeline.secondary.rows("SELECT * FROM parent"))
    assert told(pipeline), "it says so until somebody discards it"
