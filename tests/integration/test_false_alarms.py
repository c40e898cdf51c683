"""What comes again in the ordinary course of things is no attack."""

import pytest

from common.broker import Delivery
from common.wire import Heartbeat, MessageKind, encode_body
from consumer.missing import CATCH_UP_BATCHES
from tests.pipeline import Pipeline

pytestmark = pytest.mark.parametrize("database_kind", ["sqlite"])


def batches(pipeline: Pipeline, first: int, count: int) -> list[bytes]:
    """So many transactions, each a batch."""
    found = []
    for number in range(first, first + count):
        pipeline.primary.execute("INSERT INTO unit VALUES (:k, :n, NULL)", k=number, n=f"unit {number}")
        drained = pipeline.relay.drain()
        assert drained is not None
        found += [batch.message for batch in drained.batches]
    return found


def beat(pipeline: Pipeline, number: int) -> bytes:
    """A heartbeat that says that everything is published, once."""
    head = pipeline.relay.position
    body = encode_body(Heartbeat(number, head.sequence, head.hash, 1, head.sequence, 0))
    return pipeline.relay._writer.write(
        MessageKind.HEARTBEAT, body, epoch=head.epoch, sequence=head.sequence, expires_in_s=60
    )


def deliver(pipeline: Pipeline, messages: list[bytes]) -> None:
    deliveries = [Delivery(one, 1, None, redelivered=False, generation=1) for one in messages]
    pipeline.applier.work(pipeline._connection, deliveries)


def refusals(pipeline: Pipeline) -> list[tuple[object, ...]]:
    return pipeline.secondary.rows("SELECT kind, text FROM stsync_refusals")


def test_what_a_catch_up_brings_beyond_the_known_head_may_come_again(pipeline: Pipeline) -> None:
    """TRAPS 10, 34: the primary answers with all it was asked for and has, while the same batches are on their way anyway."""
    early = batches(pipeline, 1, 2)
    deliver(pipeline, early[1:])  # the first is missing: it asks, and knows of no more than two
    late = batches(pipeline, 3, 3)
    deliver(pipeline, early + late)
    deliver(pipeline, [*late, beat(pipeline, 1)])
    assert refusals(pipeline) == []
    assert pipeline.wrong() == []


def test_a_batch_that_was_never_asked_for_and_comes_again_is_told(pipeline: Pipeline) -> None:
    """TRAPS 34: also after a catch-up."""
    early = batches(pipeline, 1, 2)
    deliver(pipeline, early[1:])
    deliver(pipeline, early)
    late = batches(pipeline, 3, CATCH_UP_BATCHES)
    deliver(pipeline, late)
    deliver(pipeline, [late[-1], beat(pipeline, 1)])
    assert [kind for kind, _ in refusals(pipeline)] == ["replayed"]
