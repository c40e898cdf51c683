"""A database that was put in the place of a running secondary's: nothing is written to it, and an operator is told what to do."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from common import nodestate, runtime
from common.errors import Misconfigured
from common.service_lock import ServiceLock
from common.stop import Stop
from consumer.service import SecondaryService
from publisher import capture
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, Node, make_cluster


@pytest.fixture(params=["sqlite", "postgresql"])
def node(request: pytest.FixtureRequest, tmp_path: Path, new_database: NewDatabase) -> Iterator[Node]:
    """A secondary with capture installed and no service."""
    schema = ("CREATE TABLE item (id BIGINT PRIMARY KEY)",)
    made = make_cluster(
        tmp_path / "c", request.param, NO_BROKER, new_database, schema=schema, tables="item\n", nodes=("st1", "st2")
    )
    yield made.nodes["st2"]
    for one in made.nodes.values():
        one.close()


@pytest.fixture
def service(node: Node) -> SecondaryService:
    """As it stands once it has begun, with links that were not started."""
    database, stop = node.database, Stop()
    with database.connect(read_only=True) as connection:
        state = nodestate.read_installed(connection, node.settings)
    made = SecondaryService(runtime.build(node.settings, database, state, stop, ServiceLock(database, stop)))
    made._lists.load()
    return made


def test_a_database_that_is_not_prepared_any_more_is_told_with_the_remedy(node: Node, service: SecondaryService) -> None:
    """STYLE 10: as when a dump from before the installation was restored."""
    capture.uninstall(node.database)
    with pytest.raises(Misconfigured, match="stsync install"):
        service._apply_loop()


def test_another_node_s_database_is_left_as_it_is(node: Node, service: SecondaryService) -> None:
    """TRAPS 7, 34: also the numbers of its messages, which are that node's to give."""
    node.execute("UPDATE stsync_node SET name = 'st9'")
    before = node.rows("SELECT * FROM stsync_node")
    with pytest.raises(Misconfigured, match="belongs to node 'st9'"):
        service._apply_loop()
    assert node.rows("SELECT * FROM stsync_node") == before
