"""The node's own row in `stsync_node`: its role, its position, what it last heard; read and written in one place."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import func, inspect, select, update
from sqlalchemy.engine import Connection

from common.bookkeeping import node, quarantine, refusals
from common.changes import Position
from common.errors import Fault, Misconfigured
from common.settings import Settings

_RESERVE = 10_000_000


class Role(StrEnum):
    """What a node is in the cluster."""

    PRIMARY = "primary"
    SECONDARY = "secondary"


class State(StrEnum):
    """A secondary's state, as `status` shows it (INTERFACE)."""

    IN_SYNC = "in_sync"
    CATCHING_UP = "catching_up"
    PAUSED = "paused"
    SYNCHRONIZING = "synchronizing"
    NEEDS_FULL_SYNC = "needs_full_sync"
    REFUSED = "refused"
    OFFLINE = "offline"


@dataclass(frozen=True)
class NodeState:
    """The row, as read."""

    name: str
    cluster: str
    role: Role
    primary_name: str
    position: Position
    published: int
    head: tuple[int, int]
    state: State
    reason: str | None
    lag_ms: float | None
    heard_ms: int
    heard_number: int
    last_full_sync_ms: int | None


def now_ms() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


def iso(milliseconds: int | None) -> str | None:
    """A time as INTERFACE shows it."""
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def behind_by(batches: int) -> str:
    """For a person."""
    return f"{batches} batch{'' if batches == 1 else 'es'} behind the primary"


def could_not_be_applied(changes: int) -> str:
    """For a person."""
    return f"{changes} change{'' if changes == 1 else 's'} could not be applied; see `stsync quarantine list` on this node"


def read(connection: Connection) -> NodeState | None:
    """The node's row; None before `install`."""
    row = connection.execute(select(node)).mappings().first()
    return None if row is None else _state(row)


def read_installed(connection: Connection, settings: Settings) -> NodeState:
    """The node's row; Misconfigured when it is missing or is another node's (a copied database)."""
    found = read(connection) if inspect(connection).has_table(node.name) else None
    if found is None:
        raise Misconfigured("this database has not been prepared; run `stsync install` first")
    if (found.cluster, found.name) != (settings.cluster.name, settings.node.name):
        raise Misconfigured(
            f"this database belongs to node {found.name!r} of cluster {found.cluster!r}, not to {settings.node.name!r} of "
            f"{settings.cluster.name!r}; check database.url and node.name"
        )
    return found


def _state(row: Any) -> NodeState:
    return NodeState(
        name=row["name"],
        cluster=row["cluster"],
        role=Role(row["role"]),
        primary_name=row["primary_name"],
        position=Position(row["epoch"], row["sequence"], bytes(row["hash"])),
        published=row["published"],
        head=(row["head_epoch"], row["head_sequence"]),
        state=State(row["state"]),
        reason=row["reason"],
        lag_ms=row["lag_ms"],
        heard_ms=row["heard_ms"],
        heard_number=row["heard_number"],
        last_full_sync_ms=row["last_full_sync_ms"],
    )


def published(connection: Connection) -> int:
    """The last sequence that the broker confirmed, as far as it is written down."""
    return int(connection.execute(select(node.c.published)).scalar_one())


def advance(connection: Connection, before: Position, after: Position, **values: Any) -> None:
    """Move the position within the caller's transaction; Fault when it is not where it was believed (TRAPS 7)."""
    statement = (
        update(node)
        .where(node.c.id == 1, node.c.sequence == before.sequence, node.c.epoch == before.epoch)
        .values(epoch=after.epoch, sequence=after.sequence, hash=after.hash, **values)
    )
    if connection.execute(statement).rowcount != 1:
        raise Fault(
            f"the position in the database is not {before.sequence} any more: does another service run on this database?"
        )


def save(connection: Connection, **values: Any) -> None:
    """Set columns of the node's row."""
    connection.execute(update(node).where(node.c.id == 1).values(**values))


def next_number(connection: Connection) -> int:
    """The first number for messages that was never used before, whatever the clock or an old backup says."""
    last = connection.execute(select(node.c.numbered)).scalar_one()
    return int(max(last, time.time_ns() // 1000)) + 1


def next_beat(last_known: int) -> int:
    """The first number for a primary's heartbeats, above those of any process before: the clock's microseconds.

    That holds without anything being written first, which may have to wait while the secondaries want to hear the primary.
    `last_known`: the `heard_number` in the database; where the clock was set back behind it, it is far above it.
    """
    now = time.time_ns() // 1000
    return now if now > last_known else last_known + _RESERVE


def reserve_numbers(connection: Connection) -> int:
    """The same, and a range behind it is not given again by a later process."""
    first = next_number(connection)
    save(connection, numbered=first + _RESERVE)
    return first


def count_refusal(connection: Connection, kind: str, source: str, text: str) -> bool:
    """Count a refused message; True when it is the first of its kind and source."""
    where = (refusals.c.kind == kind, refusals.c.source == source)
    values = {"last_ms": now_ms(), "text": text}
    if connection.execute(update(refusals).where(*where).values(count=refusals.c.count + 1, **values)).rowcount:
        return False
    connection.execute(refusals.insert().values(kind=kind, source=source, count=1, **values))
    return True


def refused(connection: Connection) -> dict[str, int]:
    """How many messages were refused, by kind."""
    rows = connection.execute(select(refusals.c.kind, func.sum(refusals.c.count)).group_by(refusals.c.kind))
    return {kind: int(count) for kind, count in rows}


def quarantined(connection: Connection) -> int:
    """How many changes stand in the quarantine."""
    return int(connection.execute(select(func.count()).select_from(quarantine)).scalar_one())
