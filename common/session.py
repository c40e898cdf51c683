"""What is said in a session: one full synchronization, its rehearsal, or a verification (DESIGN §8). Pure.

The primary speaks on the exchange of sessions, in messages of kind `session` that are numbered from 1; the first one, `Begin`, also
follows the batch at whose position the session stands, in the queue of the log. The nodes answer in messages of kind `answer`, which
each of them numbers from 1. A message's header holds the session's id (`previous`) and the number (`sequence`), so both are signed.
Whoever finds a number missing asks for it again; what comes twice is dropped.

1. Begin      the position, and of each table its columns, its key and into how many buckets its rows are told apart
   Ready      a node has paused there (or, to verify, has taken a snapshot there), or says why it takes no part
2. Manifest   of each table the number of its rows and a digest over all of them
   Differ     the tables in which a node has something else, and those of them in which it has no rows at all
3. Buckets    the digests of such a table's buckets
   Want       in which of them a node has something else
4. Rows       the keys of all rows in such buckets, and the digest of each
   Lack       which of these rows a node wants
5. Chunk      rows that somebody wants; once for all
6. End        all is sent
   Done       what became of it on a node
"""

import secrets
from enum import StrEnum
from typing import Annotated, Final

import msgspec

from common.bounds import NO_NUL, Hash, Natural, Sentence
from common.changes import MAX_NAME, printable
from common.errors import MessageRefused

ID_BYTES: Final = 16
ROWS_A_BUCKET: Final = 32  # a differing row costs the digests of so many, and a bucket's digest stands for so many
MOST_BUCKETS: Final = 1 << 20
KEYS_TOLD: Final = 20  # of rows that are missing, too many or different, a table
_KEY_CHARACTERS: Final = 200
DIGESTS: Final = 2  # how digests are made and rows told apart; to be raised with any change of it
TableName = Annotated[str, msgspec.Meta(max_length=MAX_NAME, pattern=NO_NUL)]
Definition = Annotated[str, msgspec.Meta(max_length=1 << 20, pattern=NO_NUL)]
Place = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]


class Mode(StrEnum):
    """What a session is for."""

    SYNC = "sync"
    REHEARSE = "rehearse"
    VERIFY = "verify"


class Phase(StrEnum):
    """How far a session has come, as a whole or on one node (DESIGN §8)."""

    REQUESTED = "requested"
    PAUSING = "pausing"
    MANIFEST = "manifest"
    CHUNKS = "chunks"
    INSTALLING = "installing"
    RESUMED = "resumed"
    FAILED = "failed"

    @property
    def over(self) -> bool:
        """Whether nothing more happens."""
        return self in (Phase.RESUMED, Phase.FAILED)


class Result(StrEnum):
    """What became of a session on one node (INTERFACE)."""

    DONE = "done"
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"


class _Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="is"):
    pass


class ColumnShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A synchronized column: its name, and the engine's own name of its type."""

    name: TableName
    type: Definition


class TableShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A listed table on the primary; the first `key` of its columns are its key, in key order."""

    name: TableName
    columns: Annotated[tuple[ColumnShape, ...], msgspec.Meta(max_length=32_767)]
    key: Annotated[int, msgspec.Meta(ge=1, le=32_767)]
    buckets: Annotated[int, msgspec.Meta(ge=1, le=MOST_BUCKETS)]
    where: Definition | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)


class Begin(_Said, frozen=True, tag="begin"):
    """A session begins, for these nodes, at this position of the log. `number` rises from one session to the next. `careful`: no row
    of a node is to be changed or deleted; who would have to do that fails. `digests`: the primary's DIGESTS."""

    number: Natural
    mode: Mode
    full: bool
    nodes: tuple[TableName, ...]
    sequence: Natural
    hash: Hash
    tables: Annotated[tuple[TableShape, ...], msgspec.Meta(max_length=100_000)]
    careful: bool = False
    digests: Natural = DIGESTS


class TableDigest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A table's number of rows and the digest over all of them."""

    rows: Natural
    digest: Hash


class Manifest(_Said, frozen=True, tag="manifest"):
    """The tables of Begin, in its order."""

    tables: tuple[TableDigest, ...]


class Buckets(_Said, frozen=True, tag="buckets"):
    """Digests of a table's buckets from `first` on, `width` bytes each; zeros where the primary has no rows."""

    table: Place
    first: Place
    width: Annotated[int, msgspec.Meta(ge=1, le=32)]
    digests: bytes

    def digest_of(self, place: int) -> bytes:
        """That of a bucket, one of these."""
        return self.digests[(place - self.first) * self.width :][: self.width]


class Rows(_Said, frozen=True, tag="rows"):
    """All rows of these buckets of a table: their keys, as changes.Frame has those of a `delete`, and a digest of each, one after
    the other. `part` only rises; a part may be several of these, of which `last` is the last."""

    part: Natural
    table: Place
    buckets: tuple[Place, ...]
    count: Natural
    keys: str
    digests: bytes
    last: bool


class Chunk(_Said, frozen=True, tag="chunk"):
    """Rows of a table, as changes.Frame has those of an `insert`; of which part, or 0 where whole tables are sent. `more`: the text
    goes on in the next chunk."""

    part: Natural
    table: Place
    count: Natural
    rows: str
    more: bool = False


class End(_Said, frozen=True, tag="end"):
    """Everything has been sent."""


class Cancel(_Said, frozen=True, tag="cancel"):
    """The session ends without a change, for the nodes that have not installed yet. It is not numbered."""

    reason: Sentence


class Alive(_Said, frozen=True, tag="alive"):
    """The primary still works at it. `sent`: the number of its last message; `heard`: of each node's answers, up to which it has them
    all. It is not numbered itself."""

    sent: Natural
    heard: dict[TableName, Natural]


class Ready(_Said, frozen=True, tag="ready"):
    """A node stands at this sequence of the log and waits; or it does not take part, and says why. `again`: another position may
    suit it."""

    sequence: Natural
    refused: Sentence | None = None
    again: bool = False


class Differ(_Said, frozen=True, tag="differ"):
    """The places in the manifest of tables that differ on a node; `whole`: those of them that it wants whole, for it has no rows."""

    tables: tuple[Place, ...]
    whole: tuple[Place, ...]


class Want(_Said, frozen=True, tag="want"):
    """Which buckets of a table differ: a bit each, the lowest bit of the first byte first."""

    table: Place
    mask: bytes


class Lack(_Said, frozen=True, tag="lack"):
    """Which rows of a part a node wants: a bit each, as in Want, in the order of Rows."""

    part: Natural
    mask: bytes


class Progress(_Said, frozen=True, tag="progress"):
    """How far a node is; `received`: up to which number it has all messages. It is not numbered."""

    phase: Phase
    received: Natural
    rows: Natural
    again: Natural | None = None


class TableCompared(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a table differs on a node: numbers of rows, and some keys of each sort, as the database shows them."""

    table: TableName
    missing: Natural = 0
    extra: Natural = 0
    different: Natural = 0
    missing_keys: tuple[str, ...] = ()
    extra_keys: tuple[str, ...] = ()
    different_keys: tuple[str, ...] = ()


class Done(_Said, frozen=True, tag="done"):
    """How it ended on a node: what was compared or written, of tables in which anything was; how many rows it received."""

    result: Result
    reason: Sentence | None
    tables: tuple[TableCompared, ...] = ()
    rows: Natural = 0
    seconds: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0


Said = Begin | Manifest | Buckets | Rows | Chunk | End | Cancel | Alive
Answer = Ready | Differ | Want | Lack | Progress | Done
_said: Final[msgspec.msgpack.Decoder[Said]] = msgspec.msgpack.Decoder(Said)
_answer: Final[msgspec.msgpack.Decoder[Answer]] = msgspec.msgpack.Decoder(Answer)


def shown_key(text: str) -> str:
    """A row's key, from its JSON text, as it is told."""
    return printable(text[:_KEY_CHARACTERS])


def new_id() -> bytes:
    """A session's id, never used before."""
    return secrets.token_bytes(ID_BYTES)


def parse_said(body: bytes) -> Said:
    """What the primary says; raises MessageRefused (malformed)."""
    try:
        return _said.decode(body)
    except ValueError as exc:
        raise MessageRefused("malformed", "a session's message that cannot be read") from exc


def parse_answer(body: bytes) -> Answer:
    """What a node answers; raises MessageRefused (malformed)."""
    try:
        return _answer.decode(body)
    except ValueError as exc:
        raise MessageRefused("malformed", "an answer in a session that cannot be read") from exc


def buckets_for(rows: int) -> int:
    """Into how many buckets so many rows are told apart."""
    return max(1, min(MOST_BUCKETS, rows // ROWS_A_BUCKET))


def mask_of(places: "set[int] | list[int]", size: int) -> bytes:
    """A bit for each of `size` places: set where it is one of these."""
    bits = bytearray((size + 7) // 8)
    for place in places:
        bits[place >> 3] |= 1 << (place & 7)
    return bytes(bits)


def places_in(mask: bytes, size: int) -> list[int]:
    """The places whose bits are set, below `size`, ascending."""
    return [place for place in range(min(size, 8 * len(mask))) if mask[place >> 3] >> (place & 7) & 1]
