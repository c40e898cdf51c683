"""What an attacker at the broker can send changes nothing, is counted by kind, and replication goes on."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pika
import pytest
import zstandard

from common import wire
from common.changes import Frame, Kind, encode_frame
from common.topology import Topology
from common.trust.identity import load_identity
from common.trust.pki import init_cluster, issue_node
from common.trust.sealing import Sealer, load_cluster_pair
from common.trust.signing import pae, sign
from common.wire import CatchUp, Header, Heartbeat, MessageKind, Report, Writer, encode_body, message_hash
from tests.faults.conftest import wait_running, wait_told
from tests.harness import Cluster, Node, wait_for
from tests.integration.conftest import MakeCluster

SOON_S = 20.0
FORGED = encode_frame(Frame("unit", Kind.INSERT, ("id", "name", "parent"), 1, '["666","forged",null]'))


@dataclass
class Attack:
    """A running cluster, and somebody who can publish to its broker."""

    cluster: Cluster
    broker_url: str
    pki: Path
    topology: Topology

    def writer(self, node: str = "st1", *, cluster: str = "mft", pki: Path | None = None) -> Writer:
        """Signs with the stolen key of a node."""
        keys = pki or self.pki
        return Writer(load_identity(keys / f"{node}.key", keys / f"{node}.pem", node), self.sealer, cluster)

    @property
    def sealer(self) -> Sealer:
        public, _ = load_cluster_pair(self.pki / "cluster.pem", self.pki / "cluster.key")
        return Sealer(public, timedelta(hours=1).total_seconds())

    def batch(self, node: str = "st1", **changed: Any) -> bytes:
        """A batch that would be the next one."""
        wanted: dict[str, Any] = {
            "epoch": 1,
            "sequence": self.cluster.primary.sequence() + 1,
            "previous": self.head_hash,
        } | changed
        writer: Writer = wanted.pop("writer", None) or self.writer(node)
        return writer.write(MessageKind.BATCH, FORGED, **wanted)

    @property
    def head_hash(self) -> bytes:
        return bytes(self.cluster.primary.rows("SELECT hash FROM stsync_node")[0][0])

    def captured(self) -> bytes:
        """The last batch, as it went over the broker."""
        return bytes(self.cluster.primary.rows("SELECT message FROM stsync_journal ORDER BY sequence DESC LIMIT 1")[0][0])

    def to_nodes(self, *messages: bytes) -> None:
        self._publish(self.topology.events_exchange, messages)

    def to_node(self, name: str, *messages: bytes) -> None:
        """As the primary answers one node."""
        self._publish(self.topology.direct_exchange, messages, key=name)

    def to_primary(self, *messages: bytes, vouched: bool = True) -> None:
        self._publish(self.topology.reports_exchange, messages, vouched=vouched)

    def _publish(self, exchange: str, messages: tuple[bytes, ...], *, key: str = "", vouched: bool = True) -> None:
        parameters = pika.URLParameters(self.broker_url)
        user = parameters.credentials.username if vouched else None
        with self._channel(parameters) as channel:
            for message in messages:
                channel.basic_publish(exchange, key, message, pika.BasicProperties(user_id=user))

    @contextmanager
    def _channel(self, parameters: Any) -> Iterator[Any]:
        connection = pika.BlockingConnection(parameters)
        try:
            channel = connection.channel()
            channel.confirm_delivery()
            yield channel
        finally:
            connection.close()

    def refused(self, name: str, kind: str) -> int:
        """How many messages of this kind a node has refused."""
        rows = self.cluster.nodes[name].rows("SELECT sum(count) FROM stsync_refusals WHERE kind = :kind", kind=kind)
        return int(rows[0][0] or 0)

    def expect(self, name: str, kind: str, send: Callable[[], None], number: int = 1) -> None:
        """`send` makes the node refuse, count and log once; nothing changes; replication goes on."""
        node = self.cluster.nodes[name]
        before, rows = self.refused(name, kind), node.rows("SELECT * FROM unit ORDER BY id")
        send()
        wait_told(lambda: self.refused(name, kind) >= before + number, lambda: self.counts(node, kind), SOON_S)
        assert node.rows("SELECT * FROM unit ORDER BY id") == rows
        assert node.status()["refused"][kind] == before + number
        source = "reports" if name == "st1" else "events"
        logged = [json.loads(line) for line in node.log.splitlines() if '"message_refused"' in line]
        assert [one["source"] for one in logged if one["kind"] == kind] == [source]
        self.goes_on()

    def counts(self, node: Node, kind: str) -> str:
        found = node.rows("SELECT kind, source, count, text FROM stsync_refusals")
        return f"{node.name} to refuse as {kind}; it refused {found}\n{node.log[-2000:]}"

    def goes_on(self) -> None:
        number = int(self.cluster.primary.rows("SELECT coalesce(max(id), 0) FROM unit")[0][0]) + 1
        self.cluster.primary.execute(f"INSERT INTO unit VALUES ({number}, 'unit {number}', NULL)")
        self.cluster.wait_equal(SOON_S)
        for node in self.cluster.nodes.values():
            assert node.process is not None
            assert node.process.poll() is None, node.log[-3000:]
            assert node.rows("SELECT 1 FROM unit WHERE id = 666") == []


def new_attack(new_cluster: MakeCluster, url: str, kind: str, nodes: tuple[str, ...] = ("st1", "st2")) -> Attack:
    cluster = new_cluster(kind, broker_url=url, nodes=nodes)
    cluster.start()
    wait_running(*cluster.nodes.values())
    cluster.primary.execute("INSERT INTO unit VALUES (1, 'one', NULL)")
    cluster.wait_equal()
    pki = cluster.primary.home.parent / "pki"
    return Attack(cluster, url, pki, Topology("mft", nodes, "st1"))


@pytest.fixture
def attack(new_cluster: MakeCluster, vhost_url: str) -> Attack:
    return new_attack(new_cluster, vhost_url, "sqlite")


def regions(message: bytes) -> dict[str, int]:
    """A byte in the middle of each region of a message."""
    found = {"magic": 3}
    at = len(wire.MAGIC)
    for region in ("certificate", "signature", "header"):
        size = int.from_bytes(message[at : at + 4], "big")
        found[region] = at + 4 + size // 2
        at += 4 + size
    return found | {"sealed": (at + len(message)) // 2}


def flipped(message: bytes, place: int) -> bytes:
    return message[:place] + bytes([message[place] ^ 1]) + message[place + 1 :]


def test_random_bytes_are_refused(attack: Attack) -> None:
    """TRAPS 34; on both exchanges."""
    attack.expect("st2", "malformed", lambda: attack.to_nodes(b"", b"\x00", os.urandom(100), os.urandom(100_000)), 4)
    attack.expect("st1", "malformed", lambda: attack.to_primary(b"", os.urandom(100)), 2)


def test_a_truncated_message_is_refused(attack: Attack) -> None:
    """TRAPS 34: wherever it is cut."""
    real = attack.captured()
    cuts = [real[:size] for size in (len(wire.MAGIC), len(wire.MAGIC) + 2, 60, *regions(real).values(), len(real) - 1)]
    before = sum(attack.cluster.nodes["st2"].status()["refused"].values())
    attack.to_nodes(*cuts)
    wait_told(
        lambda: sum(attack.cluster.nodes["st2"].status()["refused"].values()) == before + len(cuts),
        lambda: f"all refused: {attack.counts(attack.cluster.nodes['st2'], 'any')}",
        SOON_S,
    )
    attack.goes_on()


@pytest.mark.parametrize(
    ("region", "kinds"),
    [
        ("magic", {"malformed"}),
        ("certificate", {"certificate", "signature", "malformed"}),
        ("signature", {"signature"}),
        ("header", {"signature"}),
        ("sealed", {"signature"}),
    ],
)
def test_a_flipped_bit_is_refused(attack: Attack, region: str, kinds: set[str]) -> None:
    """TRAPS 34: in the next batch, in each of its regions; the true one is then taken."""
    node = attack.cluster.nodes["st2"]
    forged = attack.batch()
    attack.to_nodes(flipped(forged, regions(forged)[region]))
    wait_told(
        lambda: sum(attack.refused("st2", kind) for kind in kinds) == 1,
        lambda: attack.counts(node, region),
        SOON_S,
    )
    attack.goes_on()


def test_a_foreign_authoritys_node_of_the_same_name_is_refused(attack: Attack, tmp_path: Path) -> None:
    """TRAPS 34: the same names, another authority."""
    init_cluster("mft", tmp_path / "foreign")
    issue_node(tmp_path / "foreign", "st1", tmp_path / "foreign")
    foreign = attack.writer(pki=tmp_path / "foreign")
    attack.expect("st2", "certificate", lambda: attack.to_nodes(attack.batch(writer=foreign)))


def test_a_node_outside_the_roster_is_refused(attack: Attack) -> None:
    """TRAPS 34: the right authority, a name that is not in the roster."""
    issue_node(attack.pki, "st9", attack.pki)
    attack.expect("st2", "sender", lambda: attack.to_nodes(attack.batch("st9")))


def test_a_secondary_cannot_write_the_log(attack: Attack) -> None:
    """TRAPS 34, 35: neither batches, nor heartbeats, nor an answer to a catch-up."""
    beat = encode_body(Heartbeat(2**62, 1000, bytes(32), 900, 1000, 1000))

    def send() -> None:
        writer = attack.writer("st2")
        attack.to_nodes(
            attack.batch("st2"),
            writer.write(MessageKind.HEARTBEAT, beat, epoch=1, sequence=1000, expires_in_s=60),
        )

    attack.expect("st2", "sender", send, 2)


def test_another_cluster_and_another_audience_are_refused(attack: Attack) -> None:
    """TRAPS 34: mix and match."""
    attack.expect("st2", "cluster", lambda: attack.to_nodes(attack.batch(writer=attack.writer(cluster="other"))))
    attack.expect("st2", "audience", lambda: attack.to_nodes(attack.batch(audience="st3")))


def test_a_lower_epoch_is_refused(attack: Attack) -> None:
    """TRAPS 35: a former primary that does not know it."""
    beat = encode_body(Heartbeat(2**62, 1000, bytes(32), 900, 1000, 1000))

    def send() -> None:
        old = attack.writer().write(MessageKind.HEARTBEAT, beat, epoch=0, sequence=1000, expires_in_s=60)
        attack.to_nodes(attack.batch(epoch=0), old)

    attack.expect("st2", "epoch", send, 2)


def test_an_unknown_version_is_refused(attack: Attack) -> None:
    """TRAPS 29, 34."""
    attack.expect("st2", "version", lambda: attack.to_nodes(handmade(attack, b"\x00" + FORGED, version=2)))


def test_an_expired_heartbeat_is_refused(attack: Attack) -> None:
    """TRAPS 34: freeze."""
    writer = Writer(
        load_identity(attack.pki / "st1.key", attack.pki / "st1.pem", "st1"),
        attack.sealer,
        "mft",
        clock=lambda: time.time() - 1000,
    )
    beat = encode_body(Heartbeat(2**62, 0, bytes(32), 0, 0, 0))
    old = writer.write(MessageKind.HEARTBEAT, beat, epoch=1, expires_in_s=10)
    attack.expect("st2", "expired", lambda: attack.to_nodes(old))


def test_a_replayed_batch_is_dropped(attack: Attack) -> None:
    """TRAPS 8, 10, 34: also after the service started anew."""
    attack.goes_on()
    attack.expect("st2", "replayed", lambda: attack.to_nodes(attack.captured()))
    node = attack.cluster.nodes["st2"]
    assert node.stop() == 0
    node.start()
    wait_running(node)
    before = attack.refused("st2", "replayed")
    attack.to_nodes(attack.captured())
    wait_for(lambda: attack.refused("st2", "replayed") > before, "refused again", SOON_S)
    attack.goes_on()


def test_heartbeats_replayed_after_a_restart_change_nothing(attack: Attack) -> None:
    """TRAPS 34: they are not expired yet, but older than what this node has seen."""
    cluster, node = attack.cluster, attack.cluster.nodes["st2"]
    heard: list[bytes] = []
    with attack._channel(pika.URLParameters(attack.broker_url)) as channel:
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, attack.topology.events_exchange)
        while len(heard) < 5:
            for _, _, body in channel.consume(queue, auto_ack=True, inactivity_timeout=5):
                assert body is not None
                heard.append(body)
                break
        channel.cancel()
    attack.goes_on()
    assert node.stop() == 0
    node.start()
    wait_running(node)
    attack.to_nodes(*heard)
    cluster.primary.execute("INSERT INTO unit VALUES (500, 'after', NULL)")
    wait_for(
        lambda: node.status()["state"] == "in_sync" or "full" in node.status()["state"],
        "a settled state",
        SOON_S,
    )
    assert node.status()["state"] == "in_sync", node.status()
    attack.goes_on()


def report(number: int, **changed: Any) -> bytes:
    values: dict[str, Any] = {
        "number": number,
        "state": "in_sync",
        "epoch": 1,
        "sequence": 1,
        "hash": bytes(32),
        "quarantined": 0,
        "lag_ms": None,
        "last_full_sync": None,
        "reason": None,
        "refused": {},
    }
    return encode_body(Report(**values | changed))


def sent_report(attack: Attack, body: bytes, node: str = "st2", kind: MessageKind = MessageKind.REPORT) -> bytes:
    return attack.writer(node).write(kind, body, epoch=1, audience="st1", expires_in_s=60)


def test_a_replayed_report_is_refused(attack: Attack) -> None:
    """TRAPS 34: where a secondary stood yesterday is not where it stands."""
    node = attack.cluster.nodes["st2"]
    old = sent_report(attack, report(1, sequence=777))
    attack.expect("st1", "replayed", lambda: attack.to_primary(old))
    assert attack.cluster.primary.rows("SELECT sequence FROM stsync_reports")[0][0] < 777
    assert node.status()["refused"].get("replayed", 0) == 0


def test_a_replayed_request_is_refused_after_a_restart_too(attack: Attack) -> None:
    """TRAPS 34: a request for batches counts among the reports, whose numbers only rise."""
    primary, node = attack.cluster.primary, attack.cluster.nodes["st2"]
    wait_for(lambda: primary.rows("SELECT number FROM stsync_reports"), "a report", SOON_S)
    assert node.stop() == 0
    number = primary.rows("SELECT number FROM stsync_reports")[0][0] + 1000
    asked = sent_report(attack, encode_body(CatchUp(number, 1, 1)), kind=MessageKind.CATCH_UP)
    attack.to_primary(asked)
    wait_for(lambda: primary.rows("SELECT number FROM stsync_reports")[0][0] == number, "the request taken", SOON_S)
    assert primary.stop() == 0
    primary.start()
    wait_running(primary)
    attack.to_primary(asked)
    wait_told(lambda: attack.refused("st1", "replayed") == 1, lambda: attack.counts(primary, "replayed"), SOON_S)


def test_a_report_that_nobody_vouches_for_is_refused(attack: Attack) -> None:
    """TRAPS 19: signed, but without the broker's word of who published it."""
    message = sent_report(attack, report(time.time_ns()))
    attack.expect("st1", "sender", lambda: attack.to_primary(message, vouched=False))


def test_a_batch_among_the_reports_is_refused(attack: Attack) -> None:
    """TRAPS 34: the primary follows nobody."""
    attack.expect("st1", "sender", lambda: attack.to_primary(attack.batch("st2")))


HOSTILE: tuple[dict[str, Any], ...] = (
    {"quarantined": 2**63},
    {"sequence": 2**64 - 1},
    {"epoch": -(2**63)},
    {"quarantined": -5},
    {"lag_ms": float("nan")},
    {"hash": bytes(1_000_000)},
    {"reason": "nul \x00 in it"},
    {"last_full_sync": "nul \x00 in it"},
    {"last_full_sync": "x" * 100},
    {"state": "ready\x00"},
    {"refused": {"x" * 1000: 1}},
    {"refused": {"nul \x00 in it": 1}},
    {"refused": {"x": 2**63}},
)


def test_a_secondary_cannot_stop_the_primary_by_a_report(
    new_cluster: MakeCluster, vhost_url: str, database_kind: str
) -> None:
    """TRAPS 12, 34: reports with values that no database takes, rightly signed."""
    cluster = new_cluster(database_kind, broker_url=vhost_url, nodes=("st1", "st2"))
    cluster.primary.start()
    wait_running(cluster.primary)
    pki = cluster.primary.home.parent / "pki"
    attack = Attack(cluster, vhost_url, pki, Topology("mft", ("st1", "st2"), "st1"))
    bodies = [report(time.time_ns() // 1000, **changed) for changed in HOSTILE]
    bodies.append(report(time.time_ns() // 1000, reason="no UTF-8: ....").replace(b"....", b"\xff\xfe\xff\xfe"))
    for count, body in enumerate(bodies, 1):
        attack.to_primary(sent_report(attack, body))
        wait_told(
            lambda count=count: attack.refused("st1", "malformed") == count,  # type: ignore[misc]
            lambda body=body: (body[:300], attack.counts(cluster.primary, "malformed")),  # type: ignore[misc]
            SOON_S,
        )
    attack.to_primary(sent_report(attack, report(time.time_ns() // 1000, state="dancing")))  # as a later version may
    attack.to_primary(b"the last word")
    cluster.nodes["st2"].start()
    attack.goes_on()
    found = cluster.primary.command("status", "--json")
    assert found.returncode in (0, 1), found.stderr


def test_a_senseless_catch_up_request_is_harmless(attack: Attack) -> None:
    """TRAPS 12, 34: ranges that do not exist."""
    base = time.time_ns() // 1000 + 5_000_000
    asked = [(-5, 10), (0, -1), (2**63, 2), (1, 2**63), (-(2**63), 2**63 - 1)]
    for place, (first, limit) in enumerate(asked):
        body = encode_body(CatchUp(base + place, first, limit))
        attack.to_primary(sent_report(attack, body, kind=MessageKind.CATCH_UP))
    attack.goes_on()
    assert "Traceback" not in attack.cluster.primary.log


def handmade(attack: Attack, body: bytes, *, signed_by: str = "st1", **changed: Any) -> bytes:
    """A message signed by a node's own key, its body as given: marker and all."""
    identity = load_identity(attack.pki / f"{signed_by}.key", attack.pki / f"{signed_by}.pem", signed_by)
    values: dict[str, Any] = {
        "version": wire.VERSION,
        "kind": MessageKind.BATCH,
        "cluster": "mft",
        "sender": signed_by,
        "audience": wire.EVERYONE,
        "epoch": 1,
        "sequence": attack.cluster.primary.sequence() + 1,
        "previous": attack.head_hash,
        "issued_ms": int(time.time() * 1000),
        "expires_ms": 0,
    }
    head = msgspec.msgpack.encode(Header(**values | changed))
    payload = sized(head) + attack.sealer.seal(body, head)
    chain = b"".join(sized(one) for one in identity.chain)
    return wire.MAGIC + sized(chain) + sized(sign(identity.key, pae(wire.DOMAIN, payload))) + payload


def sized(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def bombs() -> tuple[bytes, bytes, bytes]:
    """300 MiB folded: announced, not announced, and announced as 1,000 bytes."""
    zeros = bytes(300 << 20)
    announced = zstandard.compress(zeros, 1)
    silent = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(zeros)
    assert max(len(announced), len(silent)) < wire.MAX_MESSAGE_BYTES
    size = len(zeros).to_bytes(4, "little")
    assert announced[:18].count(size) == 1, "the frame header's field of the content size"
    modest = announced.replace(size, (1000).to_bytes(4, "little"), 1)
    assert zstandard.frame_content_size(modest) == 1000
    return announced, silent, modest


def assert_small(node: Node) -> None:
    """The service has at no time had the memory that a bomb unfolds to."""
    assert node.process is not None
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    assert next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) < 250_000


def test_a_compression_bomb_does_not_explode(attack: Attack) -> None:
    """TRAPS 17: announced, not announced, and announced wrongly; memory stays bounded."""
    announced, silent, modest = (handmade(attack, b"\x01" + one) for one in bombs())
    attack.expect("st2", "size", lambda: attack.to_nodes(announced, silent), 2)
    attack.expect("st2", "malformed", lambda: attack.to_nodes(modest))
    assert_small(attack.cluster.nodes["st2"])


def test_an_oversize_message_is_refused(attack: Attack) -> None:
    """TRAPS 17."""
    attack.expect("st2", "size", lambda: attack.to_nodes(wire.MAGIC + bytes(wire.MAX_MESSAGE_BYTES)))


def test_a_fork_of_the_log_needs_a_full_synchronization(attack: Attack) -> None:
    """TRAPS 34: signed by the primary's key, but not the history that this node has applied."""
    node = attack.cluster.nodes["st2"]
    attack.to_nodes(attack.batch(previous=message_hash(b"another history")))
    wait_told(lambda: node.status()["state"] == "needs_full_sync", lambda: f"{node.status()}", SOON_S)
    assert f"sequence {node.sequence()}" in node.status()["reason"]
    assert node.rows("SELECT id FROM unit") == [(1,)]


def test_a_skipped_sequence_is_never_applied(attack: Attack) -> None:
    """TRAPS 10, 34: fast-forward; what is in between arrives, and then the histories differ."""
    node, primary = attack.cluster.nodes["st2"], attack.cluster.primary
    attack.to_nodes(attack.batch(sequence=primary.sequence() + 2, previous=message_hash(b"another history")))
    wait_told(lambda: node.status()["behind"] == 2, lambda: f"{node.status()}", SOON_S)
    assert node.rows("SELECT id FROM unit") == [(1,)]
    primary.execute("INSERT INTO unit VALUES (2, 'two', NULL)")
    wait_told(lambda: node.status()["state"] == "needs_full_sync", lambda: f"{node.status()}", SOON_S)
    assert (666,) not in node.rows("SELECT id FROM unit")
