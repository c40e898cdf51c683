"""What only looks like a change concerns itself alone: a program's outbox row, and a frame that the primary signed (TRAPS 29, 34).

Any program of the primary may write `canonical = 1`, and with it what no trigger would.
"""

import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from sqlalchemy import text

from common.broker import Delivery
from common.changes import GENESIS, Frame, Kind, encode_frame
from common.wire import MessageKind
from tests.integration.conftest import MakePipeline
from tests.pipeline import Pipeline, _built

ITEM = "CREATE TABLE item (id BIGINT PRIMARY KEY, name VARCHAR(40))"
COLUMNS = ("id", "name")
Make = Callable[[str], Pipeline]


@pytest.fixture
def make(new_pipeline: MakePipeline) -> Make:
    return lambda kind: new_pipeline(kind, ITEM, tables="item\n")


@pytest.fixture
def pipeline(make: Make, database_kind: str) -> Pipeline:
    return make(database_kind)


def deliver(pipeline: Pipeline, *frames: bytes) -> None:
    """A change set of these frames, signed by the primary."""
    writer = _built(pipeline.primary)[0].writer
    message = writer.write(MessageKind.BATCH, b"".join(frames), epoch=1, sequence=1, previous=GENESIS)
    pipeline.applier.work(pipeline._connection, [Delivery(message, 1, None, redelivered=False, generation=1)])
    pipeline._connection.rollback()


def waits(pipeline: Pipeline) -> int:
    return int(pipeline.secondary.rows("SELECT count(*) FROM stsync_quarantine")[0][0])


BAD_ROWS = {
    "an object": (Kind.INSERT, COLUMNS, '[3,{"r":[1]}]'),
    "a tag of nothing": (Kind.INSERT, COLUMNS, '[3,{"r":null}]'),
    "an array": (Kind.INSERT, COLUMNS, "[3,[1]]"),
    "a key with an escape that is none": (Kind.UPDATE, COLUMNS, '["\\q","a"]'),
    "a key that is an array": (Kind.UPDATE, COLUMNS, '[[3],"a"]'),
    "no JSON": (Kind.UPDATE, COLUMNS, "[3,abc]"),
    "too few values": (Kind.INSERT, COLUMNS, "[3]"),
    "a delete of an object": (Kind.DELETE, ("id",), '[{"x":1}]'),
    "a key update that is a number": (Kind.REKEY, COLUMNS, "[1"),
}


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_a_row_that_is_none_waits_alone(pipeline: Pipeline, bad: str) -> None:
    """Some are none on one database only: to PostgreSQL an object is a text like others."""
    kind, columns, row = BAD_ROWS[bad]
    good = [encode_frame(Frame("item", Kind.INSERT, COLUMNS, 1, f'["{i}","good"]', 1)) for i in (1, 2)]
    deliver(pipeline, good[0], encode_frame(Frame("item", kind, columns, 1, row, 1)), good[1])
    assert pipeline.secondary.rows("SELECT id, name FROM item WHERE id < 3 ORDER BY id") == [(1, "good"), (2, "good")]
    taken = pipeline.secondary.rows("SELECT count(*) FROM item WHERE id = 3")[0][0]
    assert waits(pipeline) + taken == 1
    assert pipeline.secondary.rows("SELECT sequence, reason FROM stsync_node") == [(1, None)]


def test_bad_rows_among_good_ones_of_one_frame_wait_alone(pipeline: Pipeline) -> None:
    deliver(
        pipeline,
        encode_frame(Frame("item", Kind.INSERT, COLUMNS, 3, ",\n".join(f'["{i}","a"]' for i in (1, 2, 3)), 1)),
        encode_frame(Frame("item", Kind.UPDATE, COLUMNS, 4, '["1","b"],\n["\\q","b"],\n[["2"],"b"],\n["3","b"]', 1)),
        encode_frame(Frame("item", Kind.REKEY, COLUMNS, 2, '["3","4","c"],\n5', 1)),
    )
    assert pipeline.secondary.rows("SELECT id, name FROM item ORDER BY id") == [(1, "b"), (2, "a"), (4, "c")]
    assert waits(pipeline) == 3
    assert pipeline.secondary.rows("SELECT sequence FROM stsync_node") == [(1,)]


def test_bad_rows_of_one_key_do_not_trip_over_each_other(pipeline: Pipeline) -> None:
    """TRAPS 29: the second fails as the first one did, and would wait in its place."""
    bad = [encode_frame(Frame("item", Kind.UPDATE, COLUMNS, 1, f"[3,abc{i}]", 1)) for i in (1, 2)]
    deliver(pipeline, *bad, encode_frame(Frame("item", Kind.INSERT, COLUMNS, 1, '["3","good"]', 1)))
    assert pipeline.secondary.rows("SELECT id, name FROM item") == [(3, "good")]
    for arguments in (["list", "--json"], ["list"], ["show", "1"], ["show", "1", "--json"]):
        done = pipeline.secondary.command("quarantine", *arguments)
        assert (done.returncode, done.stderr) == (1, ""), arguments
    found = json.loads(pipeline.secondary.command("quarantine", "list", "--json").stdout)["quarantined"]
    assert found
    shown = json.loads(pipeline.secondary.command("quarantine", "show", "1", "--json").stdout)
    assert "abc" in shown["row"]


@pytest.mark.parametrize(
    "frame",
    [
        encode_frame(Frame("item", Kind.INSERT, COLUMNS, 1, '[1,"aaaa"]', 1)).replace(b"aaaa", b"\xff\xff\xff\xff"),
        encode_frame(Frame("it\0em", Kind.INSERT, COLUMNS, 1, '[1,"a"]', 1)),
        encode_frame(Frame("item", Kind.INSERT, ("id", "na\0me"), 1, '[1,"a"]', 1)),
        encode_frame(Frame("item", Kind.INSERT, COLUMNS, 1, '[1,"\0"]', 1)),
        encode_frame(Frame("i" * 300, Kind.INSERT, COLUMNS, 1, '[1,"a"]', 1)),
        encode_frame(Frame("item", Kind.INSERT, COLUMNS, 1, '[1,"a"]', 2**31)),
        encode_frame(Frame("item", Kind.INSERT, COLUMNS, 1, '[1,"a"]', -1)),
    ],
    ids=["no UTF-8", "NUL in the table", "NUL in a column", "NUL in a row", "a long name", "a huge key", "a negative key"],
)
def test_a_frame_that_no_database_could_keep_is_refused(pipeline: Pipeline, frame: bytes) -> None:
    """TRAPS 34: refused and told, as what cannot be read is; the applier goes on."""
    deliver(pipeline, frame)
    ((sequence, state, reason),) = pipeline.secondary.rows("SELECT sequence, state, reason FROM stsync_node")
    assert (sequence, state) == (0, "needs_full_sync")
    assert "cannot be read" in reason
    assert pipeline.secondary.rows("SELECT kind FROM stsync_refusals") == [("malformed",)]


ROWS: list[dict[str, Any]] = [
    {"t": "item", "k": "I", "c": '["id","na\0me"]', "r": '[1,"a"]', "f": 1},
    {"t": "item", "k": "I", "c": '["id","na\\u0000me"]', "r": '[1,"a"]', "f": 1},
    {"t": "it\0em", "k": "I", "c": '["id","name"]', "r": '[1,"a"]', "f": 1},
    {"t": "item", "k": "I", "c": '["id","name"]', "r": '[1,"\0"]', "f": 1},
    {"t": "i" * 300, "k": "I", "c": '["id","name"]', "r": '[1,"a"]', "f": 1},
]


def test_an_outbox_row_that_no_secondary_could_keep_is_set_aside(make: Make) -> None:
    """SQLite takes whatever it is given; the secondaries never see it."""
    pipeline = make("sqlite")
    with pipeline.primary.engine.begin() as connection:
        for row in ROWS:
            connection.execute(
                text(
                    "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json, canonical) VALUES (:t, :k, :c, :r, :f)"
                ),
                row,
            )
        connection.execute(text("INSERT INTO item VALUES (7, 'seven')"))
    pipeline.move()
    assert pipeline.secondary.rows("SELECT id, name FROM item") == [(7, "seven")]
    assert pipeline.primary.rows("SELECT count(*) FROM stsync_rejected") == [(len(ROWS),)]
    assert pipeline.wrong() == []


BLOBS: list[dict[str, Any]] = [
    {"t": "item", "k": "U", "c": '["id","name"]', "r": orjson.dumps([7, "new"]), "n": 1, "f": 0},
    {"t": "item", "k": "U", "c": orjson.dumps(["id", "name"]), "r": '[7,"new"]', "n": 1, "f": 0},
    {"t": "item", "k": b"U", "c": '["id","name"]', "r": '[7,"new"]', "n": 1, "f": 0},
    {"t": b"item", "k": "U", "c": '["id","name"]', "r": '[7,"new"]', "n": 1, "f": 0},
    {"t": "item", "k": "U", "c": '["id","name"]', "r": '[7,"new"]', "n": "many", "f": 0},
    {"t": "item", "k": "U", "c": '["id","name"]', "r": b'["7","new"]', "n": 1, "f": 1},
]


@pytest.mark.parametrize("row", BLOBS, ids=["rows", "columns", "kind", "table", "number of rows", "rows, canonical"])
def test_what_sqlite_stores_as_something_else_is_read_as_what_it_is_meant_to_be(make: Make, row: dict[str, Any]) -> None:
    """A column of SQLite takes any value: whoever serializes to bytes, as Python's orjson does, leaves a BLOB there."""
    pipeline = make("sqlite")
    pipeline.primary.execute("INSERT INTO item VALUES (7, 'old')")
    pipeline.move()
    with pipeline.primary.engine.begin() as connection:
        connection.execute(text("INSERT INTO stsync_replaying (id) VALUES (1)"))
        connection.execute(text("UPDATE item SET name = 'new' WHERE id = 7"))
        connection.execute(text("DELETE FROM stsync_replaying"))
        connection.execute(
            text(
                "INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json, row_count, canonical)"
                " VALUES (:t, :k, :c, :r, :n, :f)"
            ),
            row,
        )
    pipeline.move()
    assert pipeline.secondary.rows("SELECT id, name FROM item") == [(7, "new")]
    assert pipeline.wrong() == []


def test_a_bad_row_of_bytes_is_set_aside(make: Make) -> None:
    pipeline = make("sqlite")
    with pipeline.primary.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO stsync_outbox (table_name, kind, columns_json, rows_json) VALUES (:t, 'U', :c, :r)"),
            {"t": b"item\xff", "c": b"\xff", "r": b"\xff\x00"},
        )
        connection.execute(text("INSERT INTO item VALUES (7, 'seven')"))
    pipeline.move()
    assert pipeline.secondary.rows("SELECT id, name FROM item") == [(7, "seven")]
    assert pipeline.primary.rows("SELECT count(*) FROM stsync_rejected") == [(1,)]
