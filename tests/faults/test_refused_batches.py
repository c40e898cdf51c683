"""What cannot be taken though it is needed to go on is told by `status`, and the gap is never lost sight of (TRAPS 29, 34)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.topology import Topology
from common.trust.pki import init_cluster, issue_node
from tests.faults.conftest import wait_running, wait_told
from tests.faults.test_attacks import FORGED, Attack, flipped, handmade, regions
from tests.faults.test_broker_loss import do, purge, saves
from tests.harness import Cluster, Node
from tests.integration.conftest import MakeCluster

QUICK = "[intervals]\nheartbeat_s = 0.2\ncatch_up_retry_s = 0.3\noffline_after_s = 1.5\n"
NODES = ("st1", "st2")


def told(cluster: Cluster) -> str:
    return "\n".join(f"{json.dumps(one.status())}\n{one.log[-2500:]}" for one in cluster.nodes.values())


def with_a_gap(cluster: Cluster, url: str) -> tuple[Node, Node, int]:
    """st2 is stopped, and what was saved since stands in the journal alone; the first sequence that it lacks."""
    cluster.start()
    primary, node = cluster.primary, cluster.nodes["st2"]
    wait_running(primary, node)
    saves(primary, 0, 1)
    cluster.wait_equal()
    first = node.sequence() + 1
    assert node.stop() == 0
    saves(primary, 10, 3)
    wait_told(lambda: primary.status()["published"] == primary.sequence() >= first, lambda: told(cluster))
    do(url, purge)
    return primary, node, first


def row(primary: Node, sequence: int) -> bytes:
    return bytes(primary.rows("SELECT message FROM stsync_journal WHERE sequence = :s", s=sequence)[0][0])


def put(primary: Node, sequence: int, message: bytes) -> None:
    primary.execute("UPDATE stsync_journal SET message = :m WHERE sequence = :s", m=message, s=sequence)


def tells(standing: dict[str, Any], *words: str) -> bool:
    return standing["state"] == "refused" and all(word in standing["reason"] for word in words)


def damaged(_: Attack, message: bytes, region: str) -> bytes:
    return flipped(message, regions(message)[region])


def of_a_newer_version(attack: Attack, _message: bytes, _: str) -> bytes:
    return handmade(attack, b"\x00" + FORGED, version=2, sequence=2)


@pytest.mark.parametrize(
    ("database_kind", "change", "region", "words"),
    [
        ("sqlite", damaged, "magic", "no message of stsync"),
        ("postgresql", damaged, "signature", "signature"),
        ("mariadb", damaged, "sealed", "signature"),
        ("sqlite", of_a_newer_version, "", "version 2"),
    ],
)
def test_a_batch_that_is_needed_and_refused_is_told_until_it_comes_right(
    new_cluster: MakeCluster,
    vhost_url: str,
    database_kind: str,
    change: Callable[[Attack, bytes, str], bytes],
    region: str,
    words: str,
) -> None:
    """TRAPS 29: a damaged row of the journal, a batch of a version not known here; on both nodes."""
    cluster = new_cluster(database_kind, broker_url=vhost_url, nodes=NODES, settings=QUICK)
    primary, node, first = with_a_gap(cluster, vhost_url)
    attack = Attack(cluster, vhost_url, primary.home.parent / "pki", Topology("mft", NODES, "st1"))
    right = row(primary, first)
    put(primary, first, change(attack, right, region))
    node.start()
    for reads in (node.status, lambda: primary.status()["nodes"][0]):
        wait_told(lambda reads=reads: tells(reads(), words, f"sequence {first} "), lambda: told(cluster), 20)  # type: ignore[misc]
    assert node.sequence() == first - 1
    put(primary, first, right)
    cluster.wait_equal(20)
    wait_told(lambda: node.status()["state"] == "in_sync" and not node.status()["reason"], lambda: told(cluster), 20)


def test_a_primary_whose_authority_is_unknown_is_told_and_then_followed(
    new_cluster: MakeCluster, vhost_url: str, tmp_path: Path
) -> None:
    """TRAPS 34: nothing of it is accepted, heartbeats neither; when the authority is named, the node catches up."""
    cluster = new_cluster("sqlite", broker_url=vhost_url, nodes=NODES, settings=QUICK)
    cluster.start()
    primary, node = cluster.primary, cluster.nodes["st2"]
    wait_running(primary, node)
    saves(primary, 0, 1)
    cluster.wait_equal()
    assert primary.stop() == 0
    pki = primary.home.parent / "pki"
    init_cluster("mft", tmp_path / "new")
    issue_node(tmp_path / "new", "st1", tmp_path / "new")
    for end in ("key", "pem"):
        (pki / f"st1.{end}").write_bytes((tmp_path / f"new/st1.{end}").read_bytes())
    (pki / "new.pem").write_bytes((tmp_path / "new/ca.pem").read_bytes())
    both = 'authorities = ["../pki/ca.pem", "../pki/new.pem"]'
    name = 'authorities = ["../pki/ca.pem"]'
    primary.config.write_text(primary.config.read_text().replace(name, both))
    primary.start()
    saves(primary, 10, 2)
    for reads in (node.status, lambda: primary.status()["nodes"][0]):
        wait_told(lambda reads=reads: tells(reads(), "trust.authorities"), lambda: told(cluster), 20)  # type: ignore[misc]
    assert node.stop() == 0
    node.config.write_text(node.config.read_text().replace(name, both))
    node.start()
    cluster.wait_equal(20)
    wait_told(lambda: node.status()["state"] == "in_sync", lambda: told(cluster), 20)
