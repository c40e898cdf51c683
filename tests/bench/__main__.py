"""`python -m tests.bench`: starts everything it needs, measures, prints, and leaves nothing behind."""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from deploy.servers import PrivateRabbitMQ, ServerError
from tests.bench import report, work
from tests.bench.cluster import StsyncSubject
from tests.bench.figures import Figure, Neighbours, fsync_ms, percentile, wait_quiet
from tests.bench.peers import PEERS, Peer

KINDS = ("postgresql", "mariadb", "sqlite")
JOBS = ("lag", "tx", "triggers", "bulk", "idle")
_QUIET = 0.1  # share of the processors that others may use during a job; else it is done again
Job = Callable[[], work.Results]


@dataclass
class Noise:
    """What the machine was like: others' share of the processors during each job, and the disk before it."""

    others: list[float] = field(default_factory=list)
    fsync_ms: list[float] = field(default_factory=list)


Measured = dict[str, dict[str, list[float]]]


def main() -> int:
    """Parse, measure, print."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is also stopped
    begun = time.monotonic()
    measured: Measured = {}
    noise = Noise()
    try:
        for kind in KINDS:
            if kind in options.kinds:
                _measure(kind, options, measured, noise)
    except (work.BenchError, ServerError) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; everything is stopped and removed", file=sys.stderr)
        return 130
    columns = {label: {name: Figure.of(values) for name, values in found.items()} for label, found in measured.items()}
    notes = _notes(options.runs, noise, time.monotonic() - begun)
    missed = _missed(columns)
    if options.markdown:
        print(report.markdown(columns, notes))
    else:
        report.show(columns, notes, missed)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=sys.modules["tests.bench"].__doc__)
    parser.add_argument("kinds", nargs="*", metavar="sqlite|postgresql|mariadb", help="default: all three")
    parser.add_argument("--peers", action="store_true", help="the databases' own replication too, job by job in turn")
    parser.add_argument("--runs", type=int, default=3, help="how many runs to take the median of (default 3)")
    parser.add_argument("--attempts", type=int, default=3, help="how often a job is done until others are quiet (default 3)")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS), help="default: all")
    parser.add_argument(
        "--directory", type=Path, help="where all data go (default: as $TMPDIR says); /dev/shm measures without a disk"
    )
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    options = parser.parse_args()
    options.kinds = options.kinds or list(KINDS)
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(KINDS)}")
    if options.runs < 1 or options.attempts < 1:
        parser.error("--runs, --attempts: at least 1")
    return options


def _measure(kind: str, options: argparse.Namespace, measured: Measured, noise: Noise) -> None:
    root = Path(tempfile.mkdtemp(prefix="stsync-bench-", dir=options.directory))
    root.chmod(0o711)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        _say(f"{kind}: starting servers")
        rabbitmq = stack.enter_context(PrivateRabbitMQ(root / "rabbitmq"))
        own = StsyncSubject(kind, root / kind, rabbitmq, stack)
        own.start()
        peer = PEERS[kind](root / "peer", stack) if options.peers and kind in PEERS else None
        if peer is not None:
            peer.start()
        for run in range(1, options.runs + 1):
            for label, name, job in _jobs(own, peer, options.jobs):
                results = _quietly(f"run {run}, {label}, {name}", job, options.attempts, root, noise)
                for key, value in results.items():
                    measured.setdefault(label, {}).setdefault(key, []).append(value)


def _quietly(title: str, job: Job, most: int, root: Path, noise: Noise) -> work.Results:
    """The job's results from the quietest of a few attempts; the first is enough when others leave the machine alone."""
    attempts: list[tuple[float, work.Results]] = []
    while len(attempts) < most and (not attempts or attempts[-1][0] > _QUIET):
        wait_quiet(_QUIET)
        noise.fsync_ms += fsync_ms(root)
        neighbours = Neighbours()
        results = job()
        attempts.append((neighbours.share(), results))
        shown = ", ".join(f"{key} {value:,.2f}" for key, value in results.items())
        _say(f"{title}: {shown} (others {attempts[-1][0]:.0%})")
    share, results = min(attempts, key=lambda one: one[0])
    noise.others.append(share)
    return results


def _jobs(own: StsyncSubject, peer: Peer | None, wanted: list[str]) -> list[tuple[str, str, Job]]:
    """Job by job, first ours, then the same on the database's own replication, so that both meet the same machine."""
    found: list[tuple[str, str, Job]] = []

    def add(name: str, ours: Job, theirs: Job | None) -> None:
        if name in wanted:
            found.append((own.label, name, ours))
            if peer is not None and theirs is not None:
                found.append((peer.label, name, theirs))

    def everywhere(name: str, job: Callable[[work.Subject], work.Results], ours: Job | None = None) -> None:
        add(name, ours or (lambda: job(own)), None if peer is None else (lambda: job(peer)))

    everywhere("lag", work.lag)
    everywhere("tx", work.transactions)
    add("triggers", own.triggers, None)
    everywhere("bulk", lambda subject: work.bulk(subject, 1, 100_000), own.bulk_memory)
    everywhere("bulk", lambda subject: work.bulk(subject, 100, 1_000))
    add("idle", own.idle, None)
    return found


def _missed(columns: dict[str, dict[str, Figure]]) -> list[str]:
    peers = {"stsync on PostgreSQL": "PostgreSQL logical replication", "stsync on MariaDB": "MariaDB binlog replication"}
    return [
        one
        for label, figures in columns.items()
        if label.startswith("stsync")
        for one in report.misses(label, figures, columns.get(peers.get(label, "")))
    ]


def _notes(runs: int, noise: Noise, seconds: float) -> list[str]:
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return [
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, {os.cpu_count()} processors, median (least–most) of {runs} run(s) in "
        f"{seconds / 60:.0f} min. Others used {_half(noise.others):.0%} of the processors during a job (at most "
        f"{max(noise.others):.0%}); an fdatasync took {_half(noise.fsync_ms):.2f} ms (99 %: "
        f"{percentile(noise.fsync_ms, 99):.1f} ms); load average {load}.",
        "One private server a node on 127.0.0.1 with the databases' durable settings, a single private RabbitMQ with quorum "
        "queues; every batch sealed and signed. stsync needs no binlog and no wal_level: its servers have none. "
        "MariaDB's own replication runs with sync_binlog = 0, its default.",
    ]


def _half(values: list[float]) -> float:
    return percentile(values, 50)


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
