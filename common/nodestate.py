"""The node's own row in `stsync_node`: its role, its position, what it last heard; read and written in one place."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import delete, func, inspect, select, update
from sqlalchemy.engine import Connection

from common.bookkeeping import LAYOUT, clocks, node, quarantine, refusals, tables_of
from common.changes import Position
from common.dialects.script import Script
from common.errors import Fault, Misconfigured, Unavailable
from common.settings import Settings

_RESERVE = 10_000_000  # ten seconds of the clock: a restored backup soon gives numbers that were never used
_CLOCK_STEP_MS = 2000


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
    installed_ms: int
    session_number: int = 0
    proven_ms: int | None = None
    equal_once: bool = False
    started_ms: int | None = None
    doubt: str | None = None
    edits: int = 0
    installed_session: int = 0


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


DIFFERS: Final = "it was compared with the primary, and differs"
UNMENDED: Final = "it differs from the primary, and the full synchronization that was to mend that failed"
LEFT_OUT: Final = "it was left out of a full synchronization"


def unlike(doubt: str | None) -> bool:
    """Whether that is known: this node is not as the primary is, or could not be made so."""
    return doubt is not None and doubt.startswith((DIFFERS, UNMENDED, LEFT_OUT))


def at_rest(quarantined: int, doubt: str | None) -> str | None:
    """What there is to say of a secondary that is in sync, for a person; None where nothing is."""
    if quarantined:
        return f"{quarantined} change{'' if quarantined == 1 else 's'} could not be applied; see `stsync quarantine list` on this node"
    if doubt:
        return f"it has to be compared with the primary: {doubt}; `stsync verify` there does so, or `stsync sync`"
    return None


def read(connection: Connection) -> NodeState | None:
    """The node's row; None before `install`."""
    row = connection.execute(select(node)).mappings().first()
    return None if row is None else _state(row)


def read_installed(connection: Connection, settings: Settings) -> NodeState:
    """The node's row; Misconfigured when it is missing or is another node's (a copied database), or a table of this version is."""
    standing = set(inspect(connection).get_table_names())
    layout = connection.execute(select(node.c.version)).scalar() if node.name in standing else None
    if layout is None:
        raise Misconfigured("this database has not been prepared; run `stsync install` first")
    if layout != LAYOUT:
        raise Misconfigured(
            f"this database was prepared by another version ({layout}; this is {LAYOUT}); run `stsync install`, and when all nodes"
            " are upgraded, `stsync sync` on the primary"
        )
    found = read(connection)
    if found is None:
        raise Misconfigured("this database has not been prepared; run `stsync install` first")
    _refuse_anothers(found.name, found.cluster, settings)
    for table in tables_of(connection.dialect.name):
        if table.name not in standing:
            raise Misconfigured(
                f"this database lacks the table {table.name}, which this version needs; run `stsync install`"
            )
    return found


def refuse_anothers(connection: Connection, settings: Settings) -> None:
    """Misconfigured when the database is another node's; whether it is prepared is not asked."""
    if not inspect(connection).has_table(node.name):
        return
    found = connection.execute(select(node.c.name, node.c.cluster)).first()  # whatever version made it, it has these
    if found is not None:
        _refuse_anothers(*found, settings)


def _refuse_anothers(name: str, cluster: str, settings: Settings) -> None:
    if (cluster, name) != (settings.cluster.name, settings.node.name):
        raise Misconfigured(
            f"this database belongs to node {name!r} of cluster {cluster!r}, not to {settings.node.name!r} of "
            f"{settings.cluster.name!r}; check database.url and node.name"
        )


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
        installed_ms=row["installed_ms"],
        session_number=row["session_number"],
        proven_ms=row["proven_ms"],
        equal_once=bool(row["equal_once"]),
        started_ms=row["started_ms"],
        doubt=row["doubt"],
        edits=row["edits"],
        installed_session=row["installed_session"],
    )


def installed_ms(connection: Connection) -> int:
    """When `install` last ran; it never says the same twice."""
    return int(connection.execute(select(node.c.installed_ms)).scalar_one())


def mark_installed(connection: Connection) -> None:
    """In the transaction of `install`: services find out that the schema is to be read again."""
    save(connection, installed_ms=max(now_ms(), installed_ms(connection) + 1))


def published(connection: Connection) -> int:
    """The last sequence that the broker confirmed, as far as it is written down."""
    return int(connection.execute(select(node.c.published)).scalar_one())


def advance(script: Script, before: Position, after: Position, installed_ms: int, **values: Any) -> None:
    """Move the position within the caller's transaction (TRAPS 7).

    Raises Unavailable when `install` has run since the schema was read by which the caller works (TRAPS 6), and Fault when the
    position was not where it was believed. A script that only collects raises NotApplicable at its commit; see `expect`.
    """
    columns = {"epoch": after.epoch, "sequence": after.sequence, "hash": after.hash} | values
    sets = ", ".join(f"{name} = {script.mark}" for name in columns)
    script.promise(1)
    script.execute(
        f"UPDATE stsync_node SET {sets} WHERE id = 1 AND sequence = {script.mark} AND epoch = {script.mark}"
        f" AND installed_ms = {script.mark}",
        (*columns.values(), before.sequence, before.epoch, installed_ms),
    )
    if script.rowcount != 1:
        expect(script.connection, before, installed_ms)
        raise Fault(f"the position in the database stays at {before.sequence}: is there a trigger on stsync_node?")


def expect(connection: Connection, position: Position, installed_ms: int) -> None:
    """Raises Unavailable and Fault, as `advance` does, unless all stands as it has to."""
    found = read(connection)
    if found is None or (found.position.epoch, found.position.sequence) != (position.epoch, position.sequence):
        raise Fault(
            f"the position in the database is not {position.sequence} any more: does another service run on this database?"
        )
    if found.installed_ms != installed_ms:
        raise Unavailable("`stsync install` has run; the lists and the schema are read again")


def save(connection: Connection, **values: Any) -> None:
    """Set columns of the node's row."""
    connection.execute(update(node).where(node.c.id == 1).values(**values))


def settle(connection: Connection, installed_ms: int) -> None:
    """A primary's doubt is over, unless `install` has run since and there may be another one."""
    connection.execute(update(node).where(node.c.id == 1, node.c.installed_ms == installed_ms).values(doubt=None))


def reserve_numbers(connection: Connection, sorts: int = 1) -> tuple[int, ...]:
    """Where the numbers of so many sorts of messages begin: never used before, whatever the clock says, and once this is committed
    never given again to a later process."""
    last = connection.execute(select(node.c.numbered)).scalar_one()
    first = int(max(last, time.time_ns() // 1000)) + 1
    save(connection, numbered=first + sorts * _RESERVE)
    return tuple(first + sort * _RESERVE for sort in range(sorts))


def offsets(connection: Connection) -> dict[str, float]:
    """How far the clocks of other nodes are off this one's, in milliseconds: only those that do not agree."""
    return {name: float(offset) for name, offset in connection.execute(select(clocks.c.name, clocks.c.offset_ms))}


def save_offset(connection: Connection, name: str, before_ms: float, now_ms: float) -> float:
    """Write down how far another node's clock is off where that has changed; what is written down now, 0 for clocks that agree.

    `before_ms` is what this said before.
    """
    found = round(now_ms)
    if found == before_ms or (found and before_ms and abs(found - before_ms) < _CLOCK_STEP_MS):
        return before_ms
    connection.execute(delete(clocks).where(clocks.c.name == name))
    if found:
        connection.execute(clocks.insert().values(name=name, offset_ms=found))
    return found


def count_refusal(connection: Connection, kind: str, source: str, text: str, more: int = 1) -> None:
    """Count a refused message, or several."""
    where = (refusals.c.kind == kind, refusals.c.source == source)
    values = {"last_ms": now_ms(), "text": text}
    if connection.execute(update(refusals).where(*where).values(count=refusals.c.count + more, **values)).rowcount:
        return
    connection.execute(refusals.insert().values(kind=kind, source=source, count=more, **values))


def refused(connection: Connection) -> dict[str, int]:
    """How many messages were refused, by kind."""
    rows = connection.execute(select(refusals.c.kind, func.sum(refusals.c.count)).group_by(refusals.c.kind))
    return {kind: int(count) for kind, count in rows}


def quarantined(connection: Connection) -> int:
    """How many changes stand in the quarantine."""
    return int(connection.execute(select(func.count()).select_from(quarantine)).scalar_one())
