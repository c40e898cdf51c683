"""The work, the same for a cluster and for a database's own replication: a source, its copies, and the clock."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue as ProcessQueue
from multiprocessing.synchronize import Event
from typing import Protocol

from tests.bench.clients import Client, bulk_sql, connect, kind_of
from tests.bench.figures import percentile

RATE = 100
LAG_S = 10
TRANSACTIONS = 10_000
_PATIENCE_S = 120.0
_POLL_S = 0.0003
_spawn = multiprocessing.get_context("spawn")

Results = dict[str, float]
Seen = list[tuple[int, int]]


class BenchError(Exception):
    """A run that gives no figures; the text says what did not come."""


class Subject(Protocol):
    """What replicates: a source and its copies."""

    label: str

    @property
    def source(self) -> str:
        """The URL to write to."""

    @property
    def copies(self) -> Sequence[str]:
        """The URLs where it must arrive."""

    def empty(self) -> None:
        """Have `t` emptied everywhere (it may still be on its way when this returns), and files tidied."""

    def explain(self) -> str:
        """What its logs tell, for when nothing arrives."""


def until(condition: Callable[[], bool], what: str, subject: Subject | None = None, pause_s: float = 0.003) -> None:
    """Wait for a condition, within bounds."""
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise BenchError(f"not within {_PATIENCE_S:.0f} s: {what}\n{subject.explain() if subject else ''}")
        time.sleep(pause_s)


@contextmanager
def clients(urls: Sequence[str]) -> Iterator[list[Client]]:
    """A client per URL, hung up at the end."""
    with ExitStack() as stack:
        found = []
        for url in urls:
            found.append(connect(url))
            stack.callback(found[-1].close)
        yield found


def clear(url: str) -> None:
    """Empty `t` in one database."""
    with clients([url]) as (client,):
        client.run("DELETE FROM t" if kind_of(url) == "sqlite" else "TRUNCATE TABLE t")


def tidy(admin: Sequence[str], urls: Sequence[str]) -> None:
    """Have PostgreSQL do now what it would else do in the middle of the next job."""
    for url in urls if kind_of(urls[0]) == "postgresql" else ():
        with clients([url]) as (client,):
            client.run("VACUUM t")
    for url in admin if kind_of(urls[0]) == "postgresql" else ():
        with clients([url]) as (client,):
            client.run("CHECKPOINT")


def prepare(subject: Subject) -> None:
    """Everything is empty and at rest."""
    subject.empty()
    with clients(subject.copies) as copies:
        until(lambda: all(one.rows() == 0 for one in copies), f"{subject.label}: t empty on every copy", subject)
    time.sleep(0.5)


def lag(subject: Subject) -> Results:
    """From the commit's return until the change is visible on every copy: single-row updates at a fixed rate, ms."""
    with clients([subject.source, *subject.copies]) as (source, *copies):
        source.count(-1)
        until(lambda: all(one.counter() == -1 for one in copies), f"{subject.label}: the counter back at -1", subject)
        committed, arrived = _watched(source, subject)
    lags = [(seen - at) / 1e6 for at, seen in zip(committed, arrived, strict=True)]
    return {"lag_p50_ms": percentile(lags, 50), "lag_p99_ms": percentile(lags, 99)}


def _watched(source: Client, subject: Subject) -> tuple[list[int], list[int]]:
    """When each change was committed, and when the last of the copies showed it, in ns."""
    total = RATE * LAG_S
    told: ProcessQueue[Seen] = _spawn.Queue()
    ready = [_spawn.Event() for _ in subject.copies]
    watchers: list[BaseProcess] = [
        _spawn.Process(target=_watch, args=(url, total, told, event), daemon=True)
        for url, event in zip(subject.copies, ready, strict=True)
    ]
    try:
        for watcher in watchers:
            watcher.start()
        if not all(event.wait(_PATIENCE_S) for event in ready):
            raise BenchError(f"{subject.label}: a watching process did not start")
        committed = _pace(source, total)
        arrived = [0] * total
        for _ in watchers:
            previous = -1
            for value, at in told.get(timeout=_PATIENCE_S):
                for number in range(previous + 1, value + 1):
                    arrived[number] = max(arrived[number], at)
                previous = value
            if previous != total - 1:
                raise BenchError(f"{subject.label}: a copy stopped at change {previous} of {total}\n{subject.explain()}")
    finally:
        for watcher in watchers:
            watcher.terminate()
            watcher.join()
    return committed, arrived


def _pace(source: Client, total: int) -> list[int]:
    """Count up at the rate; when each commit had returned."""
    committed = []
    due = time.monotonic_ns()
    for value in range(total):
        due += 1_000_000_000 // RATE
        time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
        source.count(value)
        committed.append(time.monotonic_ns())
    return committed


def _watch(url: str, total: int, told: "ProcessQueue[Seen]", ready: Event) -> None:
    """In a process of its own: note when each value of the counter is first seen."""
    client = connect(url)
    seen: Seen = []
    last = -1
    end = time.monotonic() + LAG_S + 30
    ready.set()
    while last < total - 1 and time.monotonic() < end:
        value = client.counter()
        at = time.monotonic_ns()
        if value is not None and value > last:
            seen.append((value, at))
            last = value
        time.sleep(_POLL_S)
    told.put(seen)


def transactions(subject: Subject) -> Results:
    """Single-row inserts, each its own transaction, from one client; and how far the copies are behind at its end."""
    prepare(subject)
    begun = time.monotonic()
    rate = write_singly(subject.source)
    written = time.monotonic()
    arrived = _arrival(subject, TRANSACTIONS)
    return {
        "client_tx_s": rate,
        "replicated_tx_s": TRANSACTIONS / (arrived - begun),
        "behind_s": max(0.0, arrived - written),
    }


def write_singly(url: str) -> float:
    """The same inserts and nothing else: transactions a second as their client sees them."""
    with clients([url]) as (client,):
        begun = time.monotonic()
        for number in range(1, TRANSACTIONS + 1):
            client.insert(number)
        return TRANSACTIONS / (time.monotonic() - begun)


def bulk(subject: Subject, count: int, rows: int) -> Results:
    """`count` transactions of `rows` rows each: rows a second from the first begin until all copies have the last row."""
    prepare(subject)
    with clients([subject.source]) as (client,):
        begun = time.monotonic()
        for number in range(count):
            client.run(bulk_sql(subject.source, number * rows + 1, (number + 1) * rows))
        written = time.monotonic()
    arrived = _arrival(subject, count * rows)
    with clients(subject.copies) as copies:
        if not all(copy.rows() == count * rows for copy in copies):
            raise BenchError(f"{subject.label}: a copy lacks rows that lie before the last one\n{subject.explain()}")
    name = f"bulk_{count}x{rows}"
    return {f"{name}_rows_s": count * rows / (arrived - begun), f"{name}_source_s": written - begun}


def _arrival(subject: Subject, last: int) -> float:
    """When every copy had the last row."""
    with clients(subject.copies) as copies:
        waiting = list(copies)

        def all_have_it() -> bool:
            waiting[:] = [one for one in waiting if not one.has(last)]
            return not waiting

        until(all_have_it, f"{subject.label}: row {last} on every copy", subject)
        return time.monotonic()
