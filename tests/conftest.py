"""Real servers for the tests, started once a session at first use; a fresh database or vhost per test."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from deploy.servers import PrivateMariaDB, PrivatePostgreSQL, PrivateRabbitMQ, ServerError
from deploy.servers.base import PrivateServer

KINDS = ("sqlite", "postgresql", "mariadb")
NewDatabase = Callable[[str], str]
Server = TypeVar("Server", bound=PrivateServer)


@pytest.fixture(scope="session")
def servers_root() -> Iterator[Path]:
    """A directory that every user may enter, as servers that drop their rights must."""
    root = Path(tempfile.mkdtemp(prefix="stsync-tests-"))
    root.chmod(0o711)
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def rabbitmq(servers_root: Path) -> Iterator[PrivateRabbitMQ]:
    """The session's broker; each test takes a virtual host of its own: `new_vhost()` or `vhost_url`."""
    yield from _serve(PrivateRabbitMQ, servers_root / "rabbitmq")


@pytest.fixture(scope="session")
def postgresql(servers_root: Path) -> Iterator[PrivatePostgreSQL]:
    """The session's PostgreSQL."""
    yield from _serve(PrivatePostgreSQL, servers_root / "postgresql")


@pytest.fixture(scope="session")
def mariadb(servers_root: Path) -> Iterator[PrivateMariaDB]:
    """The session's MariaDB."""
    yield from _serve(PrivateMariaDB, servers_root / "mariadb")


@pytest.fixture
def vhost_url(rabbitmq: PrivateRabbitMQ) -> str:
    """The AMQP address of a virtual host that no other test uses."""
    return rabbitmq.new_vhost()


@pytest.fixture
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewDatabase]:
    """Makes empty databases of a kind ("sqlite", "postgresql", "mariadb"), dropped when the test ends."""
    count = 0
    with ExitStack() as cleanup:

        def make(kind: str) -> str:
            nonlocal count
            count += 1
            if kind == "sqlite":
                return f"sqlite:///{tmp_path / f'database_{count}.db'}"
            server: PrivatePostgreSQL | PrivateMariaDB = request.getfixturevalue(kind)
            url = server.new_database("test")
            cleanup.callback(server.drop_database, url)
            return url

        yield make


@pytest.fixture(params=KINDS)
def database_kind(request: pytest.FixtureRequest) -> str:
    """Each of the three database engines in turn."""
    return str(request.param)


def _serve(kind: type[Server], directory: Path) -> Iterator[Server]:
    """A running server; where it cannot be had the tests that need it fail, they are never skipped."""
    try:
        server = kind(directory, fast=True).start()
    except ServerError as exc:
        pytest.fail(str(exc), pytrace=False)
    yield server
    server.close()
