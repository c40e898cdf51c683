"""A database user who may not do what `install` has to do: one sentence with the remedy, and exit 2."""

import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from deploy.servers import PrivateMariaDB, PrivatePostgreSQL
from tests.conftest import NewDatabase
from tests.faults.test_misconfiguration import change, expect
from tests.harness import NO_BROKER, Node, make_cluster

UNIT = "CREATE TABLE unit (id BIGINT PRIMARY KEY, name VARCHAR(40))"


@pytest.fixture
def node(tmp_path: Path, new_database: NewDatabase) -> Iterator[Node]:
    """A node whose database is exchanged by the test."""
    made = make_cluster(tmp_path / "c", "sqlite", NO_BROKER, new_database, schema=(UNIT,), tables="unit\n", nodes=("st1",))
    yield made.primary
    made.primary.close()


def use(node: Node, url: str) -> None:
    """Another database, with the table and without anything of ours."""
    node.close()
    change(node, node.url, url)
    node.url, node._engine = url, None


def administer(url: str, *statements: str) -> None:
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("ALTER TABLE unit OWNER TO postgres; GRANT ALL ON unit TO stsync", ("must be owner of table unit",)),
        ("ALTER TABLE unit OWNER TO postgres", ("permission denied for table unit",)),
        ("ALTER DATABASE {name} OWNER TO postgres", ("permission denied for schema public",)),
    ],
    ids=["table", "nothing", "schema"],
)
def test_a_user_who_does_not_own_a_table(
    node: Node, new_database: NewDatabase, postgresql: PrivatePostgreSQL, statement: str, words: tuple[str, ...]
) -> None:
    """STYLE 10: PostgreSQL."""
    url = new_database("postgresql")
    name = url.rpartition("/")[2]
    use(node, url)
    node.execute(UNIT)
    administer(postgresql.admin_url.rpartition("/")[0] + f"/{name}", *statement.format(name=name).split(";"))
    expect(node.command("install"), 2, *words, "database.url", "own the listed tables", secrets=(postgresql.password,))


@pytest.mark.parametrize("lacking", ["TRIGGER", "CREATE"])
def test_a_user_who_lacks_a_right(node: Node, new_database: NewDatabase, mariadb: PrivateMariaDB, lacking: str) -> None:
    """STYLE 10: MariaDB."""
    url = make_url(new_database("mariadb"))
    use(node, url.render_as_string(hide_password=False))
    node.execute(UNIT)
    password = secrets.token_urlsafe(18)
    rights = ", ".join({"SELECT", "INSERT", "UPDATE", "DELETE", "CREATE", "DROP", "INDEX", "TRIGGER"} - {lacking})
    user = "limited@'127.0.0.1'"
    administer(
        mariadb.admin_url,
        f"CREATE USER {user} IDENTIFIED BY '{password}'",
        f"GRANT {rights} ON `{url.database}`.* TO {user}",
    )
    try:
        use(node, url.set(username="limited", password=password).render_as_string(hide_password=False))
        expect(node.command("install"), 2, f"{lacking} command denied", "database.url", "GRANT", secrets=(password,))
        administer(mariadb.admin_url, f"GRANT {lacking} ON `{url.database}`.* TO {user}")
        done = node.command("install")
        assert done.returncode == 0, done.stderr
    finally:
        administer(mariadb.admin_url, f"DROP USER {user}")


class Logging(PrivateMariaDB):
    """A server that writes its binary log."""

    def _prepare(self) -> None:
        super()._prepare()
        path = self.directory / "server.cnf"
        path.write_text(path.read_text().replace("skip-log-bin\n", "log-bin = bin\n"))


def test_a_server_that_does_not_trust_the_makers_of_triggers(node: Node, servers_root: Path) -> None:
    """STYLE 10: MariaDB with its binary log, where triggers take SUPER or a setting."""
    with closing(Logging(servers_root / "logging", fast=True)) as server:
        server.start()
        use(node, server.new_database("test"))
        node.execute(UNIT)
        expect(node.command("install"), 2, "log_bin_trust_function_creators = 1", "SUPER", secrets=(server.password,))
        administer(server.admin_url, "SET GLOBAL log_bin_trust_function_creators = 1")
        done = node.command("install")
        assert done.returncode == 0, done.stderr
        node.close()


def test_a_database_file_that_may_only_be_read(node: Node) -> None:
    """STYLE 10: SQLite."""
    path = node.url.removeprefix("sqlite:///")
    use(node, f"sqlite:///file:{path}?mode=ro&uri=true")  # whoever is root is refused nothing by a file's own rights
    (node.home / "conf/sync_tables.conf").write_text("unit exclude=name\n")
    expect(node.command("install"), 2, path, "chmod")
