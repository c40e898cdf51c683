"""Bodies sealed for the cluster: AES-256-GCM under a rotating data key that travels with them, wrapped.

A sealed body is self-contained: version (1 byte), length of the wrapped data key (2 bytes, big-endian), the
wrapped data key, nonce (12 bytes), ciphertext with tag. What stands before the nonce is authenticated with
the caller's data.
"""

import os
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.errors import MessageRefused, Misconfigured
from common.trust.certificates import Certificate
from common.trust.keys import (
    CLUSTER_KINDS,
    UnwrappingKey,
    WrappingKey,
    as_unwrapping_key,
    as_wrapping_key,
    read_certificates,
    read_private_key,
)
from common.trust.wrapping import DATA_KEY_BYTES, unwrap, wrap

MESSAGES_PER_KEY = 1 << 20  # random nonces: a repeat has odds of 2^-57; NIST SP 800-38D §8.3 allows 2^-32
REMEMBERED_KEYS = 32
MAX_SEALED_BYTES = 1 << 30
_VERSION = 1
_HEAD = struct.Struct(">BH")
_NONCE_BYTES = 12
_TAG_BYTES = 16
_WRONG_KIND = (
    f"the cluster pair must be {CLUSTER_KINDS}, since data keys are wrapped to it (Ed25519 can only sign); "
    "create one with `stsync pki init`"
)


@dataclass
class _DataKey:
    head: bytes
    cipher: AESGCM = field(repr=False)
    since: float
    messages: int = 0


class Sealer:
    """Seals bodies; safe to use from several threads.

    A data key is used for `rotate_after_s` seconds of `clock` or `rotate_after_messages` bodies, whichever
    ends first.
    """

    def __init__(
        self,
        cluster_key: WrappingKey,
        rotate_after_s: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        rotate_after_messages: int = MESSAGES_PER_KEY,
    ) -> None:
        self._cluster_key = cluster_key
        self._rotate_after_s = rotate_after_s
        self._rotate_after_messages = rotate_after_messages
        self._clock = clock
        self._lock = threading.Lock()
        self._current: _DataKey | None = None

    def seal(self, plain: bytes, aad: bytes) -> bytes:
        """Seal a body; `aad` is authenticated but not contained, and must be given to `open` again."""
        with self._lock:
            data_key = self._data_key()
            data_key.messages += 1
        nonce = os.urandom(_NONCE_BYTES)
        return b"".join((data_key.head, nonce, data_key.cipher.encrypt(nonce, plain, data_key.head + aad)))

    def _data_key(self) -> _DataKey:
        now = self._clock()
        current = self._current
        if (
            current is not None
            and now - current.since < self._rotate_after_s
            and current.messages < self._rotate_after_messages
        ):
            return current
        secret = os.urandom(DATA_KEY_BYTES)
        wrapped = wrap(self._cluster_key, secret)
        fresh = _DataKey(_HEAD.pack(_VERSION, len(wrapped)) + wrapped, AESGCM(secret), since=now)
        self._current = fresh
        return fresh


class Opener:
    """Opens sealed bodies with the cluster's private key; safe to use from several threads.

    Remembers the data keys of the last senders and rotations, since unwrapping costs far more than opening.
    """

    def __init__(self, cluster_key: UnwrappingKey) -> None:
        self._cluster_key = cluster_key
        self._lock = threading.Lock()
        self._remembered: OrderedDict[bytes, AESGCM] = OrderedDict()

    def open(self, sealed: bytes, aad: bytes) -> bytes:
        """The body again. Raises MessageRefused("seal") whatever comes: malformed, altered, not ours."""
        head, nonce, ciphertext = _split(sealed)
        with self._lock:
            cipher = self._remembered.get(head)
        if cipher is None:
            cipher = AESGCM(unwrap(self._cluster_key, head[_HEAD.size :]))
        try:
            plain = cipher.decrypt(nonce, ciphertext, head + aad)
        except InvalidTag as exc:
            raise MessageRefused("seal", "the sealed body was altered, or belongs to another message") from exc
        self._remember(head, cipher)  # only now: what does not open must not drive out what does
        return plain

    def _remember(self, head: bytes, cipher: AESGCM) -> None:
        with self._lock:
            self._remembered[head] = cipher
            self._remembered.move_to_end(head)
            while len(self._remembered) > REMEMBERED_KEYS:
                self._remembered.popitem(last=False)


def load_cluster_pair(certificate_path: Path, key_path: Path) -> tuple[WrappingKey, UnwrappingKey]:
    """The cluster's public and private key (`Cluster.Crypto.Alias`), the same on every node.

    The certificate's issuer and dates are not looked at: the pair proves nobody's identity, and its expiry
    must not stop replication. Raises Misconfigured naming the file: missing, unreadable, not PEM, encrypted,
    an unsupported kind of key, or the two files do not belong together.
    """
    try:
        certificate = Certificate.parse(read_certificates(certificate_path)[0])
    except MessageRefused as exc:
        raise Misconfigured(f"{certificate_path}: {exc}") from exc
    public_key = as_wrapping_key(certificate.key)
    if public_key is None:
        raise Misconfigured(f"{certificate_path}: {_WRONG_KIND}")
    private_key = as_unwrapping_key(read_private_key(key_path))
    if private_key is None:
        raise Misconfigured(f"{key_path}: {_WRONG_KIND}")
    if private_key.public_key() != public_key:
        raise Misconfigured(
            f"{key_path}: is not the private key of the cluster certificate {certificate_path}; "
            "copy both files from the same `stsync pki init`"
        )
    return public_key, private_key


def _split(sealed: bytes) -> tuple[bytes, bytes, bytes]:
    if not _HEAD.size <= len(sealed) <= MAX_SEALED_BYTES:
        raise _malformed()
    version, length = _HEAD.unpack_from(sealed)
    if version != _VERSION:
        raise MessageRefused("seal", f"the body is sealed in form {version}; this release opens form {_VERSION}")
    body = _HEAD.size + length
    if len(sealed) < body + _NONCE_BYTES + _TAG_BYTES:
        raise _malformed()
    return sealed[:body], sealed[body : body + _NONCE_BYTES], sealed[body + _NONCE_BYTES :]


def _malformed() -> MessageRefused:
    return MessageRefused("seal", "the sealed body is incomplete or malformed")
