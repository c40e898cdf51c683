"""Names, arguments and rights at the broker: what stands in TRAPS 12, 13, 17–19."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import SecretStr
from typer.testing import CliRunner

from common.broker_address import Address, addresses, tls_context
from common.commands import broker as command
from common.errors import Misconfigured
from common.linkstate import explain_close
from common.settings import BrokerSettings, BrokerTls
from common.topology import QueueType, Topology, definitions

TOPOLOGY = Topology("mft", ("st1", "st2", "st3"), "st1", "quorum", 1 << 24)
SETTINGS = """
[cluster]
name = "mft"
nodes = [{name = "st1"}, {name = "st2"}]
[node]
name = "st2"
home = "/tmp"
[database]
url = "sqlite:////tmp/x.db"
[broker]
urls = ["amqp://stsync:very-secret@127.0.0.1:5672/mft"]
[trust]
key = "a"
certificate = "b"
authorities = ["c"]
cluster_key = "d"
cluster_certificate = "e"
"""


def test_names_are_those_of_the_cluster() -> None:
    assert TOPOLOGY.events_exchange == "stsync.mft.events"
    assert TOPOLOGY.direct_exchange == "stsync.mft.direct"
    assert TOPOLOGY.reports_exchange == "stsync.mft.reports"
    assert TOPOLOGY.sessions_exchange == "stsync.mft.sessions"
    assert TOPOLOGY.node_queue("st2") == "stsync.mft.node.st2"
    assert TOPOLOGY.session_queue("st2") == "stsync.mft.session.st2"
    assert TOPOLOGY.reports_queue == "stsync.mft.primary"
    assert TOPOLOGY.lock_queue == "stsync.mft.relay"


def test_no_node_name_can_meet_another_object() -> None:
    awkward = Topology("mft", ("primary", "relay", "events"), "primary")
    names = [queue.name for queue in awkward.queues]
    assert len(set(names)) == len(names)
    assert awkward.lock_queue not in names


def test_every_node_hears_all_and_what_is_meant_for_it() -> None:
    bindings = {(one.exchange, one.queue, one.routing_key) for one in TOPOLOGY.bindings}
    for node in TOPOLOGY.nodes:
        published = ("stsync.mft.events", f"stsync.mft.node.{node}", "")
        assert (published in bindings) is (node != "st1")  # nobody would take it out of the primary's own queue
        assert ("stsync.mft.direct", f"stsync.mft.node.{node}", node) in bindings
        for key in ("*", node):
            assert (("stsync.mft.sessions", f"stsync.mft.session.{node}", key) in bindings) is (node != "st1")
    assert ("stsync.mft.reports", "stsync.mft.primary", "") in bindings
    assert len(bindings) == 4 * len(TOPOLOGY.nodes) - 2


def test_a_full_queue_never_refuses_the_publisher() -> None:
    """TRAPS 12."""
    kinds: tuple[QueueType, ...] = ("quorum", "classic")
    for kind in kinds:
        for queue in Topology("mft", ("a", "b"), "a", kind, 1 << 20).queues:
            assert queue.arguments["x-overflow"] == "drop-head"
            assert queue.arguments["x-max-length-bytes"] <= 1 << 20


def test_one_consumer_and_an_explicit_delivery_limit() -> None:
    """TRAPS 13."""
    for queue in TOPOLOGY.queues:
        assert queue.arguments["x-single-active-consumer"] is True
        assert queue.arguments["x-delivery-limit"] == 1_000_000
    for queue in Topology("mft", ("a",), "a", "classic").queues:
        assert "x-delivery-limit" not in queue.arguments


def _may(document: dict[str, Any], node: str, right: str, name: str) -> bool:
    permission = next(one for one in document["permissions"] if one["user"] == f"stsync.mft.{node}")
    return re.search(permission[right], name) is not None  # as RabbitMQ matches: anywhere


def test_definitions_give_each_node_the_least_rights() -> None:
    """TRAPS 19."""
    document = definitions(TOPOLOGY, vhost="v")
    everything = [
        "",
        *(one["name"] for one in document["exchanges"]),
        *(one["name"] for one in document["queues"]),
        TOPOLOGY.lock_queue,
        "stsync.mft.node.st20",
        "stsync.mft.node.xst2",
        "stsyncxmft.reports",
        "stsync.mft.reports2",
        "amq.topic",
    ]
    rights = {
        (node, right): {name for name in everything if _may(document, node, right, name)}
        for node in TOPOLOGY.nodes
        for right in ("configure", "write", "read")
    }
    assert rights["st2", "configure"] - {""} == set()
    assert rights["st2", "write"] == {"stsync.mft.reports"}
    assert rights["st2", "read"] == {"stsync.mft.node.st2", "stsync.mft.session.st2"}
    assert rights["st1", "configure"] == {"stsync.mft.relay"}
    assert rights["st1", "write"] == {
        "stsync.mft.reports",
        "stsync.mft.events",
        "stsync.mft.direct",
        "stsync.mft.sessions",
    }
    assert rights["st1", "read"] == {"stsync.mft.node.st1", "stsync.mft.session.st1", "stsync.mft.primary"}


def test_definitions_hold_no_password() -> None:
    users = definitions(TOPOLOGY, vhost="v")["users"]
    assert {one["password_hash"] for one in users} == {""}
    assert all(one["tags"] == [] for one in users)


def test_the_command_prints_the_definitions_for_the_settings_virtual_host(tmp_path: Path) -> None:
    config = tmp_path / "stsync.toml"
    config.write_text(SETTINGS)
    app = typer.Typer()
    command.register(app)
    result = CliRunner().invoke(app, ["broker", "definitions", "--config", str(config)])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["vhosts"] == [{"name": "mft"}]
    assert document == definitions(Topology("mft", ("st1", "st2"), "st1"), vhost="mft")
    assert "very-secret" not in result.output
    promoted = CliRunner().invoke(app, ["broker", "definitions", "--primary", "st2", "--config", str(config)])
    assert json.loads(promoted.stdout) == definitions(Topology("mft", ("st1", "st2"), "st2"), vhost="mft")
    unknown = CliRunner().invoke(app, ["broker", "definitions", "--primary", "x", "--config", str(config)])
    assert isinstance(unknown.exception, Misconfigured)


def _read(*urls: str, tls: BrokerTls | None = None) -> tuple[Address, ...]:
    return addresses(BrokerSettings(urls=tuple(SecretStr(url) for url in urls), tls=tls))


def test_addresses_are_read_as_rabbitmq_means_them() -> None:
    first, second, third = _read(
        "amqp://us%40er:pa%2Fss@broker.example/%2Fa%20b", "amqps://u:p@[::1]:7000/v", "amqp://u:p@h"
    )
    assert (first.host, first.port, first.vhost) == ("broker.example", 5672, "/a b")
    assert (first.user, first.password, first.tls) == ("us@er", "pa/ss", False)
    assert (second.place, second.tls) == ("[::1]:7000", True)
    assert third.vhost == "/"
    assert "pa/ss" not in repr(first)


@pytest.mark.parametrize(
    "url",
    [
        "amqp://u:hidden@h/a/b",
        "amqp://u:hidden@h:port/",
        "amqp://u:hidden@h/v?heartbeat=0",
        "amqp://u:hidden@/v",
        "amqp://h",
        "amqps://h",
    ],
)
def test_a_wrong_address_is_named_by_its_key_without_its_password(url: str) -> None:
    with pytest.raises(Misconfigured, match=r"broker\.urls\[1\]") as caught:
        _read("amqp://u:p@h", url)
    assert "hidden" not in str(caught.value)


def test_a_client_certificate_serves_instead_of_a_password() -> None:
    (address,) = _read("amqps://st1@h", tls=BrokerTls(certificate=Path("c.pem"), key=Path("k.pem")))
    assert (address.user, address.password) == ("st1", None)


def test_a_tls_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "absent.pem"
    with pytest.raises(Misconfigured, match=r"broker\.tls\.authorities: .*absent\.pem"):
        tls_context(BrokerTls(authorities=missing))
    with pytest.raises(Misconfigured, match=r"broker\.tls\.certificate.*absent\.pem"):
        tls_context(BrokerTls(certificate=missing))
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    with pytest.raises(Misconfigured, match=r"garbage\.pem"):
        tls_context(BrokerTls(authorities=garbage))


@pytest.mark.parametrize(
    ("code", "text", "step", "name", "fatal"),
    [
        (320, "CONNECTION_FORCED - broker forced connection closure", None, "down", False),
        (403, "ACCESS_REFUSED - Login was refused", None, "refused", True),
        (403, "ACCESS_REFUSED - write access refused", "queue 'q'", "refused", True),
        (530, "NOT_ALLOWED - vhost v not found", None, "refused", True),
        (530, "NOT_ALLOWED - connection limit (1) is reached", None, "down", False),
        (530, "NOT_ALLOWED - access refused: vhost 'v' is down", None, "down", False),
        (405, "RESOURCE_LOCKED - cannot obtain exclusive access", "lock queue 'r'", "locked", False),
        (404, "NOT_FOUND - no queue 'q' in vhost 'v'", "queue 'q'", "refused", False),
        (404, "NOT_FOUND - home node 'n' of durable queue 'q' is down or inaccessible", "q", "down", False),
        (406, "PRECONDITION_FAILED - inequivalent arg 'x'", "queue 'q'", "refused", False),
        (406, "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out", None, "down", False),
        (541, "INTERNAL_ERROR", None, "down", False),
    ],
)
def test_what_the_broker_says_decides_whether_to_try_again(
    code: int, text: str, step: str | None, name: str, fatal: bool
) -> None:
    """TRAPS 15, 25."""
    loss = explain_close(code, text, broker="h:1", user="u", step=step)
    assert (loss.name, loss.fatal) == (name, fatal)
    assert "h:1" in loss.reason
    assert text in loss.reason
