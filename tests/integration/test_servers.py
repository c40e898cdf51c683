"""The private servers keep their promises: data survive a crash, two stand side by side, nothing is left."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pika
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from deploy.servers import PrivateMariaDB, PrivatePostgreSQL, PrivateRabbitMQ, ServerError
from deploy.servers.base import PrivateServer
from deploy.servers.processes import descendants, is_running

Databases = [PrivatePostgreSQL, PrivateMariaDB]
DatabaseKind = type[PrivatePostgreSQL] | type[PrivateMariaDB]


def write(url: str) -> None:
    with create_engine(url, poolclass=NullPool).begin() as link:
        link.execute(text("CREATE TABLE kept (id integer PRIMARY KEY, name varchar(20))"))
        link.execute(text("INSERT INTO kept VALUES (1, 'Grüße')"))


def read(url: str) -> list[tuple[object, ...]]:
    with create_engine(url, poolclass=NullPool).connect() as link:
        return [tuple(row) for row in link.execute(text("SELECT id, name FROM kept"))]


def publish(url: str) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.queue_declare("kept", durable=True, arguments={"x-queue-type": "quorum"})
    channel.confirm_delivery()
    channel.basic_publish("", "kept", b"held", pika.BasicProperties(delivery_mode=2), mandatory=True)
    connection.close()


def fetch(url: str) -> bytes:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    _, _, body = connection.channel().basic_get("kept", auto_ack=True)
    connection.close()
    return bytes(body or b"")


def owners(pids: list[int]) -> set[int]:
    """Whose these processes are; a session's or a worker's own may have ended by now."""
    found = set()
    for pid in pids:
        with suppress(FileNotFoundError):
            found.add(Path(f"/proc/{pid}").stat().st_uid)
    return found


def family(server: PrivateServer) -> list[int]:
    return [one for pid in server.pids for one in (pid, *descendants(pid))]


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_running, pids))


@pytest.mark.parametrize("kind", Databases)
@pytest.mark.parametrize("fast", [False, True], ids=["durable", "fast"])
def test_a_database_keeps_what_was_committed_when_it_is_killed(kind: DatabaseKind, fast: bool, servers_root: Path) -> None:
    with kind(servers_root / "crash", fast=fast) as server:
        url, pids = server.new_database(), family(server)
        write(url)
        server.kill()
        assert gone(pids)
        server.start()
        assert read(url) == [(1, "Grüße")]
        server.stop()
        server.start()
        assert read(url) == [(1, "Grüße")]


@pytest.mark.parametrize("kind", Databases)
def test_two_databases_stand_side_by_side_and_nothing_is_left_of_either(kind: DatabaseKind, servers_root: Path) -> None:
    one, two = kind(servers_root / "one", fast=True), kind(servers_root / "two", fast=True)
    with one, two:
        first, second = one.new_database(), two.new_database()
        write(first)
        write(second)
        pids = family(one) + family(two)
        assert one.port != two.port
        assert owners(pids) == {one.owner.uid}
    assert gone(pids)
    assert not one.directory.exists()
    assert not two.directory.exists()


@pytest.mark.parametrize("kind", Databases)
def test_a_dropped_database_is_gone_though_a_connection_holds_it(kind: DatabaseKind, servers_root: Path) -> None:
    with kind(servers_root / "drop", fast=True) as server:
        url = server.new_database()
        write(url)
        engine = create_engine(url)
        holder = engine.connect()
        holder.execute(text("SELECT * FROM kept"))
        server.drop_database(url)
        holder.invalidate()
        engine.dispose()
        assert server.new_database() != url


def test_rabbitmq_keeps_what_it_confirmed_when_it_is_killed_and_a_second_one_is_not_touched(
    servers_root: Path,
) -> None:
    """TRAPS 20."""
    with PrivateRabbitMQ(servers_root / "r1", fast=True) as one, PrivateRabbitMQ(servers_root / "r2") as two:
        urls = [one.new_vhost(), two.new_vhost()]
        pids, other = family(one), two.pid
        publish(urls[0])
        publish(urls[1])
        time.sleep(2)  # until the broker has saved that the queue exists
        one.kill()
        assert gone(pids)
        one.start()
        assert two.pid == other
        assert fetch(urls[0]) == b"held"
        assert fetch(urls[1]) == b"held"
        assert "guest" not in one.ctl("list_users")
        assert Path(f"/proc/{one.pid}/comm").read_text().startswith("beam")
        pids = family(one) + family(two)
    assert gone(pids)
    assert not one.directory.exists()
    assert not two.directory.exists()


def test_passwords_stand_in_no_command_line(
    rabbitmq: PrivateRabbitMQ, postgresql: PrivatePostgreSQL, mariadb: PrivateMariaDB
) -> None:
    servers: list[PrivateServer] = [rabbitmq, postgresql, mariadb]
    for server in servers:
        for pid in family(server):
            assert server.password not in command_line(pid)


def command_line(pid: int) -> str:
    """As every user of the machine may read it; "" of a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def test_virtual_hosts_are_each_of_their_own(rabbitmq: PrivateRabbitMQ) -> None:
    urls = {rabbitmq.new_vhost() for _ in range(30)}
    assert len(urls) == 30
    publish(sorted(urls)[0])


PROGRAM = """
import sys, threading, time
from pathlib import Path
from deploy.servers import PrivateMariaDB, PrivatePostgreSQL
server = {kind}(Path({directory!r}), fast=True)
starter = threading.Thread(target=server.start)
starter.start(); starter.join()
print(server.pid, flush=True)
time.sleep({seconds})
"""


def started(kind: str, directory: Path, seconds: float) -> tuple["subprocess.Popen[str]", int]:
    program = PROGRAM.format(kind=kind, directory=str(directory), seconds=seconds)
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=root)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.stdout.close()
    return process, pid


@pytest.mark.parametrize("kind", ["PrivatePostgreSQL", "PrivateMariaDB"])
def test_servers_die_with_a_killed_program_though_a_thread_started_them(kind: str, servers_root: Path) -> None:
    process, pid = started(kind, servers_root / f"orphan-{kind}", 60)
    pids = [pid, *descendants(pid)]
    time.sleep(0.2)
    assert is_running(pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert gone(pids)


def test_a_program_that_ends_leaves_neither_process_nor_file(servers_root: Path) -> None:
    process, pid = started("PrivateMariaDB", servers_root / "ends", 0)
    assert process.wait(30) == 0
    assert gone([pid])
    assert not (servers_root / "ends").exists()


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(ServerError, match="not empty"):
        PrivateMariaDB(tmp_path)
    assert (tmp_path / "precious").exists()


def test_a_failed_start_says_why_and_leaves_no_process(servers_root: Path) -> None:
    server = PrivatePostgreSQL(servers_root / "broken", fast=True)
    server.start()
    server.stop()
    (server.directory / "data" / "PG_VERSION").unlink()
    with pytest.raises(ServerError, match=r"postgres .*PG_VERSION|postgres ended"):
        server.start()
    assert server.pids == ()
    server.close()


def test_commands_to_a_stopped_broker_are_refused(servers_root: Path) -> None:
    server = PrivateRabbitMQ(servers_root / "stopped")
    with pytest.raises(ServerError, match="does not run"):
        server.ctl("status")
    server.close()
