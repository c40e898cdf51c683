"""Answers to what a secondary asks for: one that a newer one passed on its way is late, and no alarm; the same one twice is one; and
none counts any more once what was asked for has come (TRAPS 12, 16, 34)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.broker import Delivery
from common.wire import MessageKind, PastRetention, encode_body
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, make_cluster
from tests.pipeline import Pipeline, _built

FAR = 1000  # none of these answers is one to what the secondary would ask


@pytest.fixture
def pipeline(tmp_path: Path, new_database: NewDatabase) -> Iterator[Pipeline]:
    schema = ("CREATE TABLE item (id BIGINT PRIMARY KEY)",)
    made = Pipeline(
        make_cluster(
            tmp_path / "c",
            "sqlite",
            NO_BROKER,
            new_database,
            schema=schema,
            tables="item\n",
            nodes=("st1", "st2"),
            settings="[relay]\nbatch_bytes = 1024\n",
        )
    )
    yield made
    made.close()


def answer(pipeline: Pipeline, *numbers: int) -> None:
    """The primary's answers with these numbers, as they arrive one after the other."""
    for number in numbers:
        arrive(pipeline, past_retention(pipeline, number, asked=FAR, first=FAR + 1))


def past_retention(pipeline: Pipeline, number: int, asked: int, first: int) -> bytes:
    """The primary's answer to who asked for this sequence: its journal begins later."""
    return _built(pipeline.primary)[0].writer.write(
        MessageKind.PAST_RETENTION,
        encode_body(PastRetention(number, asked=asked, journal_first=first, sequence=first + 1)),
        epoch=1,
        sequence=first + 1,
        audience=pipeline.secondary.name,
        expires_in_s=60,
    )


def arrive(pipeline: Pipeline, *messages: bytes) -> None:
    """All at once, in this order."""
    deliveries = [Delivery(one, tag, None, redelivered=False, generation=1) for tag, one in enumerate(messages)]
    pipeline.applier.work(pipeline._connection, deliveries)
    pipeline._connection.rollback()


def drained(pipeline: Pipeline, *statements: str) -> list[bytes]:
    """The batches of these statements' change set."""
    pipeline.primary.execute(*statements)
    found = pipeline.relay.drain()
    assert found is not None
    return [batch.message for batch in found.batches]


def refused(pipeline: Pipeline) -> list[tuple[object, ...]]:
    return pipeline.secondary.rows("SELECT kind, count FROM stsync_refusals")


def test_an_answer_that_was_passed_by_is_no_replay(pipeline: Pipeline) -> None:
    answer(pipeline, 5, 8, 7, 9, 6)
    assert refused(pipeline) == []


@pytest.mark.parametrize("again", [5, 7, 8])
def test_the_same_answer_twice_is_a_replay(pipeline: Pipeline, again: int) -> None:
    answer(pipeline, 5, 8, 7)
    assert refused(pipeline) == []
    answer(pipeline, again)
    assert refused(pipeline) == [("replayed", 1)]


def state(pipeline: Pipeline) -> str:
    return str(pipeline.secondary.rows("SELECT state FROM stsync_node")[0][0])


def test_what_came_after_all_is_not_past_retention(pipeline: Pipeline) -> None:
    """The queue had what the journal has no more, and the answer comes behind it."""
    batches = drained(pipeline, "INSERT INTO item VALUES (1)") + drained(pipeline, "INSERT INTO item VALUES (2)")
    arrive(pipeline, *batches, past_retention(pipeline, 1, asked=1, first=3))
    assert pipeline.secondary.rows("SELECT count(*) FROM item") == [(2,)]
    assert state(pipeline) != "needs_full_sync"


MANY = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) INSERT INTO item SELECT i * 1000003 FROM n"


def test_what_is_coming_is_not_past_retention(pipeline: Pipeline) -> None:
    """A change set of many batches, of which some have come: none of it is applied yet."""
    batches = drained(pipeline, MANY)
    assert len(batches) > 8
    arrive(pipeline, *batches[:5])
    arrive(pipeline, past_retention(pipeline, 1, asked=1, first=len(batches) + 1))
    arrive(pipeline, *batches[5:])
    assert pipeline.secondary.rows("SELECT count(*) FROM item") == [(3000,)]
    assert state(pipeline) != "needs_full_sync"


def test_a_hole_in_the_middle_of_a_change_set_is_past_retention(pipeline: Pipeline) -> None:
    batches = drained(pipeline, MANY)
    arrive(pipeline, *batches[:5], *batches[7:])
    assert state(pipeline) != "needs_full_sync"
    arrive(pipeline, past_retention(pipeline, 1, asked=6, first=8))
    assert state(pipeline) == "needs_full_sync"
    assert pipeline.secondary.rows("SELECT count(*) FROM item") == [(0,)]
