"""A cluster per test, on each database in turn."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.servers import PrivateRabbitMQ
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, Cluster, make_cluster
from tests.integration.fixtures_install import filled, made, pair
from tests.pipeline import Pipeline

SCHEMA = (
    "CREATE TABLE unit (id BIGINT PRIMARY KEY, name VARCHAR(80) NOT NULL UNIQUE, parent BIGINT REFERENCES unit (id))",
    "CREATE TABLE account (id BIGINT PRIMARY KEY, name VARCHAR(80) NOT NULL UNIQUE, unit_id BIGINT, note TEXT,"
    " last_login VARCHAR(40), FOREIGN KEY (unit_id) REFERENCES unit (id))",
    "CREATE TABLE login (account_id BIGINT NOT NULL, name VARCHAR(80) NOT NULL, digest VARCHAR(80), PRIMARY KEY (account_id, name),"
    " FOREIGN KEY (account_id) REFERENCES account (id) ON DELETE CASCADE ON UPDATE CASCADE)",
    "CREATE TABLE param (name VARCHAR(80) NOT NULL, node VARCHAR(40) NOT NULL, val TEXT, islocal INT NOT NULL DEFAULT 0,"
    " PRIMARY KEY (name, node))",
    "CREATE TABLE audit (id BIGINT PRIMARY KEY, what TEXT)",
)
TABLES = 'unit\naccount exclude=last_login\nlogin\nparam where="islocal = 0"\n'
__all__ = ["filled", "made", "pair"]  # fixtures
MakeCluster = Callable[..., Cluster]
MakePipeline = Callable[..., Pipeline]


@pytest.fixture
def new_cluster(tmp_path: Path, rabbitmq: PrivateRabbitMQ, new_database: NewDatabase) -> Iterator[MakeCluster]:
    """Makes clusters; every service is ended with the test."""
    made: list[Cluster] = []

    def make(kind: str, **options: object) -> Cluster:
        wanted = {"schema": SCHEMA, "tables": TABLES, "broker_url": rabbitmq.new_vhost()} | options
        url = str(wanted.pop("broker_url"))
        cluster = make_cluster(tmp_path / f"cluster{len(made)}", kind, url, new_database, **wanted)  # type: ignore[arg-type]
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        for node in cluster.nodes.values():
            node.close()


@pytest.fixture
def cluster(new_cluster: MakeCluster, database_kind: str) -> Cluster:
    """A running cluster of three on each database in turn."""
    found = new_cluster(database_kind)
    found.start()
    return found


@pytest.fixture
def new_pipeline(tmp_path: Path, new_database: NewDatabase) -> Iterator[MakePipeline]:
    """Makes a primary and a secondary of any schema in this process: `(kind, *schema, tables=…)`."""
    made: list[Pipeline] = []

    def make(kind: str, *schema: str, tables: str) -> Pipeline:
        folder, nodes = tmp_path / f"pipeline{len(made)}", ("st1", "st2")
        made.append(Pipeline(make_cluster(folder, kind, NO_BROKER, new_database, schema=schema, tables=tables, nodes=nodes)))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def pipeline(tmp_path: Path, database_kind: str, new_database: NewDatabase) -> Iterator[Pipeline]:
    """A primary and a secondary in this process, on each database in turn."""
    cluster = make_cluster(
        tmp_path / "c", database_kind, NO_BROKER, new_database, schema=SCHEMA, tables=TABLES, nodes=("st1", "st2")
    )
    made = Pipeline(cluster)
    yield made
    made.close()
