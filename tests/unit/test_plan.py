"""The fast path's plan is either right or absent (TRAPS 27): checked against a model that replays in the original order."""

import orjson
from hypothesis import given
from hypothesis import strategies as st

from common.changes import SEPARATOR, Frame, Kind
from common.schema import Column, ListedTable, Table, parents_first
from consumer import plan

T = ListedTable(Table("t", (Column("id", "int"), Column("v", "text")), ("id",)))
CHILD = ListedTable(Table("c", (Column("id", "int"), Column("v", "text")), ("id",), frozenset({"t"})))
LISTED = {"t": T, "c": CHILD}
ORDER = parents_first(LISTED.values())
OPERATIONS = st.lists(st.tuples(st.sampled_from("IUD"), st.integers(0, 3), st.integers(0, 99)), min_size=1, max_size=12)


def frames_of(operations: list[tuple[str, int, int]]) -> list[Frame]:
    """Neighbours of one kind become one frame, as the relay composes them."""
    frames: list[Frame] = []
    for kind, key, value in operations:
        row = orjson.dumps([str(key)] if kind == "D" else [str(key), str(value)]).decode()
        columns = ("id",) if kind == "D" else ("id", "v")
        if frames and frames[-1].kind == Kind(kind):
            last = frames.pop()
            frames.append(Frame("t", last.kind, columns, last.count + 1, last.rows + SEPARATOR + row))
        else:
            frames.append(Frame("t", Kind(kind), columns, 1, row))
    return frames


def legal(operations: list[tuple[str, int, int]], start: dict[str, str]) -> bool:
    """Whether a primary could have produced this: no insert of what is there, no update or delete of what is not."""
    here = set(start)
    for kind, key, _ in operations:
        if (kind == "I") == (str(key) in here):
            return False
        if kind == "I":
            here.add(str(key))
        if kind == "D":
            here.discard(str(key))
    return True


def replayed(steps: list[plan.Step], start: dict[str, str]) -> dict[str, str]:
    """What a database that enforces its keys makes of the steps."""
    here = dict(start)
    for step in steps:
        rows = orjson.loads(f"[{step.rows}]")
        assert len(rows) == step.count == len({row[0] for row in rows})
        for row in rows:
            if step.kind is Kind.DELETE:
                here.pop(row[0], None)
            else:
                assert (row[0] in here) == (step.kind is Kind.UPDATE)
                here[row[0]] = row[1]
    return here


@given(OPERATIONS, st.dictionaries(st.sampled_from("0123"), st.just("old")))
def test_a_plan_leads_where_the_original_order_leads(operations: list[tuple[str, int, int]], start: dict[str, str]) -> None:
    if not legal(operations, start):
        return
    expected = dict(start)
    for kind, key, value in operations:
        if kind == "D":
            expected.pop(str(key))
        else:
            expected[str(key)] = str(value)
    frames = frames_of(operations)
    steps = plan.fast(frames, LISTED, ORDER, 40)
    if steps is not None:
        assert replayed(steps, start) == expected
    assert replayed(list(plan.ordered(frames, LISTED)), start) == expected
    assert replayed(list(plan.single(frames)), start) == expected


def test_parents_are_set_before_children_and_deleted_after_them() -> None:
    frames = [
        Frame("c", Kind.DELETE, ("id",), 1, '["1"]'),
        Frame("c", Kind.INSERT, ("id", "v"), 1, '["2","x"]'),
        Frame("t", Kind.DELETE, ("id",), 1, '["1"]'),
        Frame("t", Kind.INSERT, ("id", "v"), 1, '["2","x"]'),
    ]
    steps = plan.fast(frames, LISTED, ORDER, 1 << 20)
    assert steps is not None
    assert [(step.table, step.kind) for step in steps] == [
        ("t", Kind.INSERT),
        ("c", Kind.INSERT),
        ("c", Kind.DELETE),
        ("t", Kind.DELETE),
    ]


def test_there_is_no_plan_for_what_must_keep_its_order() -> None:
    """A row deleted and inserted anew may have cascaded; keys that change and truncations cannot be collapsed."""
    again = [Frame("t", Kind.DELETE, ("id",), 1, '["1"]'), Frame("t", Kind.INSERT, ("id", "v"), 1, '["1","x"]')]
    assert plan.fast(again, LISTED, ORDER, 1 << 20) is None
    assert plan.fast([Frame("t", Kind.REKEY, ("id", "v"), 1, '["1","2","x"]')], LISTED, ORDER, 1 << 20) is None
    assert plan.fast([Frame("t", Kind.TRUNCATE, ("id", "v"), 1, "[]")], LISTED, ORDER, 1 << 20) is None
    assert plan.fast([Frame("unlisted", Kind.INSERT, ("id",), 1, '["1"]')], LISTED, ORDER, 1 << 20) is None


def test_circular_references_are_cut_and_every_table_stands_once() -> None:
    """TRAPS 28."""
    a = ListedTable(Table("a", (Column("id", "int"),), ("id",), frozenset({"b"})))
    b = ListedTable(Table("b", (Column("id", "int"),), ("id",), frozenset({"a"})))
    c = ListedTable(Table("c", (Column("id", "int"),), ("id",), frozenset({"c", "a"})))
    assert sorted(parents_first([a, b, c])) == ["a", "b", "c"]
    assert parents_first([a, b, c])[-1] == "c"
