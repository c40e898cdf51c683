"""A change that waits is never allowed to bring back what a later one has set (TRAPS 29)."""

from dataclasses import replace

import pytest

from common.changes import Frame, Kind
from common.schema import Column, Equality, ListedTable, Table
from consumer.overtaking import Failed, Later, Waiting, joined, respells
from consumer.plan import Step

COLUMNS = ("id", "a", "b")
TABLE = ListedTable(
    Table("t", tuple(Column(name, "int", False, False) for name in COLUMNS), ("id",), guarded=frozenset("a"))
)
KEY_ONLY = ("id",)


def step(kind: str, rows: str, columns: tuple[str, ...] = COLUMNS) -> Step:
    return Step("t", Kind(kind), columns, 1, rows)


def left(waiting: Step, *later: Step, failed: tuple[int, ...] = ()) -> Step | None:
    """`failed`: which of the later ones did not go."""
    seen = Later()
    for place, one in enumerate(later):
        went = {0: Failed(1, 1, one, "why", (place,))} if place in failed else {}
        seen.see(Frame(one.table, one.kind, one.columns, 1, one.rows), TABLE, failed=went)
    return seen.left_of(waiting, TABLE)


def both(waiting: Step, later: Step, *, reason: str = "why") -> Step | None:
    return joined(waiting, "why", later, reason, TABLE)


@pytest.mark.parametrize(
    ("waiting", "later"),
    [
        (step("U", "[1,2,3]"), step("U", "[1,4,5]")),
        (step("I", "[1,2,3]"), step("D", "[1]", KEY_ONLY)),
        (step("D", "[1]", KEY_ONLY), step("I", "[1,4,5]")),
        (step("U", "[1,2,3]"), step("K", "[1,9,4,5]")),
        (step("U", "[9,2,3]"), step("K", "[1,9,4,5]")),
        (step("U", "[1,2,3]"), step("T", "[]")),
        (step("K", "[1,2,3,4]"), step("T", "[]")),
        (step("I", "[1,2]", ("id", "a")), step("U", "[1,7,8]")),
    ],
)
def test_what_a_later_change_settles_is_given_up(waiting: Step, later: Step) -> None:
    assert left(waiting, later) is None


def test_a_key_is_the_same_however_it_is_escaped() -> None:
    assert left(step("U", r'["a\/b",2,3]'), step("K", r'["c","a\/b",4,5]')) is None
    assert left(step("U", '["a/b",2,3]'), step("D", r'["a\u002fb"]', KEY_ONLY)) is None


def test_another_row_settles_nothing() -> None:
    waiting = step("U", "[1,2,3]")
    assert left(waiting, step("U", "[2,4,5]"), step("D", "[3]", KEY_ONLY)) == waiting


def test_what_a_later_change_does_not_set_is_still_due() -> None:
    """A program may write a change of some columns alone (README, outbox)."""
    assert left(step("I", "[1,2,3]"), step("U", "[1,8]", ("id", "b"))) == step("I", "[1,2]", ("id", "a"))


def test_a_later_change_of_some_columns_that_failed_too_settles_nothing() -> None:
    """Both wait: the older one makes the row that the newer needs."""
    waiting = step("I", "[1,2,3]")
    assert left(waiting, step("U", "[1,8]", ("id", "b")), failed=(0,)) == waiting


def test_two_changes_of_a_row_wait_as_one_where_the_first_is_no_step_of_an_exchange() -> None:
    """TRAPS 27: `a` is unique: who leaves it alone frees nothing for anybody."""
    waiting = step("I", "[1,2,3]")
    assert both(waiting, step("U", "[1,2,9]")) == step("I", "[1,2,9]"), "in the place, and as what, the first was"
    assert both(waiting, step("U", "[1,4,3]")) is None
    assert both(waiting, step("U", "[1,2,9]"), reason="another") is None, "the first may go before the second"
    assert both(waiting, step("U", "[1,2]", ("id", "a"))) is None, "it makes the row"
    assert both(step("U", "[1,3]", ("id", "b")), step("U", "[1,2,9]")) is None, "the second sets what the first leaves alone"
    second = step("U", "[1,2,9]")
    assert both(step("U", "[1,2]", ("id", "a")), second) is None, (
        "the second alone may need a column more, for the same reason"
    )
    assert both(waiting, step("D", "[1]", KEY_ONLY)) is None
    assert both(step("D", "[1]", KEY_ONLY), waiting) is None
    assert both(waiting, replace(step("U", "[1,2,9]"), unchecked=True)) is None
    assert both(step("K", "[9,1,2,3]"), step("U", "[1,2,9]")) is None


def test_a_key_update_that_failed_too_settles_nothing() -> None:
    """TRAPS 27: it may itself wait for the row whose older change it would settle."""
    for waiting in (step("U", "[1,2,3]"), step("U", "[9,2,3]"), step("K", "[1,2,3,4]"), step("D", "[9]", KEY_ONLY)):
        assert left(waiting, step("K", "[1,9,4,5]"), failed=(0,)) == waiting


def test_a_change_that_went_settles_though_a_newer_one_of_its_row_failed() -> None:
    """TRAPS 29: what the row has by now is not to be taken back."""
    assert left(step("I", "[1,2,3]"), step("U", "[1,4,5]"), step("U", "[1,6,7]"), failed=(1,)) is None


def test_within_a_unit_one_that_is_no_step_waits_with_the_next_one() -> None:
    many = Waiting({"t": TABLE})
    for place, rows in enumerate(("[1,2,3]", "[1,2,4]", "[1,2,5]", "[1,6,5]")):
        many.failed(place, step("U", rows), "why")
    assert many.due() == [(0, step("U", "[1,2,5]")), (3, step("U", "[1,6,5]"))]
    assert many.merged == {0: [1, 2]}


def test_within_a_unit_a_truncation_that_fails_empties_the_table_too() -> None:
    many = Waiting({"t": TABLE})
    many.failed(0, step("U", "[1,2,3]"), "why")
    many.failed(1, step("T", "[]"), "why")
    many.failed(2, step("U", "[1,2,4]"), "why")
    assert sorted(many.steps) == [1, 2]
    assert many.merged == {1: [0]}


def test_a_key_update_keeps_the_half_that_is_due() -> None:
    waiting = step("K", "[1,2,3,4]")
    assert left(waiting, step("U", "[2,8,9]")) == step("D", "[1]", KEY_ONLY)
    assert left(waiting, step("I", "[1,8,9]")) == step("U", "[2,3,4]")
    assert left(waiting, step("I", "[1,8,9]"), step("D", "[2]", KEY_ONLY)) is None


def waiting(*steps: tuple[int, Step]) -> Waiting:
    made = Waiting({"t": TABLE})
    for place, one in steps:
        made.add(place, one, "why")
    return made


def test_within_a_unit_only_earlier_changes_are_settled() -> None:
    many = waiting((1, step("U", "[1,2,3]")), (5, step("U", "[1,6,7]")))
    many.done(3, step("U", "[1,4,5]"))
    assert many.due() == [(5, step("U", "[1,6,7]"))]


def test_within_a_unit_a_key_update_that_went_settles_both_rows() -> None:
    many = waiting((1, step("U", "[1,2,3]")), (2, step("D", "[9]", KEY_ONLY)), (3, step("U", "[4,2,3]")))
    many.done(4, step("K", "[1,9,5,6]"))
    assert many.due() == [(3, step("U", "[4,2,3]"))]


def test_within_a_unit_a_truncation_empties_the_table() -> None:
    many = waiting((1, step("U", "[1,2,3]")), (2, step("K", "[4,5,2,3]")))
    many.done(3, step("T", "[]"))
    assert many.due() == []


def test_a_truncation_is_not_tried_again_over_rows_that_came_after_it() -> None:
    many = waiting((1, step("T", "[]")))
    assert many.due() == [(1, step("T", "[]"))]
    many.done(2, step("I", "[1,2,3]"))
    assert many.due() == []
    assert list(many.steps) == [1]


def test_a_key_update_keeps_what_a_later_change_of_some_columns_did_not_set() -> None:
    """The row that has its new key already takes the rest only once the old one is out of the way."""
    some = step("U", "[2,8]", ("id", "b"))
    assert left(step("K", "[1,2,3,4]"), some) == step("K", "[1,2,3]", ("id", "a"))
    assert left(step("K", "[1,2,3,4]"), some, step("I", "[1,5,6]")) == step("U", "[2,3]", ("id", "a"))
    assert left(step("K", "[1,2,3,4]"), step("U", "[2,7,8]")) == step("D", "[1]", KEY_ONLY)


def test_a_change_of_a_table_with_another_key_settles_nothing() -> None:
    waiting = step("U", "[1,2,3]")
    assert left(waiting, step("U", "[1,4]", ("a", "b"))) == waiting


@pytest.mark.parametrize(
    ("kind", "equality", "old", "new", "same"),
    [
        ("TEXT", "folded", '"Acme"', '"aCME "', True),
        ("TEXT", "exact", '"Acme"', '"acme"', False),
        ("varchar(9) COLLATE utf8mb4_bin", "folded", '"a"', '"a  "', True),
        ("varchar(9) COLLATE utf8mb4_bin", "folded", '"a"', '"A"', False),
        ("pg_catalog.numeric", "unknown", '"1.0"', '"1.00"', True),
        ("pg_catalog.numeric", "unknown", '"1"', '"2"', False),
        ("pg_catalog.numeric", "unknown", '"NaN"', '"1"', False),
        ("pg_catalog.text", "unknown", '"1e5"', '"100000"', False),
        ("pg_catalog.text", "unknown", '"sNaN"', '"snan"', True),
        ("double", "unknown", '"1e400000000"', '"1"', False),
        ("TEXT", "folded", "abc", '"abc"', False),
    ],
)
def test_another_spelling_of_the_same_key_is_known(kind: str, equality: Equality, old: str, new: str, same: bool) -> None:
    table = ListedTable(Table("t", (Column("id", kind, equality=equality), Column("a", "int")), ("id",)))
    assert respells(step("K", f"[{old},{new},1]", ("id", "a")), table) is same
