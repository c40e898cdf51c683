"""A private RabbitMQ without the package's wrapper, which switches users and writes system paths."""

import secrets
import shutil
import socket
from pathlib import Path
from typing import ClassVar

from deploy.servers.base import START_SECONDS, PrivateServer
from deploy.servers.processes import environment, program, run

_FOLDER = "/usr/lib/rabbitmq/bin"
_POOL = 25
_QUIET_SCHEDULERS = "+sbwt none +sbwtdcpu none +sbwtdio none +S 2:2 +A 16 -kernel inet_dist_use_interface {127,0,0,1}"

# Each write to the quorum queues' log goes to the disk by itself (O_SYNC), instead of by a second call: 0.3 ms of a message's way.
_ADVANCED = "[{ra, [{wal_write_strategy, o_sync}]}]."


class PrivateRabbitMQ(PrivateServer):
    """RabbitMQ with its own cookie, node name, epmd and paths; its only user is `stsync`: no guest.

    RabbitMQ 3.10 saves what it knows of a new quorum queue late: one declared within half a second of `kill`
    comes back empty and without a leader, for ever. A test that means another fault waits two seconds first.
    """

    title = "RabbitMQ"
    system_user = "rabbitmq"
    port_count: ClassVar[int] = 3

    def __init__(self, directory: Path, *, fast: bool = False, keep: bool = False) -> None:
        self._server = program("rabbitmq-server", _FOLDER)
        self._rabbitmqctl = program("rabbitmqctl", _FOLDER)
        self._epmd = program("epmd")
        super().__init__(directory, fast=fast, keep=keep)
        self.node = f"stsync-{secrets.token_hex(4)}@localhost"
        self._vhosts = 0
        self._pool: list[str] = []

    def url(self, vhost: str = "%2F") -> str:
        """The AMQP address of a virtual host (percent-encoded), by default of `/`."""
        return f"amqp://{self.user}:{self.password}@127.0.0.1:{self.port}/{vhost}"

    def new_vhost(self) -> str:
        """The AMQP address of a new virtual host; made in batches, since a command costs a second."""
        if not self._pool:
            names = [f"v{self._vhosts + number}" for number in range(_POOL)]
            self._vhosts += _POOL
            self._create(names)
            self._pool = names[::-1]
        return self.url(self._pool.pop())

    def wipe(self) -> None:
        """Stop it and delete everything it keeps: it starts as an empty one, with its user and the virtual host `/`."""
        self.stop()
        shutil.rmtree(self.directory / "mnesia")
        self.owner.make(self.directory / "mnesia")
        self._pool.clear()

    def ctl(self, *words: str, seconds: float = 60) -> str:
        """Run `rabbitmqctl` on this broker and return what it printed."""
        _ = self.pid  # a command to a dead node would start a stray epmd
        return run(
            [str(self._rabbitmqctl), "-q", "-n", self.node, *words],
            self.owner,
            self._env(),
            self.directory,
            seconds,
        )

    def _create(self, names: list[str]) -> None:
        listed = ",".join(f'<<"{name}">>' for name in names)
        user, rights = f'<<"{self.user}">>', ", ".join(['<<".*">>'] * 3)
        grant = f"rabbit_auth_backend_internal:set_permissions({user}, V, {rights}, {user})"
        self.ctl("eval", f"[begin rabbit_vhost:add(V, {user}), {grant} end || V <- [{listed}]], ok.")

    def _prepare(self) -> None:
        for name in ("mnesia", "log", "plugins"):
            self.owner.make(self.directory / name)
        lines = [
            f"listeners.tcp.default = 127.0.0.1:{self.port}",
            f"default_user = {self.user}",
            f"default_pass = {self.password}",
            "loopback_users = none",
            "log.file.level = info",
            *(["raft.wal_max_size_bytes = 33554432"] if self.fast else []),
        ]
        self.owner.write(self.directory / "rabbitmq.conf", "\n".join(lines) + "\n")
        self.owner.write(self.directory / "advanced.config", f"{_ADVANCED}\n")
        self.owner.write(self.directory / "enabled_plugins", "[].\n")
        self.owner.write(self.directory / ".erlang.cookie", secrets.token_hex(24), 0o400)

    def _launch(self) -> None:
        epmd_port = self._ports.numbers[2]
        epmd = self._spawn([str(self._epmd), "-port", str(epmd_port), "-address", "127.0.0.1"], self._env(), "epmd.log")
        epmd.wait_until(lambda: _answers(epmd_port), 10)
        broker = self._spawn([str(self._server)], self._env(), "console.log")
        broker.wait_until(self._serves, START_SECONDS)

    def _serves(self) -> bool:
        """Whether the broker answers a protocol header with its Connection.Start."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as link:
                link.sendall(b"AMQP\x00\x00\x09\x01")
                return link.recv(1) == b"\x01"
        except OSError:
            return False

    def _env(self) -> dict[str, str]:
        where = self.directory
        return environment(
            where,
            ERL_EPMD_PORT=str(self._ports.numbers[2]),
            ERL_EPMD_ADDRESS="127.0.0.1",
            ERL_CRASH_DUMP_SECONDS="0",
            RUNNING_UNDER_SYSTEMD="true",  # the start script then becomes the server, not its parent
            RABBITMQ_NODENAME=self.node,
            RABBITMQ_NODE_PORT=str(self.port),
            RABBITMQ_NODE_IP_ADDRESS="127.0.0.1",
            RABBITMQ_DIST_PORT=str(self._ports.numbers[1]),
            RABBITMQ_MNESIA_BASE=str(where / "mnesia"),
            RABBITMQ_LOG_BASE=str(where / "log"),
            RABBITMQ_CONF_ENV_FILE="/dev/null",
            RABBITMQ_CONFIG_FILE=str(where / "rabbitmq.conf"),
            RABBITMQ_ADVANCED_CONFIG_FILE=str(where / "advanced.config"),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(where / "enabled_plugins"),
            RABBITMQ_FEATURE_FLAGS_FILE=str(where / "feature_flags"),
            RABBITMQ_PLUGINS_EXPAND_DIR=str(where / "plugins"),
            RABBITMQ_PID_FILE=str(where / "pid"),
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=_QUIET_SCHEDULERS,
        )


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False
