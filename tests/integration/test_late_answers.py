"""An answer that a newer one passed on its way is late, and no alarm; the same one twice is one (TRAPS 16, 34)."""

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
        make_cluster(tmp_path / "c", "sqlite", NO_BROKER, new_database, schema=schema, tables="item\n", nodes=("st1", "st2"))
    )
    yield made
    made.close()


def answer(pipeline: Pipeline, *numbers: int) -> None:
    """The primary's answers with these numbers, as they arrive one after the other."""
    writer = _built(pipeline.primary)[0].writer
    for number in numbers:
        message = writer.write(
            MessageKind.PAST_RETENTION,
            encode_body(PastRetention(number, asked=FAR, journal_first=FAR + 1, sequence=FAR + 2)),
            epoch=1,
            sequence=FAR + 2,
            audience=pipeline.secondary.name,
            expires_in_s=60,
        )
        pipeline.applier.work(pipeline._connection, [Delivery(message, number, None, redelivered=False, generation=1)])


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
