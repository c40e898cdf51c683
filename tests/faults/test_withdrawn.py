"""Rights that are missing, or withdrawn while a service runs: it is told where and what to do; once they are back nothing is lost."""

import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from sqlalchemy.engine import URL, make_url

from common.bookkeeping import tables_of
from deploy.servers import PrivateMariaDB, PrivatePostgreSQL, PrivateRabbitMQ
from tests.conftest import NewDatabase
from tests.faults.conftest import assert_whole, edit_here, wait_running, wait_told
from tests.faults.test_broker_loss import BLOCKED_S, drained, saves
from tests.faults.test_misconfiguration import Done, change, expect
from tests.faults.test_missing_rights import administer
from tests.faults.test_outages import between
from tests.harness import STSYNC, Cluster, Node
from tests.integration.conftest import MakeCluster

SERVERS = ("postgresql", "mariadb")
TABLES = ("unit", "account", "login", "param", "audit")
DENIED = {"postgresql": "permission denied for table {table}", "mariadb": "{right} command denied"}


@contextmanager
def without_rights(path: Path, mode: int = 0) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)


def as_anybody(node: Node, *arguments: str) -> Done:
    """The command as a user whom the rights of files bind: root without the privileges that make it root, for another user may not
    read the interpreter's files perhaps."""
    words = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    words += [*STSYNC, *arguments, "--config", str(node.config)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def node(new_cluster: MakeCluster) -> Node:
    """A secondary that could run, were it not for the rights of its files."""
    return new_cluster("sqlite", nodes=("st1", "st2")).nodes["st2"]


@pytest.mark.parametrize("file", ["st2.key", "st2.pem", "ca.pem", "cluster.key", "."])
def test_a_key_or_certificate_that_may_not_be_read(node: Node, file: str) -> None:
    """STYLE 10, TRAPS 34: found at the start; the file, the cause and the remedy, and nothing of a key."""
    pki = node.home.parent / "pki"
    inside = [line for line in (pki / "st2.key").read_text().splitlines() if "-----" not in line]
    named = "pki/st2.key" if file == "." else f"pki/{file}"
    with without_rights(pki / file):
        expect(as_anybody(node, "run"), 2, f"{named}: ", "Permission denied", "rights", secrets=tuple(inside))


@pytest.mark.parametrize("command", ["run", "status", "install"])
def test_settings_that_may_not_be_read(node: Node, command: str) -> None:
    """STYLE 10: the file, the cause and the remedy."""
    with without_rights(node.config):
        expect(as_anybody(node, command), 2, str(node.config), "Permission denied", "rights")


@pytest.mark.parametrize("command", ["run", "install"])
def test_a_list_that_may_not_be_read(node: Node, command: str) -> None:
    """STYLE 10: the file, the cause and the remedy."""
    path = node.home / "conf/sync_tables.conf"
    with without_rights(path):
        expect(as_anybody(node, command), 2, str(path), "Permission denied", "rights")


@pytest.mark.parametrize(
    ("name", "mode", "command"),
    [
        ("st.db", 0o000, "run"),
        ("st.db", 0o400, "status"),
        ("st.db", 0o200, "install"),
        (".", 0o000, "status"),
        (".", 0o500, "run"),
        ("st.db-stsync.lock", 0o000, "run"),
        ("st.db-wal", 0o000, "run"),
        ("st.db-shm", 0o000, "status"),
    ],
)
def test_a_database_file_that_may_not_be_used(node: Node, tmp_path: Path, name: str, mode: int, command: str) -> None:
    """STYLE 10: SQLite's file, its directory, or what stands beside it, as a run by another user may have left it."""
    node.engine.dispose()
    (place := tmp_path / "data").mkdir()
    path = Path(node.url.removeprefix("sqlite:///")).rename(place / "st.db")
    change(node, node.url, f"sqlite:///{path}")
    node.url, node._engine = f"sqlite:///{path}", None
    with node.engine.connect() as connection:  # as long as anybody has it open, its log stands beside it
        connection.exec_driver_sql("SELECT 1 FROM unit").all()
        (place / name).touch()
        with without_rights(place / name, mode):
            expect(as_anybody(node, command), 2, str(path), "rights")


class Users:
    """Makes databases that belong each to a user of its own, from whom a test may take what it has."""

    def __init__(self, request: pytest.FixtureRequest, new_database: NewDatabase) -> None:
        self._request, self._new_database = request, new_database
        self._made = 0
        self._run = secrets.token_hex(4)

    def __call__(self, kind: str) -> str:
        url = make_url(self._new_database(kind))
        if kind == "sqlite":
            return url.render_as_string(hide_password=False)
        self._made += 1
        made = url.set(username=f"user_{self._run}_{self._made}", password=secrets.token_urlsafe(18))
        if kind == "postgresql":
            self._administer(
                made,
                f"CREATE ROLE {made.username} LOGIN PASSWORD '{made.password}'",
                f'ALTER DATABASE "{made.database}" OWNER TO {made.username}',
            )
        else:  # what is granted on a whole database cannot be taken from a table
            tables = [*TABLES, *(table.name for table in tables_of("mariadb"))]
            self._administer(
                made,
                f"CREATE USER {_name(made)} IDENTIFIED BY '{made.password}'",
                f"GRANT SELECT, DELETE, CREATE, DROP, INDEX, REFERENCES, TRIGGER ON `{made.database}`.* TO {_name(made)}",
                *(f"GRANT INSERT, UPDATE, CREATE ON `{made.database}`.{one} TO {_name(made)}" for one in tables),
            )
        return made.render_as_string(hide_password=False)

    @contextmanager
    def withdrawn(self, node: Node, right: str, table: str) -> Iterator[None]:
        """The right is taken from the node's user, and given back at the end."""
        url = make_url(node.url)
        what = f"{right} ON {table}" if _postgresql(url) else f"{right} ON `{url.database}`.{table}"
        self._administer(url, f"REVOKE {what} FROM {_name(url)}")
        try:
            yield
        finally:
            self._administer(url, f"GRANT {what} TO {_name(url)}")

    def change_password(self, node: Node) -> tuple[str, str]:
        """Other programs know the new one, the service does not, and all connections are cut; the old and the new one."""
        old = make_url(node.url)
        new = old.set(password=secrets.token_urlsafe(18))
        node.engine.dispose()
        node.url, node._engine = new.render_as_string(hide_password=False), None
        if _postgresql(old):
            change_ = f"ALTER ROLE {_name(old)} PASSWORD '{new.password}'"
            cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{old.username}'"
        else:
            change_ = f"ALTER USER {_name(old)} IDENTIFIED BY '{new.password}'"
            cut = f"KILL USER {_name(old)}"
        self._administer(old, change_, cut)
        return str(old.password), str(new.password)

    def _administer(self, of: URL, *statements: str) -> None:
        """In the database itself, as the server's administrator."""
        server: PrivatePostgreSQL | PrivateMariaDB = self._request.getfixturevalue(
            "postgresql" if _postgresql(of) else "mariadb"
        )
        url = make_url(server.admin_url).set(database=of.database)
        administer(url.render_as_string(hide_password=False), *statements)


def _postgresql(url: URL) -> bool:
    return url.get_backend_name() == "postgresql"


def _name(url: URL) -> str:
    return str(url.username) if _postgresql(url) else f"'{url.username}'@'127.0.0.1'"


@pytest.fixture
def new_database(request: pytest.FixtureRequest, new_database: NewDatabase) -> Users:
    """As ever, but each database of a server has a user of its own."""
    return Users(request, new_database)


@pytest.fixture
def running(new_cluster: MakeCluster, database_kind: str) -> Cluster:
    """A cluster of three with one change done; every node consumes."""
    return started(new_cluster(database_kind, settings="[replay]\nretry_quarantine_s = 0.5\n"))


def started(cluster: Cluster) -> Cluster:
    cluster.start()
    wait_running(*cluster.nodes.values())
    saves(cluster.primary, 0, 1)
    cluster.wait_equal()
    return cluster


def ended(node: Node, code: int, *words: str, secrets: tuple[str, ...]) -> None:
    """The service ended by itself with this code and one sentence that holds these words; no trace, no secret."""
    process = node.process
    assert process is not None
    wait_told(lambda: process.poll() is not None, lambda: node.words[-3000:])
    (told,) = [line for line in node.words.splitlines() if not line.startswith("{")]
    assert process.poll() == code, told
    assert told.startswith("stsync: "), told
    for word in words:
        assert word in told
    assert "Traceback" not in node.words
    for secret in secrets:
        assert secret not in node.words


def reasons(cluster: Cluster, node: Node) -> list[str]:
    """Why a secondary is not in sync, by its own status and the primary's; of the primary, why none of them is."""
    shown = cluster.primary.status()["nodes"]
    if node is not cluster.primary:
        shown = [node.status(), *(one for one in shown if one["name"] == node.name)]
    assert all(one["state"] in ("catching_up", "in_sync") for one in shown), shown
    return [str(one["reason"]) if one["state"] == "catching_up" else "in_sync" for one in shown]


def untold(node: Node) -> None:
    """Once it goes on, its status warns of nothing."""
    wait_told(lambda: not node.status()["warnings"], node.status, 8)


def told(cluster: Cluster, node: Node, word: str) -> None:
    """The service goes on, and its log, its own status and, of a secondary, the primary's say why it does not come any further."""
    wait_told(lambda: word in node.words, lambda: node.words[-3000:])
    wait_told(lambda: any(word in one for one in node.status()["warnings"]), node.status, 8)
    wait_told(lambda: all(word in one for one in reasons(cluster, node)), lambda: reasons(cluster, node), 8)
    assert {one.command("status").returncode for one in (node, cluster.primary)} == {1}
    assert node.process is not None
    assert node.process.poll() is None
    assert "Traceback" not in node.words


@pytest.mark.parametrize("database_kind", SERVERS)
@pytest.mark.parametrize("name", ["st1", "st2"])
def test_a_database_password_that_changes_ends_the_service(running: Cluster, new_database: Users, name: str) -> None:
    """INTERFACE, exit 2: no time heals it; with the new password in its settings it goes on where it was."""
    primary, node, other = running.primary, running.nodes[name], running.nodes["st3"]
    old, new = new_database.change_password(node)
    ended(node, 2, "127.0.0.1:", "database.url", secrets=(old, new))
    assert node.command("status").returncode == 2
    assert saves(primary, 100, 20).slowest_s < BLOCKED_S
    if node is not primary:
        wait_told(lambda: drained(primary) and other.sequence() == primary.sequence(), lambda: other.words[-2000:])
    change(node, old, new)
    node.start()
    assert_whole(running)


@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_what_is_over_hides_nothing_that_is_not(
    new_cluster: MakeCluster, new_database: Users, vhost_url: str, database_kind: str
) -> None:
    """DOMAIN §2: a secondary that is behind and has its rights back, but no broker, says that of the broker."""
    with ExitStack() as stack:
        _, url = stack.enter_context(between(vhost_url))
        cluster = started(new_cluster(database_kind, broker_url=url, nodes=("st1", "st2")))
        node = cluster.nodes["st2"]
        node.kill()
        node.execute(
            "UPDATE stsync_node SET head_sequence = head_sequence + 1"
        )  # as a heartbeat tells of a batch that is not here
        stack.close()  # and with it the broker, for these nodes
        with new_database.withdrawn(node, "UPDATE", "stsync_node"):
            node.start()
            wait_told(lambda: any("stsync_node" in one for one in node.status()["warnings"]), node.status)
        wait_told(lambda: "broker" in str(node.status()["reason"]), node.status, 30)
        assert not any("stsync_node" in one for one in node.status()["warnings"])


RIGHTS = [("INSERT", "unit"), ("UPDATE", "stsync_node")]


@pytest.mark.parametrize("database_kind", SERVERS)
@pytest.mark.parametrize(("right", "table"), RIGHTS)
def test_a_right_that_a_secondary_loses_keeps_it_waiting_alone(
    running: Cluster, new_database: Users, right: str, table: str
) -> None:
    """TRAPS 29: it is not the changes' fault: none is quarantined or passed over; the log says what is denied."""
    primary, node, other = running.primary, running.nodes["st2"], running.nodes["st3"]
    stood = node.sequence()
    with new_database.withdrawn(node, right, table):
        assert saves(primary, 100, 20).slowest_s < BLOCKED_S
        told(running, node, DENIED[running.kind].format(right=right, table=table))
        wait_told(lambda: drained(primary) and other.sequence() == primary.sequence(), lambda: other.words[-2000:])
        assert node.sequence() == stood
        assert node.rows("SELECT id FROM unit") == [(0,)]
    assert_whole(running)
    untold(node)


@pytest.mark.parametrize("database_kind", SERVERS)
def test_a_quarantine_that_may_not_be_written_loses_no_change(running: Cluster, new_database: Users) -> None:
    """TRAPS 29: what cannot be set aside is not passed over either."""
    primary, node = running.primary, running.nodes["st2"]
    edit_here(node, "INSERT INTO unit VALUES (999, 'unit 105', NULL)")
    stood = node.sequence()
    with new_database.withdrawn(node, "INSERT", "stsync_quarantine"):
        saves(primary, 105, 1)
        told(running, node, DENIED[running.kind].format(right="INSERT", table="stsync_quarantine"))
        saves(primary, 106, 5)
        assert node.sequence() == stood
    wait_told(lambda: node.sequence() == primary.sequence(), lambda: node.words[-3000:])
    assert node.rows("SELECT count(*) FROM stsync_quarantine") == [(1,)]
    edit_here(node, "DELETE FROM unit WHERE id = 999")
    wait_told(lambda: not node.rows("SELECT 1 FROM stsync_quarantine"), lambda: node.words[-3000:])
    assert_whole(running)


@pytest.mark.parametrize("database_kind", SERVERS)
def test_a_journal_that_may_not_be_written_stops_no_writer(running: Cluster, new_database: Users) -> None:
    """TRAPS 8, 29: what is saved meanwhile stands in the outbox, and goes out when the right is back."""
    primary = running.primary
    stood = primary.sequence()
    with new_database.withdrawn(primary, "INSERT", "stsync_journal"):
        assert saves(primary, 100, 50).slowest_s < BLOCKED_S
        told(running, primary, DENIED[running.kind].format(right="INSERT", table="stsync_journal"))
        assert primary.status()["outbox"] == 50
        assert primary.sequence() == stood
    assert_whole(running)
    untold(primary)


class Guests:
    """A broker's user of one node's own, in the virtual host of the cluster."""

    def __init__(self, broker: PrivateRabbitMQ, url: str) -> None:
        self.broker = broker
        self.vhost = url.rpartition("/")[2]
        self.name, self.password = f"guest_{secrets.token_hex(4)}", secrets.token_urlsafe(18)
        self.url = url.replace(f"{broker.user}:{broker.password}@", f"{self.name}:{self.password}@")
        self.add()

    def add(self) -> None:
        """With its password and all rights, whatever it has now."""
        rights = ", ".join(['<<".*">>'] * 3)
        self._do(
            f'catch rabbit_auth_backend_internal:add_user({self._user}, <<"{self.password}">>, {self._by})',
            f'rabbit_auth_backend_internal:change_password({self._user}, <<"{self.password}">>, {self._by})',
            f'rabbit_auth_backend_internal:set_permissions({self._user}, <<"{self.vhost}">>, {rights}, {self._by})',
        )

    def delete(self) -> None:
        self._do(f"rabbit_auth_backend_internal:delete_user({self._user}, {self._by})")

    def change_password(self) -> None:
        """And its connections are cut, which the broker itself leaves open."""
        self._do(
            f'rabbit_auth_backend_internal:change_password({self._user}, <<"another">>, {self._by})',
            f'rabbit_networking:close_all_user_connections({self._user}, <<"password changed">>)',
        )

    def clear_rights(self) -> None:
        self._do(f'rabbit_auth_backend_internal:clear_permissions({self._user}, <<"{self.vhost}">>, {self._by})')

    @property
    def _user(self) -> str:
        return f'<<"{self.name}">>'

    @property
    def _by(self) -> str:
        return f'<<"{self.broker.user}">>'

    def _do(self, *calls: str) -> None:
        self.broker.ctl("eval", ", ".join([*calls, "ok."]))


@pytest.mark.parametrize(
    ("name", "withdraw"),
    [
        ("st1", Guests.delete),
        ("st2", Guests.delete),
        ("st2", Guests.change_password),
        ("st1", Guests.clear_rights),
        ("st2", Guests.clear_rights),
    ],
)
def test_a_broker_that_turns_its_user_away_ends_the_service(
    new_cluster: MakeCluster, rabbitmq: PrivateRabbitMQ, name: str, withdraw: Callable[[Guests], None]
) -> None:
    """TRAPS 25, INTERFACE, exit 4: no blind retry; writers go on, and all arrives once the broker takes the node again."""
    url = rabbitmq.new_vhost()
    cluster = new_cluster("sqlite", broker_url=url)
    primary, node, other = cluster.primary, cluster.nodes[name], cluster.nodes["st3"]
    guest = Guests(rabbitmq, url)
    change(node, url, guest.url)
    started(cluster)
    withdraw(guest)
    assert saves(primary, 100, 20).slowest_s < BLOCKED_S
    ended(node, 4, f"127.0.0.1:{rabbitmq.port}", guest.name, "broker.urls", secrets=(guest.password,))
    assert saves(primary, 200, 20).slowest_s < BLOCKED_S
    if node is not primary:
        wait_told(lambda: drained(primary) and other.sequence() == primary.sequence(), lambda: other.words[-2000:])
    guest.add()
    node.start()
    assert_whole(cluster)
