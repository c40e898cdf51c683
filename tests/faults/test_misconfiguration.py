"""A mistake of the administrator's is told in one sentence that names the place and the remedy, with its exit code."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from pydantic import SecretStr
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from common.database import Database
from common.dialects import dialect_for
from common.errors import Misconfigured
from common.settings import DatabaseSettings
from common.trust import pki
from common.trust.pki import init_cluster, issue_node
from deploy.servers import PrivateRabbitMQ
from deploy.servers.ports import Ports
from tests.conftest import NewDatabase
from tests.faults.conftest import wait_running, wait_told
from tests.harness import Node
from tests.integration.conftest import SCHEMA, MakeCluster

Done = subprocess.CompletedProcess[str]


@pytest.fixture
def node(new_cluster: MakeCluster) -> Node:
    """A secondary that could run, were it not for the mistake of the test."""
    return new_cluster("sqlite", nodes=("st1", "st2")).nodes["st2"]


def change(node: Node, old: str, new: str) -> None:
    text = node.config.read_text()
    assert old in text
    node.config.write_text(text.replace(old, new))


def expect(done: Done, code: int, *words: str, secrets: tuple[str, ...] = ()) -> str:
    """The exit code, one sentence on stderr that holds these words, no trace, no secret."""
    output = done.stdout + done.stderr
    told = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert done.returncode == code, output
    assert len(told) == 1, output
    assert told[0].startswith("stsync: "), output
    for word in words:
        assert word in told[0]
    assert "Traceback" not in output
    for secret in secrets:
        assert secret not in output
    return told[0]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[broker]", "[broker", ("TOML", "line")),
        ("retry_max_s", "retry_maximum_s", ("broker.retry_maximum_s", "unknown key")),
        ("retry_max_s = 1.0", "retry_max_s = -1", ("broker.retry_max_s", "greater than 0")),
        ("retry_max_s = 1.0", 'queue_type = "quick"', ("broker.queue_type", "quorum")),
        ("[database]\nurl", "[database]\nuri", ("database.url: missing", "database.uri: unknown key")),
        ('[node]\nname = "st2"', '[node]\nname = "st7"', ("st7", "roster", "st1, st2")),
        ('[cluster]\nname = "mft"', '[cluster]\nname = "m f t"', ("cluster.name",)),
    ],
)
@pytest.mark.parametrize("command", ["run", "status", "install"])
def test_faulty_settings(node: Node, command: str, old: str, new: str, words: tuple[str, ...]) -> None:
    """STYLE 12: file and key."""
    change(node, old, new)
    expect(node.command(command, cold=True), 2, str(node.config), *words)


def test_a_missing_settings_file(node: Node) -> None:
    """STYLE 12."""
    node.config.unlink()
    expect(node.command("run"), 2, str(node.config), "no such file", "--config")


def test_an_override_that_cannot_be_read(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """STYLE 12: the environment is named, and not what stands in it."""
    monkeypatch.setenv("STSYNC_BROKER__URLS", "hunter2")
    expect(node.command("status"), 2, "STSYNC_", secrets=("hunter2",))


def garbage(pki: Path) -> None:
    (pki / "st2.key").write_text("no key at all")


def missing(pki: Path) -> None:
    (pki / "st2.key").unlink()


def directory(pki: Path) -> None:
    (pki / "st2.key").unlink()
    (pki / "st2.key").mkdir()


def mismatched(pki: Path) -> None:
    (pki / "st2.key").write_bytes((pki / "st1.key").read_bytes())


def other_cluster_key(pki: Path) -> None:
    init_cluster("mft", pki / "other")
    (pki / "cluster.key").write_bytes((pki / "other/cluster.key").read_bytes())


def anothers(pki: Path) -> None:
    for end in ("key", "pem"):
        (pki / f"st2.{end}").write_bytes((pki / f"st1.{end}").read_bytes())


@pytest.mark.parametrize(
    ("mistake", "file", "word"),
    [
        (garbage, "st2.key", ""),
        (missing, "st2.key", ""),
        (directory, "st2.key", ""),
        (mismatched, "st2.pem", "does not belong"),
        (anothers, "st2.pem", "certificate of node 'st1'"),
        (other_cluster_key, "cluster.key", "is not the private key"),
    ],
)
def test_keys_that_cannot_serve(node: Node, mistake: Callable[[Path], None], file: str, word: str) -> None:
    """TRAPS 34: found at the start, not by other nodes."""
    pki = node.home.parent / "pki"
    mistake(pki)
    expect(node.command("run"), 2, file, word)


def test_an_expired_certificate(node: Node) -> None:
    """TRAPS 34."""
    pki = node.home.parent / "pki"
    reissue(pki, "st2", datetime.now(UTC) - timedelta(days=1))
    expect(node.command("run"), 2, "st2.pem", "expired")


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o666])
@pytest.mark.parametrize("key", ["st2.key", "cluster.key"])
def test_a_private_key_that_others_can_read_is_told(node: Node, key: str, mode: int) -> None:
    """DESIGN §6."""
    path = node.home.parent / "pki" / key
    assert not [one for one in node.status()["warnings"] if "private key" in one]
    path.chmod(mode)
    (told,) = [one for one in node.status()["warnings"] if "private key" in one]
    assert told.endswith(f"pki/{key}")
    assert "chmod 600" in told
    path.chmod(0o640)
    assert not [one for one in node.status()["warnings"] if "private key" in one]


def test_a_certificate_of_another_authority(node: Node) -> None:
    """TRAPS 34: it would be refused by every other node."""
    pki = node.home.parent / "pki"
    init_cluster("mft", pki / "other")
    issue_node(pki / "other", "st2", pki / "other")
    for end in ("key", "pem"):
        (pki / f"st2.{end}").write_bytes((pki / f"other/st2.{end}").read_bytes())
    expect(node.command("run"), 2, "st2.pem", "trust.authorities")


@pytest.mark.parametrize("database_kind", ["postgresql", "mariadb"])
@pytest.mark.parametrize("command", ["run", "status", "install"])
def test_a_wrong_database_password(new_cluster: MakeCluster, database_kind: str, command: str) -> None:
    """TRAPS 29: not retried, as no time heals it."""
    node = new_cluster(database_kind, nodes=("st1", "st2")).nodes["st2"]
    right = re.search(r"://stsync:([^@]+)@", node.url)
    assert right
    change(node, right[1] + "@127", "hunter2@127")
    expect(node.command(command), 2, "127.0.0.1:", "database.url", secrets=("hunter2", right[1]))


@pytest.mark.parametrize("wrong", ["user", "password", "name"])
@pytest.mark.parametrize(("database_kind", "language"), [("postgresql", ""), ("mariadb", ""), ("mariadb", "de_DE")])
def test_a_wrong_database_login(
    new_cluster: MakeCluster, request: pytest.FixtureRequest, database_kind: str, language: str, wrong: str
) -> None:
    """Whatever language the server tells it in."""
    node = new_cluster(database_kind, nodes=("st1", "st2")).nodes["st2"]
    url = make_url(node.url)
    other = {
        "user": url.set(username="nobody"),
        "password": url.set(password="hunter2"),
        "name": url.set(database="nowhere"),
    }
    change(node, node.url, other[wrong].render_as_string(hide_password=False))
    server = request.getfixturevalue(database_kind)
    with speaking(server.admin_url, language) if language else nullcontext():
        expect(node.command("status"), 2, "127.0.0.1:", "database.url", secrets=("hunter2", str(url.password)))


@contextmanager
def speaking(admin_url: str, language: str) -> Iterator[None]:
    """What a MariaDB server tells new connections, it tells in this language."""
    engine = create_engine(admin_url)
    with engine.begin() as connection:
        connection.execute(text(f"SET GLOBAL lc_messages = '{language}'"))
    try:
        yield
    finally:
        with engine.begin() as connection:
            connection.execute(text("SET GLOBAL lc_messages = 'en_US'"))
        engine.dispose()


def no_directory(database: Path) -> str:
    return str(database.parent / "nowhere/st.db")


def a_directory(database: Path) -> str:
    return str(database.parent)


def no_database(database: Path) -> str:
    database.write_text("this is no database, and never was one\n" * 100)
    return str(database)


def lock_unusable(database: Path) -> str:
    lock = Path(f"{database}-stsync.lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()
    return str(database)


@pytest.mark.parametrize(
    ("mistake", "commands", "words"),
    [
        (no_directory, ("run", "status", "install"), ("nowhere/st.db", "does not exist", "database.url")),
        (a_directory, ("run", "status", "install"), ("is a directory", "database.url")),
        (no_database, ("run", "status", "install"), ("is not a database", "database.url")),
        (lock_unusable, ("run", "status"), ("-stsync.lock", "rights")),
    ],
)
def test_an_sqlite_file_that_cannot_serve(
    new_cluster: MakeCluster, mistake: Callable[[Path], str], commands: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """STYLE 10: no time heals it, and the file and the remedy are named."""
    node = new_cluster("sqlite", nodes=("st1", "st2")).nodes["st2"]
    database = Path(node.url.removeprefix("sqlite:///"))
    change(node, node.url, f"sqlite:///{mistake(database)}")
    for command in commands:
        expect(node.command(command), 2, str(database.parent), *words)


@pytest.mark.parametrize("place", ["st.db", "."])
def test_an_sqlite_file_that_may_not_be_written(servers_root: Path, place: str) -> None:
    """STYLE 10: the file, or the directory, where SQLite keeps its log."""
    directory = Path(tempfile.mkdtemp(dir=servers_root))
    directory.chmod(0o777)
    (directory / "st.db").touch(0o666)
    (directory / place).chmod(0o555)
    url = f"sqlite:///{directory}/st.db"
    dialect_for(url)  # loads it: nobody may not read the interpreter's files perhaps
    with nobody(), pytest.raises(Misconfigured, match=r"st\.db.*cannot be written.*rights"):
        Database(DatabaseSettings(url=SecretStr(url)))


@contextmanager
def nobody() -> Iterator[None]:
    """Without the rights of root, which nothing binds."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_an_sqlite_file_that_turned_read_only(node: Node) -> None:
    """STYLE 12: the remedy is named; a service would wait, for it may pass."""
    change(node, node.url, f"sqlite:///file:{node.url.removeprefix('sqlite:///')}?mode=ro&uri=true")
    node.home.joinpath("conf/sync_tables.conf").write_text("unit\n")
    expect(node.command("install"), 2, "readonly", "chmod")


@pytest.mark.parametrize("name", ["st1", "st2"])
def test_a_database_that_an_earlier_version_prepared(new_cluster: MakeCluster, database_kind: str, name: str) -> None:
    """A table that this version needs is not there; `install` makes it, and takes nothing away."""
    node = new_cluster(database_kind, nodes=("st1", "st2")).nodes[name]
    node.execute("INSERT INTO unit VALUES (1, 'one', NULL)", "DROP TABLE stsync_taken")
    for command in ("run", "status"):
        expect(node.command(command), 2, "stsync_taken", "stsync install")
    assert node.command("install").returncode == 0
    assert node.status()["outbox"] == 1


def test_looking_at_the_settings_drops_no_lock(node: Node) -> None:
    """Whoever else has the database open goes on seeing what is written: SQLite's locks are a process's, and any close drops them."""
    with node.engine.connect() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM unit").all()
        Database(node.settings.database)
        connection.rollback()
        assert node.command("status").returncode == 1  # the last one to close it, as far as locks tell, removes the log
        connection.exec_driver_sql("INSERT INTO unit VALUES (1, 'one', NULL)")
        connection.commit()
        code = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM unit').fetchone()[0])"
        seen = subprocess.run(
            [sys.executable, "-c", code, node.url.removeprefix("sqlite:///")], capture_output=True, text=True, check=True
        )
        assert seen.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("oracle://stsync:hunter2@127.0.0.1/st", ("'oracle'", "postgresql+psycopg")),
        ("hunter2", ("database.url", "not a database URL")),
        ("sqlite://", ("database.url", "sqlite:////path/st.db")),
        ("postgresql+psycopg://stsync:hunter2@127.0.0.1:port/st", ("database.url", "not a database URL")),
        ("postgresql+psycopg://stsync:hunter2@127.0.0.1", ("database.url", "names no database")),
        ("mysql+pymysql://stsync:hunter2@127.0.0.1:3306/", ("database.url", "names no database")),
        ("postgresql+psycopg://stsync:hunter2@127.0.0.1/st?nonsense=1", ("database.url", "nonsense")),
        ("mysql+pymysql://stsync:hunter2@127.0.0.1/st?nonsense=1", ("database.url", "nonsense")),
    ],
)
@pytest.mark.parametrize("command", ["run", "status", "install"])
def test_a_database_url_that_is_none(node: Node, command: str, url: str, words: tuple[str, ...]) -> None:
    """STYLE 12."""
    change(node, node.url, url)
    expect(node.command(command), 2, *words, secrets=("hunter2",))


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "mysql+pymysql"])
@pytest.mark.parametrize("command", ["run", "status", "install"])
def test_a_database_that_cannot_be_reached(node: Node, driver: str, command: str) -> None:
    """STYLE 10."""
    ports = Ports(1)
    change(node, node.url, f"{driver}://stsync:hunter2@127.0.0.1:{ports.numbers[0]}/st")
    try:
        done = node.command(command)
    finally:
        ports.release()
    expect(done, 5, f"127.0.0.1:{ports.numbers[0]}/st", "reached", secrets=("hunter2",))


def test_an_unreachable_broker_is_waited_for(node: Node) -> None:
    """TRAPS 25: it says so, keeps trying, and stops in order."""
    ports = Ports(1)
    place = f"127.0.0.1:{ports.numbers[0]}"
    node.config.write_text(
        re.sub(r'urls = \["[^"]*"\]', f'urls = ["amqp://stsync:hunter2@{place}/"]', node.config.read_text())
    )
    try:
        node.start()
        wait_told(lambda: place in node.log and '"state": "down"' in node.log, lambda: node.log)
        assert node.process is not None
        assert node.process.poll() is None
        assert node.stop() == 0
    finally:
        ports.release()
    assert "Traceback" not in node.log
    assert "hunter2" not in node.log
    for line in node.log.splitlines():
        assert line.startswith("{"), line


@pytest.mark.parametrize("name", ["st1", "st2"])
def test_a_wrong_broker_password(new_cluster: MakeCluster, rabbitmq: PrivateRabbitMQ, name: str) -> None:
    """TRAPS 25: no blind retry."""
    url = rabbitmq.new_vhost().replace(rabbitmq.password, "hunter2")
    node = new_cluster("sqlite", broker_url=url).nodes[name]
    expect(node.command("run"), 4, f"127.0.0.1:{rabbitmq.port}", "broker.urls", secrets=("hunter2",))


@pytest.mark.parametrize("name", ["st1", "st2"])
def test_a_missing_virtual_host(new_cluster: MakeCluster, rabbitmq: PrivateRabbitMQ, name: str) -> None:
    """TRAPS 25."""
    node = new_cluster("sqlite", broker_url=rabbitmq.url("nowhere")).nodes[name]
    expect(
        node.command("run"),
        4,
        f"127.0.0.1:{rabbitmq.port}",
        "nowhere",
        "broker.urls",
        secrets=(rabbitmq.password,),
    )


def test_a_topology_that_nobody_declared(new_cluster: MakeCluster, rabbitmq: PrivateRabbitMQ) -> None:
    """TRAPS 18: `declare = false`, and no administrator has imported the definitions."""
    node = new_cluster("sqlite").nodes["st2"]
    change(node, "retry_max_s = 1.0", "retry_max_s = 1.0\ndeclare = false")
    expect(node.command("run"), 4, f"127.0.0.1:{rabbitmq.port}", "stsync broker definitions")


@pytest.mark.parametrize(
    "command", [["run"], ["status"], ["status", "--json"], ["quarantine", "list"], ["quarantine", "retry"]]
)
def test_not_installed(new_cluster: MakeCluster, database_kind: str, new_database: NewDatabase, command: list[str]) -> None:
    """INTERFACE: 2, on every database."""
    node = new_cluster("sqlite", nodes=("st1",)).nodes["st1"]
    change(node, node.url, new_database(database_kind))
    expect(node.command(*command), 2, "stsync install")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nosuch", ("nosuch", "does not exist")),
        ("keyless", ("keyless", "primary key")),
        ("account skip=note", ("skip", "where, exclude, requires")),
        ("account exclude=nosuch", ("account", "nosuch")),
        ('param where="islocal = 0', ("quote",)),
    ],
)
@pytest.mark.parametrize("command", ["install", "run"])
def test_a_faulty_list(new_cluster: MakeCluster, command: str, line: str, words: tuple[str, ...]) -> None:
    """TRAPS 4: FILE:LINE: reason."""
    cluster = new_cluster("sqlite", nodes=("st1", "st2"), schema=(*SCHEMA, "CREATE TABLE keyless (a INT)"))
    node = cluster.nodes["st2"]
    path = node.home / "conf/sync_tables.conf"
    path.write_text(f"# the tables\nunit\n{line}\n")
    expect(node.command(command), 2, f"stsync: {path}:3: ", *words)


def test_a_second_service_on_one_database(new_cluster: MakeCluster, database_kind: str) -> None:
    """INTERFACE: refused, 3; the first goes on."""
    node = new_cluster(database_kind, nodes=("st1", "st2")).nodes["st2"]
    node.start()
    wait_running(node)
    expect(node.command("run"), 3, "another `stsync run`", "stop it first")
    wait_running(node)
    assert node.stop() == 0


def test_the_database_of_another_node(new_cluster: MakeCluster, database_kind: str) -> None:
    """A copied settings file or a cloned database; what captures there is not touched, though this node's list is shorter."""
    cluster = new_cluster(database_kind, nodes=("st1", "st2"))
    node, primary = cluster.nodes["st2"], cluster.primary
    change(node, node.url, primary.url)
    (node.home / "conf" / "sync_tables.conf").write_text("unit\n")
    for command in ("run", "status", "install"):
        expect(node.command(command), 2, "'st1'", "'st2'", "database.url", "node.name")
    primary.execute("INSERT INTO account (id, name) VALUES (1, 'a')")
    assert primary.rows("SELECT table_name FROM stsync_outbox") == [("account",)]


def reissue(pki: Path, node: str, end: datetime) -> None:
    """The node's certificate once more, with another end."""
    issued = x509.load_pem_x509_certificate((pki / f"{node}.pem").read_bytes())
    key = load_pem_private_key((pki / "ca.key").read_bytes(), None)
    draft = (
        x509.CertificateBuilder()
        .subject_name(issued.subject)
        .issuer_name(issued.issuer)
        .public_key(issued.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=10))
        .not_valid_after(end)
    )
    for extension in issued.extensions:
        draft = draft.add_extension(extension.value, extension.critical)
    (pki / f"{node}.pem").write_bytes(draft.sign(key, None).public_bytes(Encoding.PEM))  # type: ignore[arg-type]


def test_a_certificate_that_expires_while_the_primary_runs_stops_nothing_for_good(
    new_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRAPS 34: it ends with a sentence, writers go on, and with a new certificate so does everything; `status` warns before."""
    with monkeypatch.context() as short:
        short.setattr(pki, "NODE_DAYS", 8 / 86_400)
        cluster = new_cluster("sqlite", nodes=("st1", "st2"))
    primary, folder = cluster.primary, cluster.primary.home.parent / "pki"
    renew(folder, "st2")
    cluster.start()
    wait_running(*cluster.nodes.values())
    primary.execute("INSERT INTO unit VALUES (1, 'before', NULL)")
    cluster.wait_equal()
    cluster.nodes["st2"].kill()
    primary.execute("INSERT INTO unit VALUES (2, 'not fetched before', NULL)")
    wait_told(lambda: "expire" in str(primary.status()["warnings"]), primary.status, 20)

    def ended() -> bool:
        primary.execute("UPDATE unit SET name = 'u' || random() WHERE id = 1")
        return primary.process is not None and primary.process.poll() is not None

    wait_told(ended, lambda: primary.log[-2000:], 30)
    assert primary.process is not None
    assert primary.process.poll() == 2
    assert "pki issue --node st1" in primary.log
    assert "Traceback" not in primary.log
    renew(folder, "st1")
    for node in cluster.nodes.values():
        node.start()
    cluster.wait_equal()
    assert sum(cluster.nodes["st2"].status()["refused"].get(kind, 0) for kind in ("signature", "seal", "epoch")) == 0


def renew(folder: Path, node: str) -> None:
    for kind in ("key", "pem"):
        (folder / f"{node}.{kind}").unlink()
    pki.issue_node(folder, node, folder)
