"""`python -m deploy.demo`: a cluster of three nodes on this machine, some changes, the time they take, and the proof."""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from deploy.demo import keeping, report
from deploy.demo.broker import STSYNC
from deploy.demo.cluster import Cluster
from deploy.demo.compare import compare
from deploy.demo.databases import KINDS
from deploy.demo.errors import DemoError
from deploy.demo.steps import Measured, keep_local, local_values, run_steps
from deploy.servers import ServerError

_SETTLE_SECONDS = 60.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Run it; 0 when every node is equal, 1 when not, 2 on a wrong option, 130 and 143 when interrupted."""
    options = _options()
    for number in _ENDING:
        signal.signal(number, _end)
    root = Path(tempfile.mkdtemp(prefix="stsync-demo-"))
    root.chmod(0o711)  # servers that drop their rights must pass
    kept = False
    code = 1
    try:
        kept = _demo(root, options)
        code = 0
    except (DemoError, ServerError) as exc:
        sys.stderr.write(f"demo: {exc}\n")
    finally:
        if not kept:
            shutil.rmtree(root, ignore_errors=True)
    sys.exit(code)


def _demo(root: Path, options: argparse.Namespace) -> bool:
    """The whole of it; True when the cluster was left running."""
    report.say(f"three nodes on {options.database}, all in {root}")
    with Cluster(root, options.database, options.broker_url, keep=options.keep) as cluster:
        _start(cluster)
        measured: list[Measured] = []

        def show(step: Measured) -> None:
            measured.append(step)
            report.progress(step)

        run_steps(cluster, show)
        report.local(local_values(cluster))
        cluster.wait_in_sync(_SETTLE_SECONDS)
        report.steps(measured)
        report.status(cluster.status())
        if not report.verdict(compare(cluster.primary.url, {node.name: node.url for node in cluster.secondaries})):
            raise DemoError("the nodes are not equal")
        if options.keep:
            report.say(keeping.leave(cluster))
    return bool(options.keep)


def _start(cluster: Cluster) -> None:
    began = time.monotonic()
    report.say("starting the private servers")
    cluster.start_servers()
    report.say(f"  after {time.monotonic() - began:.1f} s; making tables and keys, installing stsync on each node")
    cluster.prepare_nodes(keep_local)
    cluster.start_services()
    report.say(f"  after {time.monotonic() - began:.1f} s all nodes are in sync; changing things on {cluster.primary.name}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="deploy/demo.sh", description=__doc__, allow_abbrev=False)
    parser.add_argument("--database", choices=KINDS, default="sqlite", help="the engine of every node (default: sqlite)")
    parser.add_argument("--keep", action="store_true", help="leave everything running and say how to go on")
    parser.add_argument("--broker-url", metavar="URL", help="use this RabbitMQ (amqp://…) instead of a private one")
    options = parser.parse_args()
    if options.broker_url is not None and not options.broker_url.startswith(("amqp://", "amqps://")):
        parser.error(f"--broker-url begins with amqp:// or amqps://, not with {options.broker_url.partition(':')[0]!r}")
    if not os.access(STSYNC, os.X_OK):
        parser.exit(1, f"demo: {STSYNC} is missing; run deploy/demo.sh, which sets it up\n")
    return options


def _end(number: int, _frame: FrameType | None) -> None:
    """Leave in order: what was started is stopped on the way out, undisturbed by a second signal."""
    for one in _ENDING:
        signal.signal(one, signal.SIG_IGN)
    sys.stderr.write("demo: interrupted; stopping what was started\n")
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
