"""`--keep`: what stays behind so that a person can go on playing, and the script that ends it all."""

import shlex
import sys
from pathlib import Path

from deploy.demo.broker import STSYNC
from deploy.demo.cluster import Cluster

_PROJECT = Path(__file__).parents[2]
_STOP = """#!/usr/bin/env bash
# Ends what deploy/demo.sh --keep left running, and nothing else: each process is known by its id and start time.
set -u
cd /
is_ours() { [ "$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20)" = "$2" ]; }
end() {
    local signal=$1 pid=$2 started=$3
    is_ours "$pid" "$started" || return 0
    kill -"$signal" "$pid"
    for _ in $(seq 300); do is_ours "$pid" "$started" || return 0; sleep 0.1; done
    kill -KILL "$pid"
}
@PROCESSES@
rm -rf @ROOT@
echo "stopped; @ROOT@ is removed"
"""


def leave(cluster: Cluster) -> str:
    """Write the scripts `stop` and `sql`; returns what to tell the person."""
    stop, sql = cluster.root / "stop", cluster.root / "sql"
    _script(
        stop, _STOP.replace("@PROCESSES@", "\n".join(_endings(cluster))).replace("@ROOT@", shlex.quote(str(cluster.root)))
    )
    nodes = " or ".join(node.name for node in cluster.nodes)
    python = f"{shlex.quote(sys.executable)} -m deploy.demo.sql"
    _script(
        sql,
        f"#!/usr/bin/env bash\nsettings={shlex.quote(str(cluster.root))}/$1/stsync.toml\n"
        f'[ $# = 2 ] && [ -f "$settings" ] || {{ echo "usage: $0 NODE \'STATEMENT\', of node {nodes}" >&2; exit 2; }}\n'
        f'cd {shlex.quote(str(_PROJECT))} || exit 1\nexec {python} "$settings" "$2"\n',
    )
    asked = "SELECT name, email FROM account WHERE name = 'acme'"
    return "\n".join(
        [
            "",
            f"Everything still runs, under {cluster.root}:",
            *(f"  {node.name}: settings {node.settings}, log {node.log}" for node in cluster.nodes),
            "Change something on the primary, and see it on a secondary:",
            f"  {sql} st1 \"UPDATE account SET email = 'new@bank.example' WHERE name = 'acme'\"",
            f'  {sql} st2 "{asked}"',
            "Where do the nodes stand?",
            f"  {STSYNC} status --config {cluster.primary.settings}",
            "Stop and remove it all:",
            f"  {stop}",
        ]
    )


def _endings(cluster: Cluster) -> list[str]:
    services = [node.service.pid for node in cluster.nodes if node.service is not None]
    lines = [f"end TERM {pid} {_started(pid)}" for pid in services]
    for server in reversed(cluster.servers):
        name = server.stop_signal.name.removeprefix("SIG")
        lines += [f"end {name} {pid} {_started(pid)}" for pid in server.pids]
    if cluster.lent_broker:
        words = [sys.executable, "-m", "deploy.demo.broker", str(cluster.primary.settings)]
        lines.append(f"cd {shlex.quote(str(_PROJECT))} && {shlex.join(words)}; cd /")
    return lines


def _started(pid: int) -> str:
    """The start time of a process in clock ticks since boot: with it a process id cannot be mistaken."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()[19]


def _script(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")
    path.chmod(0o700)
