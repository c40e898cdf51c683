"""What another row of a secondary holds is never taken from it: replay replaces no row and sets none by another key (TRAPS 26)."""

import pytest

from tests.pipeline import Pipeline

OTHERS = 600


@pytest.mark.parametrize("many", [False, True], ids=["alone", "among many"])
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE account SET name = 'taken', note = 'theirs' WHERE id = 1",
        "INSERT INTO account VALUES (2, 'taken', NULL, 'theirs', NULL)",
    ],
    ids=["renamed", "new"],
)
def test_a_row_that_holds_the_value_already_stays_and_so_does_the_changed_one(
    pipeline: Pipeline, change: str, many: bool
) -> None:
    """`REPLACE` would delete both with their children; an upsert by any key would change the wrong one."""
    primary, secondary = pipeline.primary, pipeline.secondary
    secondary.execute(
        "INSERT INTO account VALUES (900, 'taken', NULL, 'mine', 'here')", "INSERT INTO login VALUES (900, 'mine', 'd')"
    )
    others = ", ".join(f"({number}, 'a{number}', NULL, NULL, NULL)" for number in range(10_000, 10_000 + OTHERS))
    primary.execute(
        "INSERT INTO account VALUES (1, 'one', NULL, 'old', NULL)",
        "INSERT INTO login VALUES (1, 'first', 'd'), (1, 'second', 'd')",
        f"INSERT INTO account VALUES {others}",
    )
    pipeline.move()
    accounts, logins = (
        "SELECT id, name, note, last_login FROM account WHERE id < 1000 ORDER BY id",
        "SELECT * FROM login ORDER BY 1, 2",
    )
    before = [secondary.rows(query) for query in (accounts, logins)]
    assert before == [
        [(1, "one", "old", None), (900, "taken", "mine", "here")],
        [(1, "first", "d"), (1, "second", "d"), (900, "mine", "d")],
    ]
    primary.execute(change, *(["UPDATE account SET note = 'all' WHERE id >= 10000"] if many else []))
    for _ in range(2):
        pipeline.move()
        assert [secondary.rows(query) for query in (accounts, logins)] == before
    waiting = secondary.rows("SELECT table_name FROM stsync_quarantine ORDER BY id")
    assert ("account",) in waiting
    changed = secondary.rows("SELECT count(*) FROM account WHERE note = 'all'")
    assert changed == [(OTHERS if many else 0,)]


def test_a_key_that_a_local_row_has_is_not_taken_from_it(pipeline: Pipeline) -> None:
    """Children may follow their parent's key where their own change was captured; none of them is lost."""
    primary, secondary = pipeline.primary, pipeline.secondary
    secondary.execute(
        "INSERT INTO account VALUES (900, 'mine', NULL, NULL, NULL)", "INSERT INTO login VALUES (900, 'mine', 'd')"
    )
    primary.execute(
        "INSERT INTO account VALUES (1, 'one', NULL, NULL, NULL)",
        "INSERT INTO login VALUES (1, 'first', 'd'), (1, 'second', 'd')",
    )
    pipeline.move()
    primary.execute("UPDATE account SET id = 900 WHERE id = 1")
    for _ in range(2):
        pipeline.move()
        assert secondary.rows("SELECT id, name FROM account ORDER BY id") == [(1, "one"), (900, "mine")]
        assert secondary.rows("SELECT name FROM login ORDER BY name") == [("first",), ("mine",), ("second",)]
    assert secondary.rows("SELECT table_name FROM stsync_quarantine") == [("account",)]
