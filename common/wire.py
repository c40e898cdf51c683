"""Messages as bytes: what is signed, what is sealed, and in which order a receiver checks (DESIGN §6, TRAPS 34).

    message   = magic · certificates · signature · payload        each length-prefixed
    payload   = header (MessagePack, in the clear) · sealed body
    signature = over PAE("stsync/v1", payload): cluster, kind, sender, audience, epoch, sequence, previous hash, times, body

A receiver 1. bounds the size, 2. splits the message, 3. checks the certificate against the authorities, 4. checks the
signature, 5. parses the header, 6. checks version, cluster, sender and audience, 7. opens the seal,
8. decompresses within a bound, 9. parses the body. Epoch, order and the hash chain are the gate's to judge, the sender's
role too (it depends on the kind); whether a message is fresh is common.freshness's. Whatever fails raises MessageRefused
and has changed nothing.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final, TypeVar

import msgspec
import zstandard

from common.bounds import NO_NUL, Hash, Milliseconds, Name, Natural, Said, Sentence
from common.errors import MessageRefused, Misconfigured
from common.trust.authorities import Authorities
from common.trust.authorities import Verified as Certified
from common.trust.identity import Identity
from common.trust.sealing import Opener, Sealer
from common.trust.signing import pae, sign, verify

VERSION: Final = 1
MAGIC: Final = b"stsync\x001"
DOMAIN: Final = "stsync/v1"
EVERYONE: Final = "*"
MAX_MESSAGE_BYTES: Final = 12 << 20  # a RabbitMQ 4 refuses above 16 MiB (TRAPS 17); a batch is 512 KiB or so
MAX_BODY_BYTES: Final = 16 << 20
_COMPRESS_ABOVE: Final = 200

Parsed = TypeVar("Parsed", bound=msgspec.Struct)


class MessageKind(StrEnum):
    """What a message carries."""

    BATCH = "batch"
    HEARTBEAT = "heartbeat"
    REPORT = "report"
    CATCH_UP = "catch_up"
    PAST_RETENTION = "past_retention"
    SESSION = "session"
    ANSWER = "answer"


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The signed, unsealed part of a message. Times are milliseconds since 1970; `expires_ms` 0 means never."""

    version: Natural
    kind: MessageKind
    cluster: Said
    sender: Said
    audience: Said
    epoch: Natural
    sequence: Natural
    previous: Hash
    issued_ms: Natural
    expires_ms: Natural
    first: bool = True
    last: bool = True


class Heartbeat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The primary lives: its head, and what its journal still has (TRAPS 9). `number` only rises within an epoch.

    Up to `published` the broker has confirmed every batch, and the primary will not publish it again by itself. Above
    `republished` it has published none twice so far; between the two it may have, after a lost connection.
    """

    number: Natural
    sequence: Natural
    hash: Hash
    journal_first: Natural
    published: Natural
    republished: Natural


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a secondary stands, said by itself. `number` only rises. `proven`: it was seen to be equal to the primary, and the log has
    led on from there; `equal_once`: it was at any time; `installed_session`: the number of
    the last full synchronization that it installed."""

    number: Natural
    state: Name
    epoch: Natural
    sequence: Natural
    hash: Hash
    quarantined: Natural
    lag_ms: Milliseconds | None
    last_full_sync: Annotated[str, msgspec.Meta(max_length=40, pattern=NO_NUL)] | None
    reason: Sentence | None
    refused: Annotated[dict[Name, Natural], msgspec.Meta(max_length=64)]
    proven: bool = False
    equal_once: bool = False
    installed_session: Natural = 0


class CatchUp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A secondary asks for batches from the journal: `first` and as many as `limit` after it."""

    number: Natural
    first: Natural
    limit: Natural


class PastRetention(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The primary cannot serve a catch-up: its journal begins at `journal_first`, its head is `sequence`."""

    number: Natural
    asked: Natural
    journal_first: Natural
    sequence: Natural


@dataclass(frozen=True)
class Verified:
    """A message whose signature, sender, cluster and audience hold; its body is still sealed."""

    header: Header
    sealed: bytes
    aad: bytes
    hash: bytes
    size: int


def message_hash(message: bytes) -> bytes:
    """What the next batch names as its predecessor: SHA-256 over the whole message."""
    return hashlib.sha256(message).digest()


class Writer:
    """Seals and signs as one node. Safe to share between threads."""

    def __init__(self, identity: Identity, sealer: Sealer, cluster: str, clock: Callable[[], float] | None = None) -> None:
        self._identity = identity
        self._sealer = sealer
        self._cluster = cluster
        self._clock = clock or time.time
        self._chain = b"".join(len(one).to_bytes(4, "big") + one for one in identity.chain)

    def write(
        self,
        kind: MessageKind,
        body: bytes,
        *,
        epoch: int,
        sequence: int = 0,
        previous: bytes = b"",
        audience: str = EVERYONE,
        expires_in_s: float = 0.0,
        first: bool = True,
        last: bool = True,
    ) -> bytes:
        """The message, ready to be published."""
        now = self._clock()
        if kind is MessageKind.BATCH and now > self._identity.not_after.timestamp():
            node, end = self._identity.node, self._identity.not_after
            raise Misconfigured(
                f"the certificate of node {node!r} expired at {end:%Y-%m-%d %H:%M:%S} UTC; nothing is lost: issue a new one "
                f"(stsync pki issue --node {node} --out a new directory), put it in its place and start the service again; or is this "
                "node's clock wrong?"
            )
        now_ms = int(now * 1000)
        header = Header(
            version=VERSION,
            kind=kind,
            cluster=self._cluster,
            sender=self._identity.node,
            audience=audience,
            epoch=epoch,
            sequence=sequence,
            previous=previous,
            issued_ms=now_ms,
            expires_ms=now_ms + int(expires_in_s * 1000) if expires_in_s else 0,
            first=first,
            last=last,
        )
        head = msgspec.msgpack.encode(header)
        payload = _sized(head) + self._sealer.seal(_compress(body), head)
        signature = sign(self._identity.key, pae(DOMAIN, payload))
        return MAGIC + _sized(self._chain) + _sized(signature) + payload


class Reader:
    """Checks and opens messages as one node. `roster` is who may speak at all."""

    def __init__(
        self,
        node: str,
        cluster: str,
        roster: tuple[str, ...],
        authorities: Authorities,
        opener: Opener,
    ) -> None:
        self._node = node
        self._cluster = cluster
        self._roster = frozenset(roster)
        self._authorities = authorities
        self._opener = opener

    def verify(self, message: bytes) -> Verified:
        """Steps 1 to 6; raises MessageRefused."""
        if len(message) > MAX_MESSAGE_BYTES:
            raise MessageRefused("size", f"a message of {len(message)} bytes is above the bound of {MAX_MESSAGE_BYTES}")
        if not message.startswith(MAGIC):
            raise MessageRefused("malformed", "bytes that are no message of stsync, or of a version not known here")
        chain, rest = _take(memoryview(message)[len(MAGIC) :])
        signature, payload = _take(rest)
        certificates = _chain(chain)
        certificate, expired = self._certificate(certificates)
        verify(certificate.public_key, pae(DOMAIN, bytes(payload)), bytes(signature))
        head, sealed = _take(payload)
        header = _parse(bytes(head), Header)
        if expired is not None:
            self._check_then(certificates, header, expired)
        self._check(header, certificate.node)
        return Verified(header, bytes(sealed), bytes(head), message_hash(message), len(message))

    def open(self, message: Verified) -> bytes:
        """Steps 7 and 8: the body in the clear; raises MessageRefused."""
        return _decompress(self._opener.open(message.sealed, message.aad))

    def _certificate(self, chain: tuple[bytes, ...]) -> tuple[Certified, MessageRefused | None]:
        """Who the chain speaks for; with the refusal where it only did so in the past."""
        try:
            return self._authorities.verify(chain), None
        except MessageRefused as exc:
            past = self._authorities.once(chain)
            if past is None:
                raise
            return past, exc

    def _check_then(self, chain: tuple[bytes, ...], header: Header, expired: MessageRefused) -> None:
        """A batch is for good, and its certificate is not: it must have been valid when the batch was signed."""
        if header.kind is not MessageKind.BATCH:
            raise expired
        try:
            self._authorities.verify(chain, datetime.fromtimestamp(header.issued_ms / 1000, UTC))
        except (ValueError, OverflowError, OSError) as exc:
            raise expired from exc

    def _check(self, header: Header, certified: str) -> None:
        if header.version != VERSION:
            raise MessageRefused("version", f"a message of version {header.version}; this node knows {VERSION}")
        if header.cluster != self._cluster:
            raise MessageRefused("cluster", f"a message of cluster {header.cluster!r}, not of {self._cluster!r}")
        if header.sender != certified:
            raise MessageRefused("sender", f"a message in the name of {header.sender!r}, signed by {certified!r}")
        if header.sender not in self._roster:
            raise MessageRefused("sender", f"{header.sender!r} is not in the roster")
        if header.audience not in (EVERYONE, self._node):
            raise MessageRefused("audience", f"a message for {header.audience!r}")


def parse_body(body: bytes, kind: type[Parsed]) -> Parsed:
    """Step 9 for control messages; raises MessageRefused (malformed)."""
    return _parse(body, kind)


def encode_body(body: msgspec.Struct) -> bytes:
    """A control message's body."""
    return msgspec.msgpack.encode(body)


def _parse(data: bytes, kind: type[Parsed]) -> Parsed:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except ValueError as exc:  # of msgspec, or bytes of a text that are no UTF-8
        raise MessageRefused("malformed", f"a message whose {kind.__name__.lower()} cannot be read") from exc


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _take(data: memoryview) -> tuple[memoryview, memoryview]:
    size = int.from_bytes(data[:4], "big")
    if len(data) < 4 + size:
        raise MessageRefused("malformed", "a message that ends in the middle")
    return data[4 : 4 + size], data[4 + size :]


def _chain(data: memoryview) -> tuple[bytes, ...]:
    chain = []
    while data:
        one, data = _take(data)
        chain.append(bytes(one))
        if len(chain) > 8:
            raise MessageRefused("malformed", "a message with more than eight certificates")
    return tuple(chain)


_RAW: Final = b"\x00"
_ZSTD: Final = b"\x01"


def _compress(body: bytes) -> bytes:
    if len(body) > _COMPRESS_ABOVE:
        packed = zstandard.compress(body, 1)
        if len(packed) < len(body):
            return _ZSTD + packed
    return _RAW + body


def _decompress(data: bytes) -> bytes:
    marker, body = data[:1], data[1:]
    if marker == _RAW:
        if len(body) > MAX_BODY_BYTES:
            raise MessageRefused("size", f"a body of {len(body)} bytes is above the bound of {MAX_BODY_BYTES}")
        return body
    if marker != _ZSTD:
        raise MessageRefused("malformed", "a body in a form not known here")
    try:
        announced = zstandard.frame_content_size(body)
        if not 0 <= announced <= MAX_BODY_BYTES:
            raise MessageRefused("size", f"a body that announces {announced} bytes; the bound is {MAX_BODY_BYTES}")
        plain: Any = zstandard.decompress(body, max_output_size=MAX_BODY_BYTES)
    except zstandard.ZstdError as exc:
        raise MessageRefused("malformed", "a body that cannot be decompressed") from exc
    return bytes(plain)
