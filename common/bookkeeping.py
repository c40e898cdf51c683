"""The bookkeeping tables `stsync_*` and their portable definition; every node has all of them, whatever its role."""

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    exists,
    func,
    select,
    text,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Connection

from common import __version__

_Id = BigInteger().with_variant(Integer, "sqlite")
_Long = Text().with_variant(mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
_Blob = LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")
_OPTIONS: Any = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mariadb_engine": "InnoDB",
    "mariadb_charset": "utf8mb4",
}

metadata = MetaData()
LAYOUT: Final = f"{__version__}.3"  # of these tables; what `install` made is told by it (stsync_node.version)


def _name(name: str, **options: Any) -> "Column[str]":
    return Column(
        name,
        String(255).with_variant(mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"),
        **options,
    )


# Changes not yet sequenced. Written by triggers and programs, emptied by the relay. No index but its key (DESIGN §10).
outbox = Table(
    "stsync_outbox",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    _name("table_name", nullable=False),
    Column("kind", String(1), nullable=False),
    Column("columns_json", _Long, nullable=False),
    Column("rows_json", _Long, nullable=False),
    Column("row_count", Integer, nullable=False, server_default=text("1")),
    Column("canonical", Integer, nullable=False, server_default=text("0")),
    **_OPTIONS,
)
# Runs of the outbox's ids whose rows the journal has: nobody reads them again, and they are removed later (publisher.taken).
taken = Table(
    "stsync_taken",
    metadata,
    Column("first_id", _Id, primary_key=True, autoincrement=False),
    Column("last_id", BigInteger, nullable=False),
    **_OPTIONS,
)
# Outbox rows that are no change anybody could apply: kept, counted, shown, never published.
rejected = Table(
    "stsync_rejected",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    _name("table_name", nullable=False),
    Column("kind", String(1), nullable=False),
    Column("columns_json", _Long, nullable=False),
    Column("rows_json", _Long, nullable=False),
    Column("reason", _Long, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    **_OPTIONS,
)
# The sequenced, signed batches, byte for byte as published.
journal = Table(
    "stsync_journal",
    metadata,
    Column("sequence", _Id, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("message", _Blob, nullable=False),  # last: what stands behind it is only found by reading it
    **_OPTIONS,
)
# One row: who this node is and where it stands. A primary's position is its head, a secondary's what it applied.
node = Table(
    "stsync_node",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    _name("name", nullable=False),
    _name("cluster", nullable=False),
    Column("role", String(16), nullable=False),
    _name("primary_name", nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
    Column("published", BigInteger, nullable=False),
    Column("head_epoch", BigInteger, nullable=False),
    Column("head_sequence", BigInteger, nullable=False),
    Column("state", String(32), nullable=False),
    Column("reason", _Long),
    Column("lag_ms", Float),
    Column("numbered", BigInteger, nullable=False),
    Column("heard_ms", BigInteger, nullable=False),
    Column("heard_number", BigInteger, nullable=False),
    Column("installed_ms", BigInteger, nullable=False),
    _name("version", nullable=False),
    Column("last_full_sync_ms", BigInteger),
    Column("session_number", BigInteger, nullable=False, server_default=text("0")),
    Column("proven_ms", BigInteger),  # when it was last seen to be equal to the primary; the log has led on since
    Column("equal_once", Integer, nullable=False, server_default=text("0")),  # it was seen to be so at any time
    Column("installed_session", BigInteger, nullable=False, server_default=text("0")),  # the last full synchronization
    Column("started_ms", BigInteger),
    Column("doubt", _Long),  # why it has to be compared with the primary anew; on the primary: why all have to be with it
    Column(
        "edits", BigInteger, nullable=False, server_default=text("0")
    ),  # the newest of a secondary's own changes, as was noticed
    **_OPTIONS,
)
# What the secondaries reported, as the primary heard it.
reports = Table(
    "stsync_reports",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("state", String(32), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
    Column("quarantined", BigInteger, nullable=False),
    Column("lag_ms", Float),
    Column("last_full_sync", String(40)),
    Column("proven", Integer, nullable=False, server_default=text("0")),
    Column("equal_once", Integer, nullable=False, server_default=text("0")),
    # Of the newest full synchronization that it ever had installed; and whether it knows of an older one only by now.
    Column("installed_session", BigInteger, nullable=False, server_default=text("0")),
    Column("went_back", Integer, nullable=False, server_default=text("0")),
    Column("reason", _Long),
    Column("refused_json", _Long, nullable=False),
    Column("heard_ms", BigInteger, nullable=False),
    **_OPTIONS,
)
# By how much this node's clock is ahead of others', where they do not agree (common.freshness).
clocks = Table(
    "stsync_clocks",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("offset_ms", BigInteger, nullable=False),
    **_OPTIONS,
)
# Changes that could not be applied here (TRAPS 29).
quarantine = Table(
    "stsync_quarantine",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("epoch", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    _name("table_name", nullable=False),
    Column("kind", String(1), nullable=False),
    Column("columns_json", _Long, nullable=False),
    Column("key_columns", Integer, nullable=False, server_default=text("0")),
    Column("key_json", _Long, nullable=False),
    # The same for all keys of a row, however they are spelled; NULL where it may be of any row (consumer.spellings).
    Column("likeness", BigInteger),
    Column("row_json", _Long, nullable=False),
    Column("reason", _Long, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("first_ms", BigInteger, nullable=False),
    Column("last_ms", BigInteger, nullable=False),
    Column("requested", Integer, nullable=False, server_default=text("0")),
    Column("unchecked", Integer, nullable=False, server_default=text("0")),
    Column("held", Integer, nullable=False, server_default=text("0")),
    Index("stsync_quarantine_row", "table_name", "likeness"),
    sqlite_autoincrement=True,  # an id is never given again: people name changes by it
    **_OPTIONS,
)
# Full synchronizations, rehearsals and verifications: asked for here, and how far they are (common.sessions).
sessions = Table(
    "stsync_sessions",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("session", String(32), nullable=False),
    Column("mode", String(16), nullable=False),
    Column("whole", Integer, nullable=False, server_default=text("0")),
    _name("cause", nullable=False),
    Column("nodes_json", _Long),  # NULL: all secondaries
    Column("timeout_s", Float, nullable=False),
    Column("phase", String(16), nullable=False),
    Column("reason", _Long),
    Column("requested_ms", BigInteger, nullable=False),
    Column("began_ms", BigInteger),
    Column("ended_ms", BigInteger),
    Column("cancelled", Integer, nullable=False, server_default=text("0")),
    Column("epoch", BigInteger),
    Column("sequence", BigInteger),
    Column("progress_json", _Long, nullable=False),
    sqlite_autoincrement=True,
    **_OPTIONS,
)
# Messages that were refused, by kind and source (TRAPS 34).
refusals = Table(
    "stsync_refusals",
    metadata,
    Column("kind", String(32), primary_key=True),
    Column("source", String(63), primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("last_ms", BigInteger, nullable=False),
    Column("text", _Long, nullable=False),
    **_OPTIONS,
)
# What keeps the running service from getting further, by the name of its thread or link that has the trouble (common.troubles).
troubles = Table(
    "stsync_troubles",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("reason", _Long, nullable=False),
    Column("since_ms", BigInteger, nullable=False),
    **_OPTIONS,
)
# What was captured when triggers were installed, to notice a later change of the schema or of the triggers (TRAPS 6,
# common.capture_check).
captured = Table(
    "stsync_captured",
    metadata,
    Column("table_name", String(191), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("triggers", String(64), nullable=False),
    Column("standing", String(64), nullable=False),
    **_OPTIONS,
)
# SQLite only: holds a row while this transaction replays (TRAPS 5).
replaying = Table("stsync_replaying", metadata, Column("id", Integer, primary_key=True), info={"only": "sqlite"})
# SQLite only: keys of rows that stood in the way of others, by what they stood in the way of (common.dialects.sqlite_capture).
replacing = Table(
    "stsync_replacing",
    metadata,
    _name("table_name", nullable=False),
    Column("cause", _Long, nullable=False),
    Column("place", Integer),
    *(Column(f"k{place}", _Blob) for place in range(16)),  # no affinity: each value keeps its storage class
    Index("stsync_replacing_cause", "table_name", "cause"),
    info={"only": "sqlite"},
)


def waiting(connection: Connection) -> int:
    """How many rows of the outbox hold changes that the journal has not; SQLite's triggers may leave some that hold none."""
    has_it = exists().where(outbox.c.id.between(taken.c.first_id, taken.c.last_id))
    found = select(func.count()).select_from(outbox).where(outbox.c.row_count > 0, ~has_it)
    return int(connection.execute(found).scalar_one())


def tables_of(dialect: str) -> list[Table]:
    """Those that a database of this kind has."""
    return [table for table in metadata.sorted_tables if table.info.get("only", dialect) == dialect]
