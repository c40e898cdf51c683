"""What `status` shows, read from the node's own database whether or not its service runs (DESIGN §9, INTERFACE)."""

import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import func, select
from sqlalchemy.engine import Connection

from common import capture_check, freshness, nodestate, session_history, sessions, troubles
from common.bookkeeping import journal, rejected, reports, waiting
from common.database import Database
from common.errors import MessageRefused, Misconfigured
from common.nodestate import NodeState, Role, State
from common.running import service_runs
from common.sessions import Request
from common.settings import Settings
from common.troubles import Trouble
from common.trust.certificates import Certificate
from common.trust.keys import read_certificates

_EXPIRES_SOON = timedelta(days=30)
_WENT_BACK = "its database is older than the last full synchronization that it had; was it restored from a backup?"


@dataclass(frozen=True)
class NodeStatus:
    """One secondary, as this node knows it."""

    name: str
    state: State
    epoch: int
    sequence: int
    behind: int
    lag_ms: float | None
    quarantined: int
    last_full_sync: str | None
    last_report: str | None
    reason: str | None
    refused: dict[str, int] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As INTERFACE has it, and `refused`: messages that failed a check, by kind."""
        return {
            "name": self.name,
            "state": str(self.state),
            "epoch": self.epoch,
            "sequence": self.sequence,
            "behind": self.behind,
            "lag_ms": None if self.lag_ms is None else round(self.lag_ms, 1),
            "quarantined": self.quarantined,
            "last_full_sync": self.last_full_sync,
            "last_report": self.last_report,
            "reason": self.reason,
            "refused": self.refused,
        }


@dataclass(frozen=True)
class Status:
    """A node's status: its own standing and, on the primary, that of every secondary."""

    document: dict[str, Any]
    nodes: tuple[NodeStatus, ...]
    in_sync: bool


def read(database: Database, settings: Settings) -> Status:
    """Read it; raises Misconfigured before `install`, Unavailable when the database is away."""
    running = service_runs(database)
    with database.connect(read_only=True) as connection:
        state = nodestate.read_installed(connection, settings)
        found = troubles.read(connection) if running else {}
        warnings = troubles.sentences(found) + _warnings(connection, database, settings)
        if state.role is Role.PRIMARY:
            return _primary(connection, settings, state, running, warnings, found)
        return _secondary(connection, settings, state, running, warnings, found)


def _primary(
    connection: Connection,
    settings: Settings,
    state: NodeState,
    running: bool,
    warnings: list[str],
    found: dict[str, Trouble],
) -> Status:
    waits = waiting(connection)
    unsent = waits or state.published < state.position.sequence
    trouble = troubles.first(found, "relay", "sender", "broker_publish") if unsent else None
    heard = {row.name: row for row in connection.execute(select(reports))}
    if state.reason:
        warnings.append(state.reason)
    history, now = sessions.latest(connection), nodestate.now_ms()
    others = [name for name in settings.cluster.names if name != state.name]
    if state.doubt and others:
        warnings.append(
            f"the secondaries have to be compared with this node: {state.doubt}; run `stsync verify`, or `stsync sync`"
        )
    nodes = tuple(_compared(_reported(name, heard.get(name), state, settings, running, trouble), history) for name in others)
    alarms = [session_history.alarm(one.name, history, now, needs=one.state is State.NEEDS_FULL_SYNC) for one in nodes]
    warnings += filter(None, alarms)
    first, last, size = connection.execute(
        select(func.min(journal.c.sequence), func.max(journal.c.sequence), func.sum(journal.c.size))
    ).one()
    document = {
        "cluster": state.cluster,
        "node": state.name,
        "role": str(state.role),
        "service": "running" if running else "stopped",
        "epoch": state.position.epoch,
        "sequence": state.position.sequence,
        "outbox": waits,
        "journal": {"first": first or 0, "last": last or 0, "bytes": int(size or 0)},
        "published": state.published,
        "nodes": [node.document() for node in nodes],
        "session": _session(history),
        "refused": nodestate.refused(connection),
        "warnings": warnings,
    }
    return Status(document, nodes, all(node.state is State.IN_SYNC for node in nodes))


def _reported(name: str, row: Any, state: NodeState, settings: Settings, running: bool, trouble: str | None) -> NodeStatus:
    head = state.position
    if row is None:
        reason = "has never reported" if running else "this node's service does not run; start it with `stsync run`"
        return NodeStatus(name, State.OFFLINE, head.epoch, 0, head.sequence, None, 0, None, None, reason)
    found = State(row.state)
    reason = row.reason
    behind = max(0, head.sequence - row.sequence)
    silence = _silence(row.heard_ms, settings)
    if silence:
        found = State.OFFLINE
        reason = f"nothing was heard from it {silence}"
        if not running:
            reason += "; this node's service does not run, start it with `stsync run`"
    elif found is State.IN_SYNC and (behind or trouble):
        found, reason = State.CATCHING_UP, trouble or reason or nodestate.behind_by(behind)
    if found in (State.IN_SYNC, State.CATCHING_UP) and row.went_back:
        found, reason = State.NEEDS_FULL_SYNC, _WENT_BACK
    return NodeStatus(
        name=name,
        state=found,
        epoch=row.epoch,
        sequence=row.sequence,
        behind=behind,
        lag_ms=row.lag_ms,
        quarantined=row.quarantined,
        last_full_sync=row.last_full_sync,
        last_report=nodestate.iso(row.heard_ms),
        reason=reason,
        refused=orjson.loads(row.refused_json),
    )


def _session(history: Sequence[Request]) -> dict[str, Any] | None:
    """The session that is under way, or asked for."""
    found = next((one for one in reversed(history) if not one.phase.over), None)
    if found is None:
        return None
    return {
        "session": found.session,
        "mode": str(found.mode),
        "phase": str(found.phase),
        "cause": found.cause,
        "requested": nodestate.iso(found.requested_ms),
        "nodes": found.progress.get("nodes", []),
    }


def _compared(node: NodeStatus, history: Sequence[Request]) -> NodeStatus:
    """With what past sessions say of it: that it missed one, or differs from the primary."""
    if node.state not in (State.IN_SYNC, State.CATCHING_UP):
        return node
    reason = session_history.missed(node.name, history)
    tables = session_history.drift(node.name, history)
    if reason is None and tables:
        reason = session_history.drifted(tables)
    return node if reason is None else replace(node, state=State.NEEDS_FULL_SYNC, reason=reason)


def _secondary(
    connection: Connection,
    settings: Settings,
    state: NodeState,
    running: bool,
    warnings: list[str],
    found: dict[str, Trouble],
) -> Status:
    quarantined = nodestate.quarantined(connection)
    edits = waiting(connection)
    if edits:
        warnings.append(
            f"{edits} changes of listed tables were made on this secondary itself: it differs from the primary there (drift)"
        )
    behind = max(0, state.head[1] - state.position.sequence)
    trouble = troubles.first(found, "applier", "broker_consume")
    now, reason = _own_state(state, settings, running, behind, quarantined, trouble)
    own = NodeStatus(
        name=state.name,
        state=now,
        epoch=state.position.epoch,
        sequence=state.position.sequence,
        behind=behind,
        lag_ms=state.lag_ms,
        quarantined=quarantined,
        last_full_sync=nodestate.iso(state.last_full_sync_ms),
        last_report=None,
        reason=reason,
        refused=nodestate.refused(connection),
    )
    document = {
        "cluster": state.cluster,
        "node": state.name,
        "role": str(state.role),
        "primary": state.primary_name,
        "service": "running" if running else "stopped",
        **{key: value for key, value in own.document().items() if key not in {"name", "last_report"}},
        "primary_heard": nodestate.iso(state.heard_ms) if state.heard_ms else None,
        "outbox": edits,
        "warnings": warnings,
    }
    return Status(document, (own,), now is State.IN_SYNC)


def _own_state(
    state: NodeState,
    settings: Settings,
    running: bool,
    behind: int,
    quarantined: int,
    trouble: str | None,
) -> tuple[State, str | None]:
    if state.state in (State.NEEDS_FULL_SYNC, State.REFUSED):
        return state.state, state.reason
    if not running:
        return State.OFFLINE, "this node's service does not run; start it with `stsync run`"
    if state.state in (State.PAUSED, State.SYNCHRONIZING):
        return state.state, state.reason
    if trouble:
        return State.CATCHING_UP, trouble
    silence = _silence(state.heard_ms, settings)
    if silence:
        return State.CATCHING_UP, f"nothing was heard from the primary {state.primary_name} {silence}"
    if nodestate.unlike(state.doubt):
        return State.NEEDS_FULL_SYNC, f"{state.doubt}; `stsync sync` on the primary {state.primary_name} mends that"
    if behind:
        return State.CATCHING_UP, nodestate.behind_by(behind)
    return State.IN_SYNC, nodestate.at_rest(quarantined, state.doubt)


def _silence(heard_ms: int, settings: Settings) -> str | None:
    """Since when somebody has been silent, where that is too long: also when it was heard at a time that is still to come."""
    silent_s, limit_s = (nodestate.now_ms() - heard_ms) / 1000, settings.intervals.offline_after_s
    if not heard_ms:
        return "so far"
    if silent_s < -limit_s:
        return f"since this node's clock was set back: the last time was {nodestate.iso(heard_ms)}, which is still to come"
    return f"for {silent_s:.0f} s" if silent_s > limit_s else None


def _warnings(connection: Connection, database: Database, settings: Settings) -> list[str]:
    found = []
    unfit = connection.execute(select(func.count()).select_from(rejected)).scalar_one()
    if unfit:
        reason = connection.execute(select(rejected.c.reason).order_by(rejected.c.id.desc()).limit(1)).scalar_one()
        found.append(f"{unfit} outbox rows were no valid change and stand in stsync_rejected; the last: {reason}")
    found += _expiry(settings) + _exposed(settings)
    offsets = nodestate.offsets(connection)
    found += [freshness.sentence(name, offsets[name]) for name in settings.cluster.names if name in offsets]
    return found + capture_check.faults(database, connection, settings)


def _exposed(settings: Settings) -> list[str]:
    """Which private keys other users can read, or change."""
    found = []
    for path in (settings.trust.key, settings.trust.cluster_key):
        with suppress(OSError):  # the service, which cannot start without it, says what is wrong with it
            if path.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP):
                found.append(f"the private key {path} is open to other users of this machine: chmod 600 {path}")
    return found


def _expiry(settings: Settings) -> list[str]:
    """That this node's certificate expires soon, or has."""
    try:
        own = Certificate.parse(read_certificates(settings.trust.certificate)[0])
    except (Misconfigured, MessageRefused):
        return []  # the service, which cannot start with it, says what is wrong with it
    left = own.not_after - datetime.now(UTC)
    if left > min(_EXPIRES_SOON, (own.not_after - own.not_before) / 5):
        return []
    when = "expired" if left < timedelta() else "expires"
    return [
        f"the certificate of this node, {settings.trust.certificate}, {when} at {own.not_after:%Y-%m-%d %H:%M} UTC; issue a new "
        f"one (stsync pki issue --node {settings.node.name} --out a new directory), put it in its place and start the service again"
    ]
