"""The links against a real broker: order, rewind, refusal, lock, pause; and against peers that misbehave."""

import ipaddress
import json
import queue
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pika
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from common.broker import ConsumeLink, Delivery, LinkState, PublishLink, check_access
from common.errors import BrokerRefused, Fault, Unavailable
from common.link import Link
from common.linkstate import Loss, explain_close
from common.settings import BrokerSettings, BrokerTls
from common.topology import QueueType, Topology, definitions
from deploy.servers import PrivateRabbitMQ

NODES = ("st1", "st2")
PATIENCE_S = 60.0


def wait_for(condition: Callable[[], object], what: str, seconds: float = PATIENCE_S) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds} s for {what}"
        time.sleep(0.01)


def settings(*urls: str, **others: Any) -> BrokerSettings:
    values = {"retry_min_s": 0.05, "retry_max_s": 0.4, "connect_timeout_s": 3.0} | others
    return BrokerSettings(urls=tuple(SecretStr(url) for url in urls), **values)


def topology(queue_type: QueueType = "quorum", max_bytes: int = 1 << 26) -> Topology:
    return Topology("mft", NODES, "st1", queue_type, max_bytes)


class Publisher:
    """Publishes 1…last through a link as the sender does: in order, and again from the first unconfirmed."""

    def __init__(self, config: BrokerSettings, plan: Topology, **options: Any) -> None:
        self.confirmed: list[int] = []
        self.states: list[LinkState] = []
        self.resets: list[int] = []
        self.plan = plan
        self._next = 1
        self._lock = threading.Lock()
        self.room = threading.Event()
        self.link = PublishLink(
            config,
            plan,
            client_name="test-publish",
            on_state=self.states.append,
            on_confirmed=self._on_confirmed,
            on_reset=self._on_reset,
            on_room=self.room.set,
            **options,
        )

    def _on_confirmed(self, token: object) -> None:
        assert isinstance(token, int)
        self.confirmed.append(token)

    def _on_reset(self, generation: int) -> None:
        with self._lock:
            self.resets.append(generation)
            self._next = (self.confirmed[-1] if self.confirmed else 0) + 1

    def publish_to(self, last: int, seconds: float = PATIENCE_S) -> None:
        """Until 1…last are confirmed."""
        until = time.monotonic() + seconds
        while not self.confirmed or self.confirmed[-1] < last:
            assert time.monotonic() < until, f"confirmed {self.confirmed[-1:]}, {self.link.state}"
            self.room.clear()
            with self._lock:
                while self._next <= last and self.link.publish(
                    self.plan.events_exchange, "", str(self._next).encode(), token=self._next
                ):
                    self._next += 1
            self.room.wait(0.02)


class Consumer:
    """Collects what comes."""

    def __init__(self, config: BrokerSettings, plan: Topology, name: str = "", **options: Any) -> None:
        self.arrived: queue.Queue[Delivery] = queue.Queue()
        self.states: list[LinkState] = []
        options = {"on_delivery": self.arrived.put, "on_state": self.states.append} | options
        self.link = ConsumeLink(config, plan, queue=name or plan.node_queue("st2"), client_name="test-consume", **options)

    def take(self, count: int) -> list[Delivery]:
        return [self.arrived.get(timeout=PATIENCE_S) for _ in range(count)]

    def bodies(self, count: int) -> list[int]:
        return [int(one.body) for one in self.take(count)]


Started = Callable[[Link], None]


@pytest.fixture(scope="module")
def rabbitmq(servers_root: Path) -> Iterator[PrivateRabbitMQ]:
    """A broker of this module's own: its tests stop it, and the session's, full of other tests' queues, would start slowly."""
    with PrivateRabbitMQ(servers_root / "rabbitmq-links", fast=True) as server:
        yield server


@pytest.fixture
def run() -> Iterator[Started]:
    """Starts links and stops them when the test ends."""
    with ExitStack() as stack:

        def start(link: Link) -> None:
            stack.callback(link.stop)
            link.start()

        yield start


def once(url: str, call: Callable[[Any], None]) -> None:
    """Something done by an administrator, on a connection of its own."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        call(connection.channel())
    finally:
        connection.close()


def self_signed(folder: Path, address: str) -> tuple[Path, Path]:
    """A certificate for an address, and its key."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    now = datetime.now(UTC)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    builder = x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
    made = builder.add_extension(alternative, critical=False).sign(private, hashes.SHA256())
    certificate, key = folder / f"{address}.pem", folder / f"{address}.key"
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate, key


@contextmanager
def tls_front(certificate: Path, key: Path, broker_port: int) -> Iterator[int]:
    """A port that speaks TLS before the broker."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    front = context

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                client = front.wrap_socket(self.request, server_side=True)
            except OSError:  # the client does not trust the certificate
                return
            with client, socket.create_connection(("127.0.0.1", broker_port)) as broker:
                client.settimeout(0.02)
                broker.settimeout(0.02)
                while relay(client, broker) and relay(broker, client):
                    continue

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = False

    with Server(("127.0.0.1", 0), Relay) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join(10)


def relay(source: socket.socket, target: socket.socket) -> bool:
    """Pass on what is there; False at the end."""
    try:
        data = source.recv(65536)
    except TimeoutError:
        return True
    except OSError:
        return False
    target.sendall(data)
    return bool(data)


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
def test_all_messages_are_confirmed_and_arrive_in_order(vhost_url: str, run: Started, queue_type: QueueType) -> None:
    """TRAPS 22: pipelined confirms."""
    plan = topology(queue_type)
    publisher = Publisher(settings(vhost_url), plan)
    consumer = Consumer(settings(vhost_url, prefetch=500), plan)
    run(publisher.link)
    run(consumer.link)
    publisher.publish_to(5_000)
    assert publisher.confirmed == list(range(1, 5_001))
    assert not publisher.resets
    for start in range(1, 5_001, 250):
        deliveries = consumer.take(250)
        assert [int(one.body) for one in deliveries] == list(range(start, start + 250))
        consumer.link.done(deliveries[-1])


def test_the_window_bounds_what_is_under_way_and_nothing_is_kept_while_down(vhost_url: str, run: Started) -> None:
    plan = topology()
    link = PublishLink(settings(vhost_url, window=3), plan, client_name="test")
    assert link.room() == 0
    assert not link.publish(plan.events_exchange, "", b"x")
    run(link)
    assert link.wait_ready(PATIENCE_S)
    assert link.room() == 3
    results = [link.publish(plan.events_exchange, "", b"x" * 100_000) for _ in range(10)]
    assert results[:3] == [True] * 3
    assert not all(results)
    wait_for(lambda: link.room() == 3, "confirms of messages without tokens")


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_a_restart_of_the_broker_resets_and_the_rest_is_published_in_order(
    rabbitmq: PrivateRabbitMQ, vhost_url: str, run: Started, way: str
) -> None:
    """TRAPS 22, 25."""
    plan = topology()
    publisher = Publisher(settings(vhost_url, window=50), plan)
    consumer = Consumer(settings(vhost_url), plan)
    run(publisher.link)
    run(consumer.link)
    feeding = threading.Thread(target=publisher.publish_to, args=(3_000, 2 * PATIENCE_S))
    feeding.start()
    wait_for(lambda: len(publisher.confirmed) > 200, "the stream to flow")
    getattr(rabbitmq, way)()
    wait_for(lambda: publisher.link.state.name == "down", "the loss to be noticed")
    assert publisher.link.room() == 0
    assert len(publisher.confirmed) < 3_000, "the broker should have gone in mid-stream"
    rabbitmq.start()
    feeding.join(2 * PATIENCE_S)
    assert publisher.confirmed == list(range(1, 3_001))
    assert publisher.resets
    down = next(state for state in publisher.states if state.name == "down")
    assert down.reason is not None
    assert rabbitmq.password not in down.reason
    assert f"127.0.0.1:{rabbitmq.port}" in down.reason
    highest = 0
    while highest < 3_000:  # as the gate does: what was seen is dropped, and nothing may be missing
        delivery = consumer.take(1)[0]
        assert int(delivery.body) <= highest + 1, "a hole"
        highest = max(highest, int(delivery.body))
        consumer.link.done(delivery)


def test_a_deleted_queue_is_declared_and_consumed_again(vhost_url: str, run: Started) -> None:
    """TRAPS 11, 21."""
    plan = topology()
    publisher, consumer = Publisher(settings(vhost_url), plan), Consumer(settings(vhost_url), plan)
    run(publisher.link)
    run(consumer.link)
    publisher.publish_to(3)
    assert consumer.bodies(3) == [1, 2, 3]
    before = consumer.link.generation
    once(vhost_url, lambda channel: channel.queue_delete(plan.node_queue("st2")))
    wait_for(lambda: any(state.name == "down" for state in consumer.states), "the end of the consumer")
    assert any("was the queue deleted?" in str(state.reason) for state in consumer.states)
    assert consumer.link.wait_ready(PATIENCE_S)
    assert consumer.link.generation > before
    publisher.publish_to(5)
    assert consumer.bodies(2) == [4, 5]


def test_a_wrong_password_ends_the_link_with_a_sentence_without_it(rabbitmq: PrivateRabbitMQ, run: Started) -> None:
    """TRAPS 25."""
    url = f"amqp://stsync:wrong-one@127.0.0.1:{rabbitmq.port}/%2F"
    link = PublishLink(settings(url), topology(), client_name="test")
    run(link)
    assert not link.wait_ready(PATIENCE_S)
    assert isinstance(link.fault, BrokerRefused)
    assert link.state.name == "refused"
    assert f"127.0.0.1:{rabbitmq.port}" in str(link.fault)
    assert "user stsync" in str(link.fault)
    assert "wrong-one" not in str(link.fault) + str(link.state)
    with pytest.raises(BrokerRefused, match="user stsync"):
        check_access(settings(url), topology())


def test_an_unknown_virtual_host_ends_the_link(rabbitmq: PrivateRabbitMQ) -> None:
    with pytest.raises(BrokerRefused, match="virtual host"):
        check_access(settings(rabbitmq.url("nowhere")), topology())


def test_missing_rights_end_the_link(rabbitmq: PrivateRabbitMQ, vhost_url: str) -> None:
    rabbitmq.ctl("add_user", "weak", "pw")
    try:
        vhost = vhost_url.rsplit("/", 1)[1]
        rabbitmq.ctl("set_permissions", "-p", vhost, "weak", "^$", "^$", "^$")
        url = f"amqp://weak:pw@127.0.0.1:{rabbitmq.port}/{vhost}"
        with pytest.raises(BrokerRefused, match=r"user weak while opening exchange 'stsync\.mft\.events'"):
            check_access(settings(url), topology())
    finally:
        rabbitmq.ctl("delete_user", "weak")


def test_an_unreachable_broker_is_tried_until_it_appears(rabbitmq: PrivateRabbitMQ, vhost_url: str, run: Started) -> None:
    rabbitmq.stop()
    plan = topology()
    publisher = Publisher(settings(vhost_url), plan)
    run(publisher.link)
    wait_for(lambda: publisher.link.state.name == "down", "the first failure")
    assert publisher.link.fault is None
    assert f"127.0.0.1:{rabbitmq.port}" in str(publisher.link.state.reason)
    assert rabbitmq.password not in str(publisher.link.state)
    with pytest.raises(Unavailable, match="no connection to the broker"):
        check_access(settings(vhost_url), plan)
    rabbitmq.start()
    publisher.publish_to(10)
    assert not publisher.resets


def test_addresses_are_tried_in_turn(vhost_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        closed = f"amqp://u:p@127.0.0.1:{reserved.getsockname()[1]}/v"
    check_access(settings(closed, vhost_url), topology())


def test_a_peer_that_never_answers_is_given_up_in_time(run: Started) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"amqp://u:p@127.0.0.1:{mute.getsockname()[1]}/v"
        link = PublishLink(settings(url, connect_timeout_s=0.3), topology(), client_name="test")
        run(link)
        wait_for(lambda: link.state.name == "down", "the timeout", 10)
        assert "did not log us in" in str(link.state.reason)
        assert link.fault is None
        link.stop()
        assert link.state.name == "stopped"


def test_a_peer_that_speaks_nonsense_is_down_not_a_fault(run: Started) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                peer.recv(100)

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"amqp://u:p@127.0.0.1:{server.getsockname()[1]}/v"
        link = PublishLink(settings(url, connect_timeout_s=0.5), topology(), client_name="test")
        run(link)
        wait_for(lambda: link.state.name == "down", "the failure", 10)
        thread.join(10)
        assert link.fault is None


def test_a_login_cut_short_by_the_network_is_no_refusal(run: Started) -> None:
    """pika calls this a probable authentication error; only the broker's own word is one."""
    start = b"\x01\x00\x00\x00\x00\x00\x2f\x00\x0a\x00\x0a\x00\x09\x00\x00\x00\x00\x00\x00\x00\x05PLAIN"
    start += b"\x00\x00\x00\x05en_US" + b"\x00" * 0
    start = start[:3] + (len(start) - 7).to_bytes(4, "big") + start[7:] + b"\xce"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(100)
                peer.sendall(start)
                peer.recv(4096)

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"amqp://u:p@127.0.0.1:{server.getsockname()[1]}/v"
        link = PublishLink(settings(url, connect_timeout_s=0.5), topology(), client_name="test")
        run(link)
        wait_for(lambda: link.state.name in ("down", "refused"), "the failure", 10)
        thread.join(10)
        assert (link.state.name, link.fault) == ("down", None)


def test_tls_verifies_the_broker(rabbitmq: PrivateRabbitMQ, vhost_url: str, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path, "127.0.0.1")
    other, _ = self_signed(tmp_path, "127.0.0.2")
    with tls_front(certificate, key, rabbitmq.port) as port:
        url = vhost_url.replace("amqp:", "amqps:").replace(f":{rabbitmq.port}/", f":{port}/")
        check_access(settings(url, tls=BrokerTls(authorities=certificate)), topology())
        with pytest.raises(Unavailable, match="certificate verify failed"):
            check_access(settings(url, tls=BrokerTls(authorities=other)), topology())
        named = BrokerTls(authorities=certificate, server_name="rabbit.example")
        with pytest.raises(Unavailable, match=r"not valid for 'rabbit\.example'"):
            check_access(settings(url, tls=named), topology())


def test_one_relay_holds_the_lock_and_another_takes_over(vhost_url: str, run: Started) -> None:
    plan = topology()
    first = PublishLink(settings(vhost_url), plan, client_name="first", lock=True)
    second = PublishLink(settings(vhost_url), plan, client_name="second", lock=True)
    run(first)
    assert first.wait_ready(PATIENCE_S)
    run(second)
    wait_for(lambda: second.state.name == "locked", "the lock to be refused")
    assert "stsync.mft.relay" in str(second.state.reason)
    assert second.fault is None
    assert not second.publish(plan.events_exchange, "", b"x")
    first.stop()
    assert second.wait_ready(PATIENCE_S)


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
def test_pause_and_resume_keep_the_order_of_what_was_not_acknowledged(
    vhost_url: str, run: Started, queue_type: QueueType
) -> None:
    """TRAPS 13, 14, 15."""
    plan = topology(queue_type)
    publisher = Publisher(settings(vhost_url), plan)
    consumer = Consumer(settings(vhost_url, prefetch=20), plan)
    run(publisher.link)
    run(consumer.link)
    publisher.publish_to(100)
    done = 0
    for turn in range(5):
        deliveries = consumer.take(20)
        assert [int(one.body) for one in deliveries] == list(range(done + 1, done + 21))
        assert [one.redelivered for one in deliveries[:10]] == [turn > 0] * 10
        consumer.link.done(deliveries[9])
        done += 10
        consumer.link.pause()
        wait_for(lambda: consumer.link.state.name == "paused", "the pause")
        while not consumer.arrived.empty():
            consumer.arrived.get_nowait()
        consumer.link.resume()
        wait_for(lambda: consumer.link.state.name == "ready", "the end of the pause")
    assert consumer.bodies(1) == [done + 1]


def test_a_link_paused_before_it_is_up_takes_nothing_until_resumed(vhost_url: str, run: Started) -> None:
    plan = topology()
    publisher, consumer = Publisher(settings(vhost_url), plan), Consumer(settings(vhost_url), plan)
    run(publisher.link)
    publisher.publish_to(1)
    run(consumer.link)
    consumer.link.pause()
    wait_for(lambda: consumer.link.state.name == "paused", "the pause")
    assert consumer.arrived.empty()
    assert consumer.link.generation == 0, "no channel should have been opened"
    consumer.link.resume()
    assert consumer.link.wait_ready(PATIENCE_S)
    assert consumer.bodies(1) == [1]


def test_stopping_cancels_no_consumer(vhost_url: str, monkeypatch: pytest.MonkeyPatch, run: Started) -> None:
    """TRAPS 14."""
    sent: list[str] = []
    send = pika.connection.Connection._send_method

    def spy(self: Any, number: int, method: Any, content: Any = None) -> None:
        sent.append(method.NAME)
        send(self, number, method, content)

    monkeypatch.setattr(pika.connection.Connection, "_send_method", spy)
    consumer = Consumer(settings(vhost_url), topology())
    run(consumer.link)
    assert consumer.link.wait_ready(PATIENCE_S)
    consumer.link.pause()
    wait_for(lambda: consumer.link.state.name == "paused", "the pause")
    consumer.link.resume()
    assert consumer.link.wait_ready(PATIENCE_S)
    consumer.link.stop()
    assert sent.count("Basic.Consume") == 2
    assert sent.count("Channel.Close") == 2
    assert sent.count("Connection.Close") == 1
    assert "Basic.Cancel" not in sent


def test_an_ack_of_an_earlier_connection_is_ignored(vhost_url: str, run: Started) -> None:
    """TRAPS 24, 25."""
    plan = topology()
    publisher, consumer = Publisher(settings(vhost_url), plan), Consumer(settings(vhost_url), plan)
    run(publisher.link)
    run(consumer.link)
    publisher.publish_to(3)
    old = consumer.take(3)
    consumer.link.pause()
    consumer.link.resume()
    again = consumer.take(3)
    assert [one.body for one in again] == [one.body for one in old]
    consumer.link.done(old[-1])
    consumer.link.pause()
    consumer.link.resume()
    third = consumer.take(3)
    assert [one.body for one in third] == [one.body for one in old]
    assert third[0].generation > again[0].generation > old[0].generation


def test_a_queue_with_other_arguments_is_refused_by_name(vhost_url: str, run: Started) -> None:
    plan = topology()
    once(vhost_url, lambda channel: channel.queue_declare(plan.node_queue("st2"), durable=True))
    consumer = Consumer(settings(vhost_url), plan)
    run(consumer.link)
    assert not consumer.link.wait_ready(PATIENCE_S)
    assert isinstance(consumer.link.fault, BrokerRefused)
    assert "queue 'stsync.mft.node.st2' with other properties" in str(consumer.link.fault)


def test_without_declare_a_missing_queue_is_refused_by_name(vhost_url: str, run: Started) -> None:
    """TRAPS 18."""
    plan = topology()
    check_access(settings(vhost_url), plan)
    once(vhost_url, lambda channel: channel.queue_delete(plan.node_queue("st2")))
    consumer = Consumer(settings(vhost_url, declare=False), plan)
    run(consumer.link)
    assert not consumer.link.wait_ready(PATIENCE_S)
    assert isinstance(consumer.link.fault, BrokerRefused)
    assert "misses queue 'stsync.mft.node.st2'" in str(consumer.link.fault)
    assert "stsync broker definitions" in str(consumer.link.fault)


def test_without_declare_a_queue_that_goes_missing_later_is_waited_for(vhost_url: str, run: Started) -> None:
    plan = topology()
    check_access(settings(vhost_url), plan)
    consumer = Consumer(settings(vhost_url, declare=False), plan)
    run(consumer.link)
    assert consumer.link.wait_ready(PATIENCE_S)
    once(vhost_url, lambda channel: channel.queue_delete(plan.node_queue("st2")))
    wait_for(lambda: "misses queue" in str(consumer.link.state.reason), "the reason")
    assert (consumer.link.state.name, consumer.link.fault) == ("down", None)
    check_access(settings(vhost_url), plan)
    assert consumer.link.wait_ready(PATIENCE_S)


def test_a_queue_that_is_away_does_not_keep_the_others_from_their_messages(
    vhost_url: str, run: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRAPS 12: a classic queue on a dead node of the broker; its words for it are put in its mouth."""

    def as_if_away(code: int, text: str, *, broker: str, user: str, step: str | None) -> Loss:
        assert (code, step) == (406, "queue 'stsync.mft.node.st1'"), text
        text = "NOT_FOUND - home node of durable queue is down or inaccessible"
        return explain_close(404, text, broker=broker, user=user, step=step)

    monkeypatch.setattr("common.broker.explain_close", as_if_away)
    plan = topology()
    once(vhost_url, lambda channel: channel.queue_declare(plan.node_queue("st1"), durable=True))
    publisher, consumer = Publisher(settings(vhost_url), plan), Consumer(settings(vhost_url), plan)
    run(publisher.link)
    run(consumer.link)
    publisher.publish_to(3)
    assert consumer.bodies(3) == [1, 2, 3]


def test_direct_messages_reach_their_node_only_and_name_their_publisher(
    rabbitmq: PrivateRabbitMQ, vhost_url: str, run: Started
) -> None:
    """TRAPS 19."""
    plan = topology()
    link = PublishLink(settings(vhost_url), plan, client_name="test")
    consumers = {node: Consumer(settings(vhost_url), plan, plan.node_queue(node)) for node in NODES}
    reports = Consumer(settings(vhost_url), plan, plan.reports_queue)
    run(link)
    assert link.wait_ready(PATIENCE_S)
    queue, exchange = plan.node_queue("st1"), plan.events_exchange
    once(vhost_url, lambda channel: channel.queue_bind(queue, exchange, ""))  # as when it was a secondary
    for one in (reports.link, *(consumer.link for consumer in consumers.values())):
        run(one)
        assert one.wait_ready(PATIENCE_S)
    assert link.publish(plan.direct_exchange, "st2", b"for st2")
    assert link.publish(plan.reports_exchange, "", b"report", expiration_ms=60_000, persistent=False)
    assert link.publish(plan.events_exchange, "", b"for all others")
    assert [one.body for one in consumers["st2"].take(2)] == [b"for st2", b"for all others"]
    assert link.publish(plan.direct_exchange, "st1", b"for st1")
    assert [one.body for one in consumers["st1"].take(1)] == [b"for st1"], "what it published would fill its own queue"
    (report,) = reports.take(1)
    assert (report.body, report.user_id) == (b"report", rabbitmq.user)


def test_an_alarm_of_the_broker_blocks_the_link_until_it_ends(
    rabbitmq: PrivateRabbitMQ, vhost_url: str, run: Started
) -> None:
    """TRAPS 16."""
    publisher = Publisher(settings(vhost_url), topology())
    run(publisher.link)
    publisher.publish_to(1)
    rabbitmq.ctl("set_vm_memory_high_watermark", "0.0000001")
    try:
        publisher.link.publish(publisher.plan.reports_exchange, "", b"x")  # only then is a connection blocked
        wait_for(lambda: publisher.link.state.name == "blocked", "the alarm")
        assert publisher.link.room() == 0
    finally:
        rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
    wait_for(lambda: publisher.link.state.name == "ready", "the end of the alarm")
    publisher.publish_to(10)
    assert not publisher.resets


def test_an_alarm_that_lasts_resets_the_link(rabbitmq: PrivateRabbitMQ, vhost_url: str, run: Started) -> None:
    """TRAPS 16: a confirm must not hang for ever."""
    publisher = Publisher(settings(vhost_url, blocked_timeout_s=0.5), topology())
    run(publisher.link)
    publisher.publish_to(1)
    rabbitmq.ctl("set_vm_memory_high_watermark", "0.0000001")
    try:
        publisher.link.publish(publisher.plan.events_exchange, "", b"2", token=2)
        wait_for(lambda: publisher.resets, "the reset")
        assert "blocked_timeout_s" in "".join(str(state.reason) for state in publisher.states)
    finally:
        rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
    publisher.publish_to(10)
    assert publisher.confirmed == list(range(1, 11))


def test_confirms_that_never_come_reset_the_link(vhost_url: str, run: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRAPS 22: such as those of a quorum queue without its majority."""
    publisher = Publisher(settings(vhost_url, blocked_timeout_s=0.5), topology())
    with monkeypatch.context() as deaf:
        deaf.setattr(PublishLink, "_on_confirm", lambda self, channel, frame: None)
        run(publisher.link)
        assert publisher.link.wait_ready(PATIENCE_S)
        publisher.link.publish(publisher.plan.events_exchange, "", b"1", token=1)
        wait_for(lambda: publisher.resets, "the reset")
        assert "has not confirmed" in "".join(str(state.reason) for state in publisher.states)
    publisher.publish_to(10)
    assert publisher.confirmed == list(range(1, 11))


def test_a_refused_message_rewinds(vhost_url: str, run: Started) -> None:
    """TRAPS 12, 22: a nack is a loss of the link; what was not confirmed goes out again in order."""
    plan = topology()
    check_access(settings(vhost_url), plan)

    def refuse(channel: Any) -> None:
        arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
        channel.queue_declare("full", durable=True, arguments=arguments)
        channel.queue_bind("full", plan.events_exchange)

    once(vhost_url, refuse)
    publisher = Publisher(settings(vhost_url), plan)
    run(publisher.link)
    assert publisher.link.wait_ready(PATIENCE_S)
    with pytest.raises(AssertionError, match="confirmed"):
        publisher.publish_to(5, seconds=3)
    assert publisher.resets
    assert "nack" in "".join(str(state.reason) for state in publisher.states)
    once(vhost_url, lambda channel: channel.queue_delete("full"))
    publisher.publish_to(5)
    assert publisher.confirmed == list(range(1, 6))


def test_an_error_in_a_callback_ends_the_link_with_a_fault(vhost_url: str, run: Started) -> None:
    """STYLE 6: the process is to end with a reason, not to reconnect for ever."""

    def broken(_: Delivery) -> None:
        raise KeyError("a mistake")

    plan = topology()
    publisher = Publisher(settings(vhost_url), plan)
    consumer = Consumer(settings(vhost_url), plan, on_delivery=broken)
    run(publisher.link)
    run(consumer.link)
    publisher.publish_to(1)
    wait_for(lambda: consumer.link.state.name == "refused", "the fault")
    assert isinstance(consumer.link.fault, Fault)
    assert "KeyError" in str(consumer.link.fault)
    assert len([state for state in consumer.states if state.name == "refused"]) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_is_a_fault(vhost_url: str, run: Started) -> None:
    consumer = Consumer(settings(vhost_url), topology())
    run(consumer.link)
    assert consumer.link.wait_ready(PATIENCE_S)

    def die() -> None:
        raise RuntimeError("a defect below the link")

    consumer.link._loop.add_callback_threadsafe(die)
    wait_for(lambda: consumer.link.state.name == "refused", "the fault")
    assert isinstance(consumer.link.fault, Fault)
    assert "a defect below the link" in str(consumer.link.fault)


def test_definitions_serve_a_cluster_without_declaring(rabbitmq: PrivateRabbitMQ, vhost_url: str, run: Started) -> None:
    """TRAPS 19: with the least rights, all that is needed works and nothing else does."""
    plan = topology()
    vhost = vhost_url.rsplit("/", 1)[1]
    document = rabbitmq.directory / "definitions.json"
    rabbitmq.owner.write(document, json.dumps(definitions(plan, vhost=vhost)))
    rabbitmq.ctl("import_definitions", str(document))
    urls = {}
    for node in NODES:
        rabbitmq.ctl("change_password", plan.user(node), f"pw-{node}")
        urls[node] = f"amqp://{plan.user(node)}:pw-{node}@127.0.0.1:{rabbitmq.port}/{vhost}"
    try:
        primary = Publisher(settings(urls["st1"], declare=False), plan, lock=True)
        secondary = Consumer(settings(urls["st2"], declare=False), plan)
        reporter = PublishLink(settings(urls["st2"], declare=False), plan, client_name="reporter")
        reports = Consumer(settings(urls["st1"], declare=False), plan, plan.reports_queue)
        for one in (primary.link, secondary.link, reporter, reports.link):
            run(one)
            assert one.wait_ready(PATIENCE_S), one.fault
        primary.publish_to(3)
        assert secondary.bodies(3) == [1, 2, 3]
        assert reporter.publish(plan.reports_exchange, "", b"report")
        assert reports.take(1)[0].user_id == plan.user("st2")
        assert reporter.publish(plan.events_exchange, "", b"forged")
        wait_for(lambda: reporter.fault, "the refusal of what only the primary may")
        assert isinstance(reporter.fault, BrokerRefused)
    finally:
        for node in NODES:
            rabbitmq.ctl("delete_user", plan.user(node))


def test_acknowledgements_are_gathered_and_none_is_left_behind(vhost_url: str, run: Started) -> None:
    """DESIGN §10: for a quorum queue each of them is work."""
    plan = topology()
    publisher, consumer = Publisher(settings(vhost_url), plan), Consumer(settings(vhost_url, prefetch=100), plan)
    run(publisher.link)
    run(consumer.link)
    acked: list[int] = []
    wait_for(lambda: consumer.link._channel is not None and consumer.link.state.name == "ready", "the channel")
    plain = consumer.link._channel.basic_ack

    def noted(tag: int, multiple: bool) -> None:
        acked.append(tag)
        plain(tag, multiple)

    consumer.link._channel.basic_ack = noted
    publisher.publish_to(90)
    deliveries = consumer.take(90)
    for one in deliveries[:40]:
        consumer.link.done(one)
    wait_for(lambda: acked, "the first of them")
    assert len(acked) < 5
    for one in deliveries[40:]:
        consumer.link.done(one)
    wait_for(lambda: acked[-1] == deliveries[-1].tag, "the last of them")
    publisher.publish_to(91)
    (last,) = consumer.take(1)
    consumer.link.done(last)
    consumer.link.stop()
    assert acked[-1] == last.tag
