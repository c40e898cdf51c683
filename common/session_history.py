"""What past sessions say of a node: whether it missed a full synchronization, differs, or asks again and again. Pure."""

from collections.abc import Sequence
from typing import Any, Final

from common import sessions
from common.session import Mode, Result
from common.sessions import Request

ALARM: Final = 3  # sessions of its own after which a node that needs one again is an alarm
_FORGOTTEN_MS: Final = 3_600_000


def missed(name: str, history: Sequence[Request]) -> str | None:
    """Why a node missed the last full synchronization that it was to take part in; None where it did not."""
    one = last_missed(name, history)
    if one is None:
        return None
    found = _node(one, name) or {}
    return f"it missed the full synchronization of {sessions.when(one)}: {found.get('reason') or one.reason}"


def last_missed(name: str, history: Sequence[Request]) -> Request | None:
    """The last full synchronization that a node was to take part in, if it was not done there; none that somebody called off."""
    for one in history:
        found = _node(one, name)
        if one.mode is Mode.SYNC and one.phase.over and not one.cancelled and found is not None:
            return None if found.get("result") == Result.DONE else one
    return None


def last_done(name: str, history: Sequence[Request]) -> int | None:
    """When the last full synchronization ended that made a node equal, in milliseconds since 1970."""
    for one in history:
        found = _node(one, name)
        if one.mode is Mode.SYNC and one.ended_ms and found is not None and found.get("result") == Result.DONE:
            return one.ended_ms
    return None


def failures(name: str, history: Sequence[Request], now_ms: int) -> int:
    """How many sessions of its own a node has had lately since the last one after which it was left in peace."""
    count = 0
    for one in history:
        if one.mode is not Mode.SYNC or one.nodes != (name,) or one.cause == sessions.OPERATOR:
            continue
        if (one.ended_ms or now_ms) < now_ms - _FORGOTTEN_MS:
            break
        count += 1
    return count


def last_seen(name: str, history: Sequence[Request]) -> int:
    """When the last session was asked for that looked at all of a node, in milliseconds since 1970; 0 where none is known."""
    for one in history:
        found = _node(one, name)
        if one.mode is not Mode.REHEARSE and found is not None and found.get("result") == Result.DONE:
            return one.requested_ms
    return 0


def lately(cause: str, history: Sequence[Request], now_ms: int) -> int:
    """How many sessions there were for this cause within the last hour."""
    return sum(one.cause == cause and (one.ended_ms or now_ms) > now_ms - _FORGOTTEN_MS for one in history)


def drift(name: str, history: Sequence[Request]) -> list[dict[str, Any]]:
    """The tables in which the last verification found a node to differ; none where a later one, or a full synchronization, did not."""
    for one in history:
        found = _node(one, name)
        if found is None or not one.phase.over or found.get("result") != Result.DONE:
            continue
        return [] if one.mode is Mode.SYNC else list(found.get("tables", []))
    return []


def alarm(name: str, history: Sequence[Request], now_ms: int, *, needs: bool) -> str | None:
    """That a node asks for a full synchronization again and again, for a person; None where it does not. `needs`: it does now."""
    count = failures(name, history, now_ms)
    if count < ALARM:
        return None
    last = next(one for one in history if one.nodes == (name,))
    found = _node(last, name) or {}
    why = found.get("reason") or last.reason
    still = " and still needs one" if needs else ""
    return f"{name} has had {count} full synchronizations of its own within the hour{still}" + (
        f"; the last ended with: {why}" if why else ""
    )


def drifted(tables: Sequence[dict[str, Any]]) -> str:
    """In which tables a node differs, for a person."""
    counts = {one["table"]: one["rows_missing"] + one["rows_extra"] + one["rows_different"] for one in tables}
    told = ", ".join(f"{rows} rows of {table}" for table, rows in list(counts.items())[:5])
    return f"it differs from the primary (drift): {told}{' …' if len(counts) > 5 else ''}; `stsync sync` repairs that"


def _node(request: Request, name: str) -> dict[str, Any] | None:
    return next((node for node in request.progress.get("nodes", []) if node["name"] == name), None)
