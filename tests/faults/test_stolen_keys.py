"""What a node's own key signs is judged all the same: bodies that are none, bombs, forged answers, hostile texts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pika
import pytest

from common import wire
from common.trust.identity import load_identity
from common.wire import CatchUp, MessageKind, PastRetention, Writer, encode_body
from tests.faults.conftest import wait_running, wait_told
from tests.faults.test_attacks import (
    FORGED,
    SOON_S,
    Attack,
    assert_small,
    bombs,
    handmade,
    new_attack,
    sent_report,
    sized,
)
from tests.harness import wait_for
from tests.integration.conftest import MakeCluster

UNREADABLE = {
    "ends in the middle": b"\x00garbage",
    "no change": sized(b"garbage"),
    "a change, then none": FORGED + sized(b"garbage"),
}
HOSTILE = ("mft\x00st1", "st1 🏴‍☠️ 🎉")
ENDLESS = "s" * 4000


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_a_batch_of_the_primary_that_cannot_be_read_needs_a_full_synchronization(
    new_cluster: MakeCluster, vhost_url: str, database_kind: str, body: bytes
) -> None:
    """TRAPS 29: signed, complete and the next one; counted, told by both nodes, and nothing of it stays."""
    attack = new_attack(new_cluster, vhost_url, database_kind)
    primary, node = attack.cluster.primary, attack.cluster.nodes["st2"]
    stood, rows = node.sequence(), node.rows("SELECT * FROM unit ORDER BY id")
    attack.to_nodes(handmade(attack, b"\x00" + body))
    for reads in (node.status, lambda: primary.status()["nodes"][0]):
        wait_told(
            lambda reads=reads: reads()["state"] == "needs_full_sync",  # type: ignore[misc]
            lambda: f"{primary.status()}\n{attack.counts(node, 'malformed')}",
            SOON_S,
        )
        reason = reads()["reason"]
        assert "cannot be read" in reason
        assert f"sequence {stood}" in reason
    assert node.status()["refused"] == {"malformed": 1}
    assert (node.sequence(), node.rows("SELECT * FROM unit ORDER BY id")) == (stood, rows)
    assert node.rows("SELECT table_name, kind, key_json, reason FROM stsync_quarantine") == []
    assert node.process is not None
    assert node.process.poll() is None, node.log[-3000:]


def as_report(attack: Attack, body: bytes) -> bytes:
    return handmade(
        attack,
        body,
        signed_by="st2",
        kind=MessageKind.REPORT,
        audience="st1",
        sequence=0,
        previous=b"",
        expires_ms=int(time.time() * 1000) + 60_000,
    )


def test_a_secondary_cannot_fill_the_primarys_memory(new_cluster: MakeCluster, vhost_url: str) -> None:
    """TRAPS 12, 17: bombs and a message above the bound, in the place of a report."""
    attack = new_attack(new_cluster, vhost_url, "sqlite")
    announced, silent, modest = (as_report(attack, b"\x01" + one) for one in bombs())
    oversize = as_report(attack, b"\x00" + bytes(wire.MAX_MESSAGE_BYTES))
    attack.expect("st1", "size", lambda: attack.to_primary(announced, silent, oversize), 3)
    attack.expect("st1", "malformed", lambda: attack.to_primary(modest))
    assert_small(attack.cluster.primary)


def past_retention(attack: Attack, writer: Writer, expires_in_s: float = 60.0) -> bytes:
    """An answer that makes st2, as it stands now, give up."""
    stands, head = attack.cluster.nodes["st2"].sequence(), attack.cluster.primary.sequence()
    answer = PastRetention(time.time_ns() // 1000, asked=stands + 1, journal_first=stands + 100, sequence=stands + 200)
    return writer.write(
        MessageKind.PAST_RETENTION,
        encode_body(answer),
        epoch=1,
        sequence=head,
        audience="st2",
        expires_in_s=expires_in_s,
    )


def assert_in_sync(attack: Attack) -> None:
    node = attack.cluster.nodes["st2"]
    wait_told(lambda: node.status()["state"] == "in_sync", lambda: f"{node.status()}\n{node.log[-2000:]}", SOON_S)


def test_another_secondary_cannot_say_that_the_journal_is_pruned(new_cluster: MakeCluster, vhost_url: str) -> None:
    """TRAPS 34, 35: only the primary says what its journal has."""
    attack = new_attack(new_cluster, vhost_url, "sqlite", ("st1", "st2", "st3"))
    attack.expect("st2", "sender", lambda: attack.to_node("st2", past_retention(attack, attack.writer("st3"))))
    assert_in_sync(attack)


def test_an_answer_that_was_held_back_until_it_expired_is_refused(new_cluster: MakeCluster, vhost_url: str) -> None:
    """TRAPS 34: the primary's own, from long ago, asked for what this node lacks next."""
    attack = new_attack(new_cluster, vhost_url, "sqlite")
    identity = load_identity(attack.pki / "st1.key", attack.pki / "st1.pem", "st1")
    long_ago = Writer(identity, attack.sealer, "mft", clock=lambda: time.time() - 1000)
    attack.expect("st2", "expired", lambda: attack.to_node("st2", past_retention(attack, long_ago)))
    assert_in_sync(attack)


@contextmanager
def overheard(attack: Attack, name: str) -> Iterator[Any]:
    """Reads along what the primary answers a node."""
    with attack._channel(pika.URLParameters(attack.broker_url)) as channel:
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, attack.topology.direct_exchange, name)
        yield partial(channel.basic_get, queue, auto_ack=True)


def real_answer(attack: Attack) -> bytes:
    """The primary's own, to a request of st2 for what the journal has no more; st2 has received it too."""
    primary, node = attack.cluster.primary, attack.cluster.nodes["st2"]
    wait_for(lambda: primary.rows("SELECT number FROM stsync_reports"), "a report", SOON_S)
    assert node.stop() == 0
    primary.execute("DELETE FROM stsync_journal WHERE sequence < :head", head=primary.sequence())
    number = primary.rows("SELECT number FROM stsync_reports")[0][0] + 1000
    with overheard(attack, "st2") as get:
        attack.to_primary(sent_report(attack, encode_body(CatchUp(number, 1, 1)), kind=MessageKind.CATCH_UP))
        heard: bytes = wait_for(lambda: get()[2], "an answer", SOON_S)
    node.start()
    wait_running(node)
    assert primary.log.count('"catch_up_past_retention"') == 1
    return heard


def test_an_answer_of_another_moment_changes_nothing(new_cluster: MakeCluster, vhost_url: str) -> None:
    """TRAPS 34: not expired, but to another question than the one that is open."""
    attack = new_attack(new_cluster, vhost_url, "sqlite")
    attack.goes_on()
    answer = real_answer(attack)
    attack.expect("st2", "malformed", lambda: attack.to_node("st2", answer, answer, b"the last word"))
    assert_in_sync(attack)


def test_an_answer_that_comes_again_is_counted_as_replayed(new_cluster: MakeCluster, vhost_url: str) -> None:
    """TRAPS 34: its number, too, only rises."""
    attack = new_attack(new_cluster, vhost_url, "sqlite")
    attack.goes_on()
    answer = real_answer(attack)
    attack.expect("st2", "replayed", lambda: attack.to_node("st2", answer))
    assert_in_sync(attack)


def test_hostile_texts_in_a_header_are_told_and_stop_nobody(
    new_cluster: MakeCluster, vhost_url: str, database_kind: str
) -> None:
    """TRAPS 12, 34: what no database takes, and what no table holds; to a secondary, and to the primary."""
    attack = new_attack(new_cluster, vhost_url, database_kind)
    for name, send, forge in (
        ("st2", attack.to_nodes, partial(handmade, attack, b"\x00" + FORGED)),
        ("st1", attack.to_primary, partial(handmade, attack, b"\x00", signed_by="st2", kind=MessageKind.REPORT)),
    ):
        for field in ("cluster", "sender", "audience"):
            texts = [forge(**{field: text}) for text in HOSTILE]
            attack.expect(name, field, partial(send, *texts), len(texts))
        endless = [forge(**{field: ENDLESS}) for field in ("cluster", "sender", "audience")]
        attack.expect(name, "malformed", partial(send, *endless), len(endless))
        shown = attack.cluster.nodes[name].command("status")
        assert shown.returncode in (0, 1), shown.stderr
        assert "refused" in shown.stdout
