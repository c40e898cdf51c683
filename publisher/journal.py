"""The journal: every batch as published, kept for catch-up within an explicit retention (TRAPS 8, 12)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.engine import Connection

from common.bookkeeping import journal
from common.dialects.script import Script
from common.nodestate import now_ms
from common.settings import JournalSettings
from publisher.composer import Batch


@dataclass(frozen=True)
class Extent:
    """What the journal holds: first and last sequence (0 when empty) and its size in bytes."""

    first: int
    last: int
    bytes: int


def append(script: Script, epoch: int, batches: Iterable[Batch]) -> None:
    """Write batches in the caller's transaction."""
    at = now_ms()
    rows = [(b.sequence, epoch, b.hash, b.message, len(b.message), at) for b in batches]
    if rows:
        marks = ", ".join([script.mark] * 6)
        statement = f"INSERT INTO stsync_journal (sequence, epoch, hash, message, size, at_ms) VALUES ({marks})"
        script.promise(None)
        if len(rows) == 1:
            script.execute(statement, rows[0])
        else:
            script.executemany(statement, rows)


def read(connection: Connection, first: int, limit: int, max_bytes: int) -> list[tuple[int, bytes]]:
    """At most `limit` batches from sequence `first` on, in order, without a hole, and no more bytes than `max_bytes`
    (but at least one batch); empty when `first` is not there."""
    sizes: Sequence[tuple[int, int]] = connection.execute(
        select(journal.c.sequence, journal.c.size)
        .where(journal.c.sequence >= first)
        .order_by(journal.c.sequence)
        .limit(limit)
    ).all()
    last, total = first - 1, 0
    for sequence, size in sizes:
        if sequence != last + 1 or (total and total + size > max_bytes):
            break
        last, total = sequence, total + size
    if last < first:
        return []
    rows = connection.execute(
        select(journal.c.sequence, journal.c.message)
        .where(journal.c.sequence.between(first, last))
        .order_by(journal.c.sequence)
    )
    return [(sequence, bytes(message)) for sequence, message in rows]


def extent(connection: Connection) -> Extent:
    """What the journal holds now."""
    row = connection.execute(
        select(
            func.coalesce(func.min(journal.c.sequence), 0),
            func.coalesce(func.max(journal.c.sequence), 0),
            func.coalesce(func.sum(journal.c.size), 0),
        )
    ).one()
    return Extent(int(row[0]), int(row[1]), int(row[2]))


def first_sequence(connection: Connection, at_least: int = 0) -> int:
    """The first sequence, from `at_least` on, that can be served; 0 when there is none."""
    first = select(func.coalesce(func.min(journal.c.sequence), 0)).where(journal.c.sequence >= at_least)
    return int(connection.execute(first).scalar_one())


def prunable(connection: Connection, settings: JournalSettings, published: int, needed: int | None) -> int:
    """The last sequence that is older than the retention or beyond its size, and published; 0 when there is none. It only reads,
    which takes its time where much is kept.

    The newest batch always stays, so that the journal tells where the log stands. From `needed` on
    secondaries lack what there is: only the size takes that from them, for age is what the clock says, and it may be wrong.
    """
    held = extent(connection)
    oldest_kept_ms = now_ms() - int(settings.max_age_hours * 3_600_000)
    by_age = connection.execute(select(func.max(journal.c.sequence)).where(journal.c.at_ms < oldest_kept_ms)).scalar_one()
    upto = by_age or 0 if needed is None else min(by_age or 0, needed - 1)
    excess = held.bytes - settings.max_bytes
    if excess > 0:
        for sequence, size in connection.execute(select(journal.c.sequence, journal.c.size).order_by(journal.c.sequence)):
            if excess <= 0:
                break
            upto, excess = max(upto, sequence), excess - size
    upto = min(upto, published, held.last - 1)
    return 0 if upto < held.first else upto


def prune(connection: Connection, upto: int) -> int:
    """Delete the batches up to a sequence, in the caller's transaction; their number."""
    return connection.execute(delete(journal).where(journal.c.sequence <= upto)).rowcount
