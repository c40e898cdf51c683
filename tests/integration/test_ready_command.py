"""`stsync ready` as a start script runs it: what it finds in the database decides (DOMAIN §2; the rules: unit/test_readiness)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from common import nodestate
from common.service_lock import ServiceLock
from common.stop import Stop
from tests.conftest import NewDatabase
from tests.faults.conftest import wait_told
from tests.harness import NO_BROKER, QUIET, Node, make_cluster, wait_for
from tests.integration.conftest import MakeCluster
from tests.integration.test_sync import run

QUARANTINED = (
    "INSERT INTO stsync_quarantine (epoch, sequence, table_name, kind, columns_json, key_json, row_json, reason, attempts, first_ms,"
    " last_ms) VALUES (1, 1, 'item', 'I', '[]', '[]', '[]', 'why', 1, 1, 1)"
)


@pytest.fixture
def node(tmp_path: Path, new_database: NewDatabase) -> Iterator[Node]:
    """A secondary that is ready, as far as its database and the service's lock say."""
    schema = ("CREATE TABLE item (id BIGINT PRIMARY KEY)",)
    made = make_cluster(
        tmp_path / "c", "sqlite", NO_BROKER, new_database, schema=schema, tables="item\n", nodes=("st1", "st2")
    )
    found = made.nodes["st2"]
    found.execute(
        "UPDATE stsync_node SET heard_ms = :now, proven_ms = 1, equal_once = 1, started_ms = 100, last_full_sync_ms = 50",
        now=nodestate.now_ms() + 5_000,
    )
    lock = ServiceLock(found.database, Stop())
    lock.take()
    yield found
    lock.release()
    for one in made.nodes.values():
        one.close()


def told(node: Node) -> tuple[int, str]:
    done = node.command("ready")
    return done.returncode, done.stdout.strip()


def test_yes(node: Node) -> None:
    assert told(node) == (0, "ready")
    node.execute("UPDATE stsync_node SET head_sequence = 100, lag_ms = 9000")
    assert told(node) == (0, "ready")


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (QUARANTINED, "1 changes could not be applied here"),
        ("UPDATE stsync_node SET proven_ms = NULL, doubt = 'it was upgraded'", "equal to the primary: it was upgraded"),
        (
            "UPDATE stsync_node SET proven_ms = NULL, doubt = 'it was compared with the primary, and differs'",
            "this node is needs_full_sync: it was compared with the primary, and differs; `stsync sync` on the primary st1",
        ),
        ("UPDATE stsync_node SET head_sequence = 101", "101 batches behind"),
        ("UPDATE stsync_node SET head_sequence = 1, lag_ms = 11000", "1 batch behind"),
        ("UPDATE stsync_node SET state = 'needs_full_sync', reason = 'past retention'", "past retention; run `stsync sync`"),
        ("UPDATE stsync_node SET state = 'paused', reason = 'one is under way'", "is paused: one is under way"),
        ("UPDATE stsync_node SET heard_ms = 1", "nothing was heard from the primary st1"),
    ],
)
def test_no_and_why(node: Node, statement: str, reason: str) -> None:
    node.execute(statement)
    code, words = told(node)
    assert code == 1
    assert reason in words
    assert words.count("`stsync sync`") <= 1


def test_a_full_synchronization_of_before_the_start_does_not_do_where_the_rule_is_strict(node: Node) -> None:
    node.config.write_text(node.config.read_text() + "[readiness]\nstrict = true\n")
    assert "readiness.strict" in told(node)[1]
    node.execute("UPDATE stsync_node SET last_full_sync_ms = 100")
    assert told(node) == (0, "ready")


def test_each_start_of_the_service_asks_for_a_full_synchronization_where_the_rule_is_strict(
    new_cluster: MakeCluster,
) -> None:
    cluster = new_cluster("sqlite", nodes=("st1", "st2"), settings=QUIET + "[readiness]\nstrict = true\n")
    cluster.start()
    st2 = cluster.nodes["st2"]
    for _ in range(2):
        wait_for(lambda: st2.status()["state"] == "in_sync", "st2 in sync")
        assert run(cluster.primary, "sync")[0] == 0
        wait_told(lambda: told(st2)[0] == 0, lambda: told(st2))
        st2.stop()
        st2.start()
        wait_told(lambda: "readiness.strict" in told(st2)[1], lambda: told(st2))
