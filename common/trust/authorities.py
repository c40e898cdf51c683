"""Who may issue node certificates; asked for every message, so verified chains are remembered."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.hashes import SHA256

from common.errors import Fault, MessageRefused, Misconfigured
from common.trust import path as rules
from common.trust.certificates import Certificate
from common.trust.keys import VerifyingKey, as_verifying_key, read_certificates

REMEMBERED_CHAINS = 64


@dataclass(frozen=True)
class Verified:
    """A node that the authorities vouch for.

    `fingerprint` is the SHA-256 of its certificate (DER), `not_after` the moment from which this chain is
    refused: the earliest end of validity in it, the authority's included.
    """

    node: str
    public_key: VerifyingKey = field(repr=False)
    fingerprint: bytes
    not_after: datetime


@dataclass(frozen=True)
class _Remembered:
    verified: Verified
    not_before: datetime  # the latest start of validity in the chain

    def is_valid(self, at: datetime) -> bool:
        return self.not_before <= at <= self.verified.not_after


class Authorities:
    """The certification authorities of `trust.authorities`; safe to use from several threads.

    The rules are those of `common.trust.path`. Whether the verified node is in the roster is the caller's
    question.
    """

    def __init__(self, certificates: Sequence[Certificate]) -> None:
        self._certificates = tuple(certificates)
        self._lock = threading.Lock()
        self._remembered: OrderedDict[tuple[bytes, ...], _Remembered] = OrderedDict()

    @classmethod
    def from_files(cls, paths: Sequence[Path]) -> Self:
        """The authorities of these PEM files, each with one certificate or more.

        Raises Misconfigured naming the file when it cannot be read or holds a certificate that may not issue
        others. An authority that has expired is no error here: it may stand beside its successor, and refuses
        every chain of its own.
        """
        certificates: list[Certificate] = []
        for path in paths:
            for der in read_certificates(path):
                try:
                    certificate = Certificate.parse(der)
                    rules.check_issuer(certificate)
                except MessageRefused as exc:
                    raise Misconfigured(f"{path}: cannot serve as an authority (trust.authorities): {exc}") from exc
                certificates.append(certificate)
        if not certificates:
            raise Misconfigured("trust.authorities: names no file; without an authority no node can be trusted")
        return cls(certificates)

    def verify(self, chain: Sequence[bytes], at: datetime | None = None) -> Verified:
        """The node that a chain of DER certificates (the node's first) speaks for at `at` (aware; else now).

        A remembered chain costs microseconds; its dates are checked at every use. Raises
        MessageRefused("certificate") saying which certificate breaks which rule.
        """
        moment = datetime.now(UTC) if at is None else at
        key = tuple(chain)
        with self._lock:
            known = self._remembered.get(key)
            if known is not None and known.is_valid(moment):
                self._remembered.move_to_end(key)
                return known.verified
        fresh = self._examine(key, moment)
        with self._lock:
            self._remembered[key] = fresh
            self._remembered.move_to_end(key)
            while len(self._remembered) > REMEMBERED_CHAINS:
                self._remembered.popitem(last=False)
        return fresh.verified

    def once(self, chain: Sequence[bytes]) -> Verified | None:
        """The node that a chain spoke for until its own certificate expired; None where that is not why it does no more."""
        own = Certificate.parse(chain[0]) if chain else None
        if own is None or own.not_after >= datetime.now(UTC):
            return None
        return self.verify(chain, own.not_after)

    def _examine(self, chain: tuple[bytes, ...], at: datetime) -> _Remembered:
        path = rules.validate(chain, self._certificates, at)
        public_key = as_verifying_key(path[0].key)
        if public_key is None:
            raise Fault(f"the certificate {path[0].title} passed the rules with a key that cannot verify")
        verified = Verified(
            node=path[0].node_name(),
            public_key=public_key,
            fingerprint=path[0].raw.fingerprint(SHA256()),
            not_after=min(one.not_after for one in path),
        )
        return _Remembered(verified, not_before=max(one.not_before for one in path))
