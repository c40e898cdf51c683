"""What the broker, or somebody on the way, does to messages of a session: lost, twice, late, altered, of another time (TRAPS 34)."""

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from common.session import Begin, Chunk, Mode, TableShape, new_id
from common.topology import Topology
from common.wire import MessageKind, encode_body
from tests.faults.conftest import mostly, wait_running, wait_told
from tests.faults.test_broker_loss import do
from tests.faults.test_rejoin import told
from tests.faults.test_session_crashes import Command
from tests.harness import STSYNC, Cluster, wait_for
from tests.integration.conftest import MakeCluster
from tests.integration.test_sync import fill, of, run, spoil

TOPOLOGY = Topology("mft", ("st1", "st2", "st3"), "st1")
SETTINGS = "[sessions]\nrejoin = false\nverify_every_s = 1e9\nverify_at_once = false\nsilent_s = 5.0\nchunk_bytes = 1024\n"


def _ago(seconds: float) -> float:
    return time.time() - seconds


@pytest.fixture
def spoiled(new_cluster: MakeCluster, database_kind: str, vhost_url: str) -> Cluster:
    cluster = new_cluster(database_kind, settings=SETTINGS, broker_url=vhost_url)
    cluster.start()
    wait_running(*cluster.nodes.values())
    fill(cluster)
    for node in cluster.secondaries:
        spoil(node, 4)
    return cluster


def get(channel: Any, queue: str) -> tuple[Any, bytes] | None:
    method, properties, body = channel.basic_get(queue, auto_ack=True)
    return None if method is None else (properties, body)


def meddle(cluster: Cluster, url: str, with_message: Callable[[Any, Any, bytes], None], until: Callable[[], bool]) -> None:
    """Stand between the primary and st2: what is for its session queue comes to us first."""
    theirs, ours = TOPOLOGY.session_queue("st2"), "ours"

    def stand(channel: Any) -> None:
        channel.queue_declare(ours)
        for key in ("*", "st2"):
            channel.queue_bind(ours, TOPOLOGY.sessions_exchange, key)
            channel.queue_unbind(theirs, TOPOLOGY.sessions_exchange, key)
        while not until():
            found = get(channel, ours)
            if found is None:
                time.sleep(0.002)
                continue
            with_message(channel, theirs, found[1])

    do(url, stand)


def passing(chance: random.Random, how: str) -> Callable[[Any, Any, bytes], None]:
    kept: list[bytes] = []

    def pass_on(channel: Any, queue: str, body: bytes) -> None:
        if how == "lost" and chance.random() < 0.2:
            return
        if how == "altered" and chance.random() < 0.2:
            at = chance.randrange(len(body))
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        if how == "late":
            kept.append(body)
            if len(kept) < 3 and chance.random() < 0.7:
                return
            chance.shuffle(kept)
        for one in kept or [body]:
            channel.basic_publish("", queue, one)
            if how == "twice":
                channel.basic_publish("", queue, one)
        kept.clear()

    return pass_on


@mostly("sqlite")
@pytest.mark.parametrize("how", ["lost", "twice", "late", "altered"])
def test_whatever_happens_to_messages_on_the_way_all_are_equal(
    spoiled: Cluster, vhost_url: str, how: str, database_kind: str
) -> None:
    command = Command(spoiled.primary)
    meddle(spoiled, vhost_url, passing(random.Random(7), how), lambda: not command.is_alive())
    command.join()
    assert command.done is not None
    assert command.done.returncode == 0, command.done.stdout + command.done.stderr
    assert spoiled.differences() == []
    refused = spoiled.nodes["st2"].rows("SELECT kind FROM stsync_refusals")
    assert bool(refused) is (how == "altered")


@mostly("sqlite")
def test_a_queue_that_swallows_everything_ends_the_session_there_and_the_log_goes_on(
    spoiled: Cluster, vhost_url: str, database_kind: str
) -> None:
    command = Command(spoiled.primary)
    meddle(spoiled, vhost_url, lambda _channel, _queue, _body: None, lambda: not command.is_alive())
    command.join()
    assert command.done is not None
    assert command.done.returncode == 1
    wait_told(lambda: spoiled.nodes["st2"].status()["state"] == "in_sync", lambda: told(spoiled))
    spoiled.primary.execute("INSERT INTO unit (id, name) VALUES (5000, 'later')")
    wait_for(lambda: spoiled.nodes["st2"].rows("SELECT 1 FROM unit WHERE id = 5000"), "the log goes on")
    assert spoiled.primary.rows("SELECT name FROM unit WHERE id = 5000") == [("later",)]


@mostly("sqlite")
def test_a_session_that_takes_too_long_ends_and_says_so(spoiled: Cluster, vhost_url: str, database_kind: str) -> None:
    command = Command(spoiled.primary, "--timeout", "2")
    meddle(spoiled, vhost_url, lambda _channel, _queue, _body: None, lambda: not command.is_alive())
    command.join()
    assert command.done is not None
    assert command.done.returncode == 1
    assert "st2: pausing" in command.done.stderr, "how far it is, for whoever reads a script's log"
    document = json.loads(command.done.stdout)
    assert document["phase"] == "failed"
    assert "longer than 2 s" in document["reason"]
    wait_told(lambda: all(node.status()["state"] != "paused" for node in spoiled.secondaries), lambda: told(spoiled))


@mostly("sqlite")
def test_who_interrupts_it_leaves_a_cluster_that_goes_on(spoiled: Cluster, vhost_url: str, database_kind: str) -> None:
    """Ctrl-C: exit 130, and a sentence about what happened."""
    process = subprocess.Popen(
        [*STSYNC, "sync", "--config", str(spoiled.primary.config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def asked() -> bool:
        return bool(spoiled.primary.rows("SELECT 1 FROM stsync_sessions WHERE phase <> 'requested'"))

    def interrupt(channel: Any, queue: str, body: bytes) -> None:
        del channel, queue, body  # nothing comes through: it would be over at once

    sent = False

    def over() -> bool:
        nonlocal sent
        if asked() and not sent:
            sent = True
            process.send_signal(signal.SIGINT)
        return process.poll() is not None

    meddle(spoiled, vhost_url, interrupt, over)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "it was cancelled" in errors
    assert spoiled.primary.rows("SELECT phase FROM stsync_sessions") == [("failed",)]
    wait_told(
        lambda: all(node.status()["state"] == "in_sync" for node in spoiled.secondaries),
        lambda: told(spoiled),
    )


@mostly("sqlite")
def test_sessions_of_others_and_of_another_time_change_nothing(spoiled: Cluster, vhost_url: str, database_kind: str) -> None:
    """TRAPS 34: of a secondary in the primary's name, of a former epoch, of a session that is over, expired."""
    from common import nodestate, runtime  # noqa: PLC0415
    from common.service_lock import ServiceLock  # noqa: PLC0415
    from common.stop import Stop  # noqa: PLC0415

    victim = spoiled.nodes["st2"]

    def parts(name: str) -> runtime.Runtime:
        node, stop = spoiled.nodes[name], Stop()
        with node.database.connect(read_only=True) as connection:
            state = nodestate.read_installed(connection, node.settings)
        return runtime.build(node.settings, node.database, state, stop, ServiceLock(node.database, stop))

    shape = TableShape("unit", (), 1, 1)
    before = victim.rows("SELECT count(*), max(name) FROM unit")
    messages = []
    for name, epoch, age_s in (("st3", 1, 0.0), ("st1", 0, 0.0), ("st1", 1, 4000.0)):
        begin = Begin(2**61, Mode.SYNC, False, ("st2",), 0, b"", (shape,))
        writer = parts(name).writer
        writer._clock = partial(_ago, age_s)
        kind, body = MessageKind.SESSION, encode_body(begin)
        messages.append(writer.write(kind, body, epoch=epoch, sequence=1, previous=new_id(), expires_in_s=60.0))
    chunk = Chunk(0, 0, 1, '["1","forged",null]')
    stray = parts("st1").writer.write(
        MessageKind.SESSION, encode_body(chunk), epoch=1, sequence=2, previous=new_id(), expires_in_s=60.0
    )

    def publish(channel: Any) -> None:
        for message in messages:
            channel.basic_publish("", TOPOLOGY.node_queue("st2"), message)
        channel.basic_publish("", TOPOLOGY.session_queue("st2"), stray)

    do(vhost_url, publish)
    wait_for(
        lambda: {kind for (kind,) in victim.rows("SELECT kind FROM stsync_refusals")} >= {"sender", "epoch", "expired"},
        "all three refused",
    )
    wait_told(lambda: victim.status()["state"] == "in_sync", lambda: victim.status()["reason"])  # once the primary is heard
    assert victim.rows("SELECT count(*), max(name) FROM unit") == before
    code, document = run(spoiled.primary, "sync")
    assert code == 0, document
    assert of(document, "st2")["result"] == "done"
    assert spoiled.differences() == []
