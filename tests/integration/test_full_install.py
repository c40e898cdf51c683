"""What a full synchronization installs makes the listed tables equal, and touches nothing else (TRAPS 26, 27, 28, 32).

PostgreSQL twice: with the right to switch foreign keys off, and without it.
"""

from dataclasses import replace

import pytest

from common.errors import NotApplicable
from consumer.install import Written, run
from tests.installing import Pair, portions
from tests.installing_schema import local_rows

ALIKE = {  # what primary and secondary do before; and this node's own rows are as they were
    "nothing": ([], []),
    "a self reference's parent is new": (["INSERT INTO unit VALUES (9, 'nine', NULL)",
        "INSERT INTO unit VALUES (5, 'five', 9)"], []),
    "a leaf moves below a new one": (["INSERT INTO unit VALUES (9, 'nine', 3)", "UPDATE unit SET above = 9 WHERE id = 4"], []),
    "extra rows of a self reference": ([], ["INSERT INTO unit VALUES (9, 'nine', 3)",
        "INSERT INTO unit VALUES (8, 'eight', 9)"]),
    "a tree upside down": (["UPDATE tree SET above = NULL WHERE id = 3", "UPDATE tree SET above = 3 WHERE id = 2",
                            "UPDATE tree SET above = 2 WHERE id = 1"], []),
    "names of units swapped": (["UPDATE unit SET name = 'tmp' WHERE id = 1", "UPDATE unit SET name = 'root' WHERE id = 2",
                                "UPDATE unit SET name = 'left' WHERE id = 1"], []),
    "names in a cycle of three": (["UPDATE unit SET name = 'tmp' WHERE id = 1", "UPDATE unit SET name = 'root' WHERE id = 2",
                                   "UPDATE unit SET name = 'left' WHERE id = 3",
        "UPDATE unit SET name = 'right' WHERE id = 1"], []),
    "an extra row holds what a new one needs": (["INSERT INTO unit VALUES (5, 'five', 1)"],
        ["INSERT INTO unit VALUES (6, 'five', 2)"]),
    "a differing row holds what a new one needs": (["UPDATE unit SET name = 'right2' WHERE id = 3",
        "INSERT INTO unit VALUES (5, 'right', 3)"], []),
    "an extra row holds what a changed one needs": (["UPDATE unit SET name = 'five' WHERE id = 2"],
        ["INSERT INTO unit VALUES (6, 'five', 4)"]),
    "another spelling": (["DELETE FROM word_use WHERE id = 1", "DELETE FROM word WHERE name = 'abc'",
                          "INSERT INTO word VALUES ('Abc', 'z', NULL)", "INSERT INTO word_use VALUES (1, 'abc')"], []),
    "composite keys": (["DELETE FROM pair WHERE a = 'a' AND b = 1", "UPDATE pair SET val = 'new' WHERE a = 'b'",
                        "INSERT INTO pair VALUES ('c', 3, 'n')", "INSERT INTO piece VALUES (9, 'c', 3)"],
                       ["INSERT INTO pair VALUES ('z', 1, 'n')", "INSERT INTO piece VALUES (8, 'z', 1)"]),
    "children move between parents": (["UPDATE member SET grp_id = 2 WHERE id = 10",
        "UPDATE strict SET grp_id = 3 WHERE id = 1"], []),
    "an extra parent with extra children of every kind": ([], ["INSERT INTO grp VALUES (9, 'nine', NULL, NULL)",
        "INSERT INTO member (id, grp_id) VALUES (90, 9)", "INSERT INTO badge VALUES (9, 90)",
        "INSERT INTO hint VALUES (9, 'nine')",
        "INSERT INTO strict VALUES (9, 9)"]),
    "equal children of an extra parent moved here": ([], ["INSERT INTO grp VALUES (9, 'nine', NULL, NULL)",
        "UPDATE member SET grp_id = 9 WHERE id = 11", "UPDATE hint SET code = 'nine' WHERE id = 1",
        "UPDATE strict SET grp_id = 9 WHERE id = 1"]),
    "emptied on the secondary": ([], ["DELETE FROM piece", "DELETE FROM pair", "DELETE FROM word_use", "DELETE FROM word"]),
}  # fmt: skip


@pytest.mark.parametrize(("there", "here"), ALIKE.values(), ids=ALIKE)
def test_tables_become_equal_and_what_is_this_nodes_own_stays(filled: Pair, there: list[str], here: list[str]) -> None:
    filled.primary.execute(*there)
    filled.secondary.execute(*here)
    before = local_rows(filled)
    before["seen"] = [one for one in before["seen"] if one[0] != 9]
    filled.install()
    assert filled.cluster.differences() == []
    assert local_rows(filled) == before


def test_codes_swapped_under_children_of_every_kind(filled: Pair) -> None:
    """A unique value that children refer to by ON UPDATE CASCADE, too: those that are equal stay as they are, and so do local ones,
    for whom the value is there in the end."""
    before = local_rows(filled)
    filled.blindly(filled.primary, "UPDATE grp SET code = 'tmp' WHERE id = 1", "UPDATE grp SET code = 'one' WHERE id = 2",
                   "UPDATE grp SET code = 'two' WHERE id = 1")  # fmt: skip
    written = filled.install()
    assert filled.cluster.differences() == []
    assert local_rows(filled) == before
    assert written["grp"] == Written(0, 2, 0)
    assert sum(one.inserted + one.updated + one.deleted for one in written.values()) == 2


def test_a_code_taken_from_a_row_by_another_leaves_equal_children_alone(filled: Pair) -> None:
    filled.secondary.execute("DELETE FROM u_code")
    filled.blindly(filled.primary, "UPDATE grp SET code = 'uno' WHERE id = 1", "UPDATE grp SET code = 'one' WHERE id = 2",
                   "UPDATE hint SET code = NULL WHERE id = 2")  # fmt: skip
    filled.install()
    assert filled.cluster.differences() == []


def test_a_circle_of_tables_with_references_that_are_required(filled: Pair) -> None:
    filled.blindly(
        filled.primary,
        "DELETE FROM hen WHERE id = 1", "DELETE FROM egg WHERE id = 1",
        "INSERT INTO hen VALUES (5, 6, 'h1'), (6, 5, 'h6')", "INSERT INTO egg VALUES (5, 5), (6, 6)",
        "UPDATE hen SET egg_id = 6 WHERE id = 2",
    )  # fmt: skip
    filled.install(order=lambda found: found[::-1])
    assert filled.cluster.differences() == []


def test_a_circle_into_empty_tables_and_out_of_full_ones(filled: Pair) -> None:
    filled.blindly(
        filled.secondary, "DELETE FROM hen", "DELETE FROM egg", "DELETE FROM tree", "DELETE FROM u_unit", "DELETE FROM unit"
    )
    filled.install()
    assert filled.cluster.differences() == []
    filled.blindly(filled.primary, "DELETE FROM hen", "DELETE FROM egg", "DELETE FROM tree", "DELETE FROM unit")
    filled.install()
    assert filled.cluster.differences() == []


def test_what_refers_to_a_row_that_is_gone_does_as_its_own_foreign_key_says(filled: Pair) -> None:
    """TRAPS 32: and so on, down to what refers to that."""
    filled.blindly(filled.primary, "DELETE FROM badge WHERE id = 1", "DELETE FROM member WHERE grp_id = 1",
                   "DELETE FROM strict WHERE id = 1",
                   "UPDATE hint SET code = NULL WHERE id = 1", "DELETE FROM grp WHERE id = 1")  # fmt: skip
    filled.install()
    assert filled.cluster.differences() == []
    assert filled.secondary.rows("SELECT id FROM member WHERE mine = 1") == [(71,)]
    assert filled.secondary.rows("SELECT id FROM u_cascade") == [(2,)]
    assert filled.secondary.rows("SELECT up FROM u_below") == [(2,)]
    assert filled.secondary.rows("SELECT id, grp_id FROM u_null ORDER BY id") == [(1, None), (2, 2)]
    assert filled.secondary.rows("SELECT code FROM u_code") == [("two",)]


def test_the_same_where_rows_stand_in_the_way(filled: Pair) -> None:
    """A row that goes, and whose name a new one has: not to be done in place."""
    filled.blindly(filled.primary, "DELETE FROM badge WHERE id = 1", "DELETE FROM member WHERE grp_id = 1",
                   "DELETE FROM strict WHERE id = 1",
                   "DELETE FROM grp WHERE id = 1", "INSERT INTO grp VALUES (9, 'one', 'a', NULL)")  # fmt: skip
    filled.install()
    assert filled.cluster.differences() == []
    assert filled.secondary.rows("SELECT id FROM member WHERE mine = 1") == [(71,)]
    assert filled.secondary.rows("SELECT id FROM u_cascade") == [(2,)]
    assert filled.secondary.rows("SELECT up FROM u_below") == [(2,)]
    assert filled.secondary.rows("SELECT id, grp_id FROM u_null ORDER BY id") == [(1, None), (2, 2)]
    assert filled.secondary.rows("SELECT code FROM u_code ORDER BY code") == [("one",), ("two",)]
    assert filled.secondary.rows("SELECT id, seen FROM grp WHERE id > 1 ORDER BY id") == [
        (2, "s2"),
        (3, "s3"),
        (4, "s4"),
        (9, None),
    ]


def test_local_rows_follow_a_value_that_has_changed(filled: Pair) -> None:
    filled.secondary.execute("DELETE FROM hint WHERE id = 2", "INSERT INTO u_code VALUES ('four')")
    filled.primary.execute("DELETE FROM hint WHERE id = 2", "UPDATE grp SET code = 'dos' WHERE id = 2")
    filled.install()
    assert filled.cluster.differences() == []
    assert filled.secondary.rows("SELECT code FROM u_code ORDER BY code") == [("dos",), ("four",), ("one",)]


def test_and_so_they_do_where_rows_stand_in_the_way(filled: Pair) -> None:
    filled.primary.execute("UPDATE grp SET code = 'tmp' WHERE id = 4", "UPDATE grp SET code = 'four' WHERE id = 3",
                           "UPDATE grp SET code = 'three' WHERE id = 4", "UPDATE grp SET code = 'dos' WHERE id = 2")  # fmt: skip
    filled.install()
    assert filled.cluster.differences() == []
    assert filled.secondary.rows("SELECT code FROM u_code ORDER BY code") == [("dos",), ("one",)]


@pytest.mark.parametrize("child", ["u_strict", "u_stay"])
@pytest.mark.parametrize("in_the_way", [False, True])
def test_a_local_row_that_holds_its_parent_is_named_with_the_remedy(filled: Pair, child: str, in_the_way: bool) -> None:
    filled.secondary.execute("INSERT INTO grp VALUES (9, 'nine', NULL, 'mine')", f"INSERT INTO {child} VALUES (9, 9)")
    if in_the_way:
        filled.primary.execute("INSERT INTO grp VALUES (8, 'nine', NULL, 'mine')")
    filled.primary.execute("UPDATE unit SET name = 'new' WHERE id = 3")
    before, different = local_rows(filled), filled.cluster.differences()
    with pytest.raises(NotApplicable, match=f"{child}.*grp.*synchronize again"):
        filled.install()
    assert local_rows(filled) == before
    assert filled.cluster.differences() == different
    filled.secondary.execute(f"DELETE FROM {child}")
    filled.install()
    assert filled.cluster.differences() == []


@pytest.mark.parametrize("broken", [
    ["DELETE FROM grp WHERE id = 1"], ["DELETE FROM tree WHERE id = 1"], ["INSERT INTO member (id, grp_id) VALUES (99, 98)"],
    ["UPDATE unit SET above = 77 WHERE id = 2"], ["DELETE FROM egg WHERE id = 1"],
])  # fmt: skip
def test_references_that_are_broken_on_the_primary_are_installed_as_they_are(
    filled: Pair, broken: list[str], request: pytest.FixtureRequest
) -> None:
    """TRAPS 2: and no cascade takes along what stayed there. Where that takes a right that is not given, it is asked for."""
    filled.blindly(filled.primary, *broken)
    if request.node.callspec.params["pair"] == "postgresql":
        before, different = local_rows(filled), filled.cluster.differences()
        with pytest.raises(NotApplicable, match="GRANT SET ON PARAMETER session_replication_role"):
            filled.install()
        assert local_rows(filled) == before
        assert filled.cluster.differences() == different
        return
    filled.install()
    assert filled.cluster.differences() == []


def test_references_that_were_broken_here_before_are_left_alone(filled: Pair) -> None:
    filled.blindly(filled.secondary, "INSERT INTO u_cascade VALUES (50, 999)", "INSERT INTO u_strict VALUES (51, 998)",
                   "INSERT INTO member (id, grp_id, mine) VALUES (77, 997, 1)")  # fmt: skip
    filled.primary.execute("UPDATE unit SET name = 'tmp' WHERE id = 1", "UPDATE unit SET name = 'root' WHERE id = 2",
                           "UPDATE unit SET name = 'left' WHERE id = 1", "UPDATE grp SET note = 'n'")  # fmt: skip
    before = local_rows(filled)
    filled.install()
    assert filled.cluster.differences() == []
    assert local_rows(filled) == before


def test_a_local_row_with_the_key_of_a_new_one_is_told(filled: Pair) -> None:
    filled.primary.execute("INSERT INTO member (id, grp_id) VALUES (70, 1)")
    different = filled.cluster.differences()
    with pytest.raises(NotApplicable, match="member"):
        filled.install()
    assert filled.cluster.differences() == different


def test_a_failure_at_the_end_leaves_everything_as_it_was(filled: Pair) -> None:
    """TRAPS 7: the position moves with the rows, or neither."""
    filled.primary.execute(
        "UPDATE unit SET name = 'tmp' WHERE id = 1", "DELETE FROM tree", "INSERT INTO grp VALUES (9, 'n', NULL, NULL)"
    )
    before, different = local_rows(filled), filled.cluster.differences()

    def refuse(_: object) -> None:
        raise NotApplicable("no")

    with pytest.raises(NotApplicable, match="no"):
        filled.install(refuse)
    assert local_rows(filled) == before
    assert filled.cluster.differences() == different


def test_nothing_is_captured_and_the_session_enforces_foreign_keys_again(filled: Pair) -> None:
    """TRAPS 5."""
    filled.secondary.execute("DELETE FROM stsync_outbox")
    filled.primary.execute("UPDATE unit SET name = 'tmp' WHERE id = 1", "UPDATE unit SET name = 'root' WHERE id = 2",
                           "UPDATE unit SET name = 'left' WHERE id = 1", "DELETE FROM tree WHERE id = 3")  # fmt: skip
    with filled.session() as (connection, listed):
        run(filled.secondary.database, connection, filled.differences(), listed, lambda _in_place: None)
        broken = "INSERT INTO u_stay VALUES (1, 12345)"
        with pytest.raises(Exception, match=r"(?i)foreign key"):  # noqa: PT012
            connection.exec_driver_sql(broken)
            filled.secondary.database.dialect.settle(connection)
        connection.rollback()
        assert connection.exec_driver_sql("SELECT count(*) FROM stsync_outbox").scalar_one() == 0
        connection.rollback()
    assert filled.secondary.rows("SELECT count(*) FROM stsync_outbox") == [(0,)]


SWAP = (
    "UPDATE unit SET name = 'tmp' WHERE id = 3",
    "UPDATE unit SET name = 'right' WHERE id = 4",
    "UPDATE unit SET name = 'leaf' WHERE id = 3",
)


@pytest.mark.parametrize("statements", [("UPDATE unit SET name = 'new' WHERE id = 1", "UPDATE grp SET note = 'x' WHERE id = 1"), SWAP],
                         ids=["in place", "in the way"])  # fmt: skip
def test_rows_that_are_equal_are_not_written(filled: Pair, statements: tuple[str, ...]) -> None:
    kind = filled.cluster.kind
    tables = ["grp", "unit", "member", "tree"]
    if kind != "postgresql":
        filled.secondary.execute("CREATE TABLE touched (tab VARCHAR(20), id BIGINT)")
        for table in tables:
            for event, row in (("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD")):
                body = f"INSERT INTO touched VALUES ('{table}', {row}.id)"
                body = f"BEGIN {body}; END" if kind == "sqlite" else body
                filled.secondary.execute(f"CREATE TRIGGER t_{table}_{event} AFTER {event} ON {table} FOR EACH ROW {body}")
    stamp = (
        {name: dict(filled.secondary.rows(f"SELECT id, CAST(xmin AS text) FROM {name}")) for name in tables}
        if kind == "postgresql"
        else {}
    )
    filled.primary.execute(*statements)
    filled.install()
    triggers = (
        []
        if kind == "postgresql"
        else [f"t_{table}_{event}" for table in tables for event in ("INSERT", "UPDATE", "DELETE")]
    )
    if kind == "postgresql":
        now = {name: dict(filled.secondary.rows(f"SELECT id, CAST(xmin AS text) FROM {name}")) for name in tables}
        touched = {(name, one) for name in tables for one in now[name] if now[name][one] != stamp[name].get(one)}
    else:
        touched = {(str(one), int(two)) for one, two in filled.secondary.rows("SELECT tab, id FROM touched")}
    if triggers:
        filled.secondary.execute(*(f"DROP TRIGGER {name}" for name in triggers), "DROP TABLE touched")
    assert filled.cluster.differences() == []
    assert touched == ({("unit", 3), ("unit", 4)} if statements is SWAP else {("unit", 1), ("grp", 1)})


def test_rows_longer_than_their_columns_are_told(filled: Pair) -> None:
    if filled.cluster.kind == "sqlite":
        pytest.skip("there a column holds anything")
    with filled.session() as (connection, listed):
        row = '["5","' + "x" * 30 + '",null]'
        one = replace(next(one for one in filled.differences() if one.table.name == "unit"), inserts=portions([row], 1))
        with pytest.raises(NotApplicable):
            run(filled.secondary.database, connection, [one], listed, lambda _in_place: None)
    assert filled.cluster.differences() == []
