"""Two databases of one schema with every kind of reference, made once a module."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from uuid import uuid4

import pytest

from deploy.servers import PrivateMariaDB, PrivatePostgreSQL
from tests.harness import NO_BROKER, Cluster, make_cluster
from tests.installing import Pair, right
from tests.installing_schema import EVERY, LOCAL, ROWS, TABLES, schema_for

Made = Callable[[str], Cluster]


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A cluster of each kind, made at first use."""
    root = tmp_path_factory.mktemp("pairs")
    clusters: dict[str, Cluster] = {}
    with ExitStack() as cleanup:

        def database(kind: str) -> str:
            if kind == "sqlite":
                return f"sqlite:///{root / f'{uuid4()}.db'}"
            server: PrivatePostgreSQL | PrivateMariaDB = request.getfixturevalue(kind)
            url = server.new_database("test")
            cleanup.callback(server.drop_database, url)
            return url

        def make(kind: str) -> Cluster:
            if kind not in clusters:
                nodes = ("st1", "st2")
                clusters[kind] = make_cluster(
                    root / kind, kind, NO_BROKER, database, schema=schema_for(kind), tables=TABLES, nodes=nodes
                )
                for node in clusters[kind].nodes.values():
                    cleanup.callback(node.close)
            return clusters[kind]

        yield make


@pytest.fixture(params=["sqlite", "mariadb", "postgresql", "postgresql allowed"])
def pair(request: pytest.FixtureRequest, made: Made) -> Iterator[Pair]:
    """Two databases of one schema, empty."""
    kind, *allowed = request.param.split()
    cluster = made(kind)
    if kind != "postgresql":
        found = Pair(cluster)
        found.on_both(*(f"DELETE FROM {name}" for name in EVERY))
        yield found
        return
    server = request.getfixturevalue("postgresql")
    found = Pair(cluster, server.admin_url)
    found.on_both(*(f"DELETE FROM {name}" for name in EVERY))
    with right(server) if allowed else nullcontext():
        yield found


@pytest.fixture
def filled(pair: Pair) -> Pair:
    """The same rows on both, and the secondary's own."""
    pair.on_both(*ROWS)
    pair.secondary.execute(*LOCAL)
    return pair
