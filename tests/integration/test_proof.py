"""When a secondary is taken for equal to the primary, and what of that a comparison settles (DOMAIN §2)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import Connection

from common import nodestate
from consumer.proof import Compared, Proof
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, Node, make_cluster


@pytest.fixture
def node(tmp_path: Path, new_database: NewDatabase) -> Iterator[Node]:
    """A secondary on which changes are captured; its service does not run."""
    schema = ("CREATE TABLE item (id BIGINT PRIMARY KEY)",)
    made = make_cluster(
        tmp_path / "c", "sqlite", NO_BROKER, new_database, schema=schema, tables="item\n", nodes=("st1", "st2")
    )
    yield made.nodes["st2"]
    for one in made.nodes.values():
        one.close()


@pytest.fixture
def connection(node: Node) -> Iterator[Connection]:
    with node.database.connect() as found:
        yield found


def proof_of(node: Node, connection: Connection) -> Proof:
    """As a service that starts has it: it looks at once."""
    found = Proof()
    found.load(nodestate.read_installed(connection, node.settings))
    connection.rollback()
    return found


def installed_ms(node: Node) -> int:
    return int(node.rows("SELECT installed_ms FROM stsync_node")[0][0])


def edits(node: Node) -> list[int]:
    return [number for (number,) in node.rows("SELECT id FROM stsync_outbox ORDER BY id")]


def doubted(node: Node, connection: Connection) -> Proof:
    """It was equal once, and was changed here since; that was noticed."""
    node.execute("UPDATE stsync_node SET equal_once = 1, proven_ms = 1", "INSERT INTO item VALUES (1)")
    found = proof_of(node, connection)
    found.look(connection)
    connection.commit()
    assert (found.proven, "made on this node itself" in (found.doubt or "")) == (False, True)
    return found


def saved(node: Node) -> tuple[bool, bool, int]:
    """Whether it is proven and in doubt, and the newest change that was noticed."""
    ((proven_ms, doubt, newest),) = node.rows("SELECT proven_ms, doubt, edits FROM stsync_node")
    return proven_ms is not None, doubt is not None, newest


def test_a_comparison_that_saw_all_changes_settles_the_doubt(node: Node, connection: Connection) -> None:
    found = doubted(node, connection)
    found.compared(connection, Compared(True, edits(node), installed_ms(node)))
    assert (found.proven, found.doubt, found.equal_once) == (True, None, True)
    assert saved(node) == (True, False, 0)
    assert edits(node) == []


def test_a_change_after_the_comparison_s_position_keeps_the_doubt(node: Node, connection: Connection) -> None:
    found = doubted(node, connection)
    compared = Compared(True, edits(node), installed_ms(node))
    node.execute("INSERT INTO item VALUES (2)")
    found.compared(connection, compared)
    (later,) = edits(node)
    assert (found.proven, found.doubt is None) == (False, False)
    assert saved(node) == (False, True, later)


def test_a_comparison_that_read_the_tables_as_another_install_found_them_settles_nothing(
    node: Node, connection: Connection
) -> None:
    found = doubted(node, connection)
    (before,) = edits(node)
    found.compared(connection, Compared(True, [before], 1))
    assert (found.proven, found.doubt is None, found.equal_once) == (False, False, True)
    assert saved(node)[:2] == (False, True)
    assert edits(node) == [before]


def test_who_differs_is_in_doubt_and_forgets_no_change(node: Node, connection: Connection) -> None:
    found = doubted(node, connection)
    (before,) = edits(node)
    found.compared(connection, Compared(False, [before], installed_ms(node)))
    assert found.doubt == "it was compared with the primary, and differs"
    assert saved(node) == (False, True, before)
    assert edits(node) == [before]


def test_a_change_is_noticed_after_a_restart_too_and_the_same_one_once(node: Node, connection: Connection) -> None:
    found = doubted(node, connection)
    found.doubted(connection, "another reason")
    again = proof_of(node, connection)
    again.look(connection)
    connection.commit()
    assert again.doubt == "another reason"
    node.execute("INSERT INTO item VALUES (2)")
    later = proof_of(node, connection)
    later.look(connection)
    connection.commit()
    assert "made on this node itself" in (later.doubt or "")


def test_a_primary_s_doubt_is_settled_unless_there_is_another_by_now(node: Node, connection: Connection) -> None:
    node.execute("UPDATE stsync_node SET doubt = 'one'")
    nodestate.settle(connection, installed_ms(node) - 1)
    connection.commit()
    assert saved(node)[1]
    nodestate.settle(connection, installed_ms(node))
    connection.commit()
    assert not saved(node)[1]


def test_a_change_that_was_not_noticed_before_the_comparison_puts_it_in_doubt(node: Node, connection: Connection) -> None:
    node.execute("UPDATE stsync_node SET equal_once = 1, proven_ms = 1")
    found = proof_of(node, connection)
    node.execute("INSERT INTO item VALUES (1)")
    found.compared(connection, Compared(True, [], installed_ms(node)))
    assert (found.proven, "made on this node itself" in (found.doubt or "")) == (False, True)
    assert saved(node) == (False, True, edits(node)[0])


def test_what_install_put_in_doubt_is_seen_by_a_service_that_runs(node: Node, connection: Connection) -> None:
    node.execute("UPDATE stsync_node SET equal_once = 1, proven_ms = 1")
    found = proof_of(node, connection)
    node.execute("UPDATE stsync_node SET proven_ms = NULL, doubt = 'another schema', installed_ms = installed_ms + 1")
    found.compared(connection, Compared(True, [], installed_ms(node) - 1))
    assert saved(node)[:2] == (False, True)
    found.look(connection)
    assert (found.proven, found.doubt) == (False, "another schema")


@pytest.mark.parametrize("known", [nodestate.DIFFERS, nodestate.UNMENDED, f"{nodestate.LEFT_OUT}: its schema differs"])
def test_what_is_known_is_not_forgotten_for_what_is_only_in_doubt(node: Node, connection: Connection, known: str) -> None:
    """Another change on a node that differs does not make it more alike, nor does `install`."""
    node.execute("UPDATE stsync_node SET equal_once = 1, proven_ms = 1")
    found = proof_of(node, connection)
    found.doubted(connection, known)
    node.execute("INSERT INTO item VALUES (1)")
    found.look(connection)
    connection.commit()
    assert (found.proven, found.doubt) == (False, known)
    node.execute("ALTER TABLE item ADD COLUMN more INTEGER")
    assert node.command("install").returncode == 0
    assert node.rows("SELECT proven_ms, doubt FROM stsync_node") == [(None, known)]
    found.compared(connection, Compared(True, edits(node), installed_ms(node)))
    assert (found.proven, found.doubt) == (True, None)
