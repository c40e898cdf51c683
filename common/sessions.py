"""Sessions as rows of the primary's database: who wants one writes a request, the service serves it and tells how far it is, and
whoever looks reads that (DESIGN §9)."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy import delete, select, update
from sqlalchemy.engine import Connection

from common.bookkeeping import node, sessions
from common.errors import Refused
from common.nodestate import iso, now_ms
from common.session import Mode, Phase, new_id

OPERATOR: Final = "operator"
FIRST: Final = "first contact"  # with a node that was never seen to be equal
REJOIN: Final = "rejoin"
DRIFT: Final = "drift"
CLOCK: Final = "clock"  # a verification whose time has come
DOUBT: Final = "doubt"  # a verification of nodes not looked at since the primary started, or that may not be equal any more
_OPEN: Final = tuple(phase.value for phase in Phase if not phase.over)
_KEPT: Final = 200
_IS_OPEN_SQL: Final = "SELECT 1 FROM stsync_sessions WHERE phase IN ({}) LIMIT 1".format(
    ", ".join(f"'{phase}'" for phase in _OPEN)
)


@dataclass(frozen=True)
class Request:
    """A row. `progress` is a document for people and scripts: of each node its phase, its result and figures."""

    id: int
    session: str
    mode: Mode
    full: bool
    cause: str
    nodes: tuple[str, ...] | None
    timeout_s: float
    phase: Phase
    reason: str | None
    requested_ms: int
    began_ms: int | None
    ended_ms: int | None
    cancelled: bool
    position: tuple[int, int] | None
    progress: dict[str, Any]

    @property
    def title(self) -> str:
        """For a person."""
        what = {
            Mode.SYNC: "a full synchronization",
            Mode.REHEARSE: "a rehearsal of a full synchronization",
            Mode.VERIFY: "a verification",
        }[self.mode]
        whom = "" if self.nodes is None else f" of {', '.join(self.nodes)}"
        return f"{what}{whom} ({self.session[:8]}, asked for by {self.cause} at {iso(self.requested_ms)}, {self.phase})"


def ask(
    connection: Connection,
    mode: Mode,
    *,
    full: bool = False,
    cause: str = OPERATOR,
    nodes: Sequence[str] | None = None,
    timeout_s: float,
    wake: str = "",
    session: bytes | None = None,
) -> int:
    """Write a request and commit; its id. `wake`: the dialect's; `session`: by which it is to be known. Raises Refused, naming it,
    where one is open already."""
    connection.execute(select(node.c.id).with_for_update())  # two who ask at once: one after the other
    under_way = newest_open(connection)
    if under_way is not None:
        connection.rollback()
        raise Refused(f"another session runs: {under_way.title}")
    done = connection.execute(
        sessions.insert().values(
            session=(session or new_id()).hex(),
            mode=mode,
            whole=int(full),
            cause=cause,
            nodes_json=None if nodes is None else orjson.dumps(list(nodes)).decode(),
            timeout_s=timeout_s,
            phase=Phase.REQUESTED,
            requested_ms=now_ms(),
            progress_json="{}",
        )
    )
    (number,) = done.inserted_primary_key or (0,)
    older = select(sessions.c.id).where(sessions.c.id < number - _KEPT)
    connection.execute(delete(sessions).where(sessions.c.id.in_([one for (one,) in connection.execute(older)])))
    if wake:
        connection.exec_driver_sql(wake)
    connection.commit()
    return number


def read(connection: Connection, number: int) -> Request | None:
    """A session by its id; None where it is not known (any more)."""
    row = connection.execute(select(sessions).where(sessions.c.id == number)).mappings().first()
    return None if row is None else _request(row)


def number_of(connection: Connection, session: bytes) -> int | None:
    """The id of a session; None where it is not known (any more)."""
    found: int | None = connection.execute(select(sessions.c.id).where(sessions.c.session == session.hex())).scalar()
    return found


def is_open(connection: Connection, *, looks_freely: bool = False) -> bool:
    """Whether there is one under way, or asked for; asked again and again, and so in the driver's own words, and where it
    `looks_freely` (see EngineDialect) without a transaction."""
    if not looks_freely:
        return connection.exec_driver_sql(_IS_OPEN_SQL).first() is not None
    with closing(connection.connection.cursor()) as cursor:
        cursor.execute(_IS_OPEN_SQL)
        return cursor.fetchone() is not None


def newest_open(connection: Connection) -> Request | None:
    """The session that is under way, or asked for; None where there is none."""
    wanted = select(sessions).where(sessions.c.phase.in_(_OPEN)).order_by(sessions.c.id).limit(1)
    row = connection.execute(wanted).mappings().first()
    return None if row is None else _request(row)


def latest(connection: Connection, limit: int = _KEPT) -> list[Request]:
    """The newest sessions, the newest first."""
    rows = connection.execute(select(sessions).order_by(sessions.c.id.desc()).limit(limit)).mappings()
    return [_request(row) for row in rows]


def when(request: Request) -> str:
    """When it was asked for, for a person."""
    return iso(request.requested_ms) or "?"


def cancel(connection: Connection, number: int) -> None:
    """Ask that it end without a change where nothing was installed yet, and commit."""
    connection.execute(update(sessions).where(sessions.c.id == number).values(cancelled=1))
    connection.commit()


def withdraw(connection: Connection, number: int) -> bool:
    """Take a request back that nobody has begun to serve, and commit; whether it was one."""
    found = connection.execute(delete(sessions).where(sessions.c.id == number, sessions.c.phase == Phase.REQUESTED))
    connection.commit()
    return found.rowcount > 0


def save(connection: Connection, number: int, **values: Any) -> None:
    """Set columns of a session, and commit; `progress` is the document."""
    if "progress" in values:
        values["progress_json"] = orjson.dumps(values.pop("progress")).decode()
    connection.execute(update(sessions).where(sessions.c.id == number).values(**values))
    connection.commit()


def _request(row: Any) -> Request:
    return Request(
        id=row["id"],
        session=row["session"],
        mode=Mode(row["mode"]),
        full=bool(row["whole"]),
        cause=row["cause"],
        nodes=None if row["nodes_json"] is None else tuple(orjson.loads(row["nodes_json"])),
        timeout_s=row["timeout_s"],
        phase=Phase(row["phase"]),
        reason=row["reason"],
        requested_ms=row["requested_ms"],
        began_ms=row["began_ms"],
        ended_ms=row["ended_ms"],
        cancelled=bool(row["cancelled"]),
        position=None if row["sequence"] is None else (row["epoch"], row["sequence"]),
        progress=orjson.loads(row["progress_json"]),
    )
