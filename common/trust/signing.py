"""Signatures over exact bytes, and the encoding that makes several fields one unambiguous message."""

import struct

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP384R1,
    EllipticCurve,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from common.errors import MessageRefused
from common.trust.keys import SigningKey, VerifyingKey

_LENGTH = struct.Struct(">Q")
_PSS_SALT_BYTES = 32


def pae(domain: str, *parts: bytes) -> bytes:
    """Pre-authentication encoding: bytes that only this purpose with exactly these parts can yield.

    The number of parts with the domain, then each with its length in front; all numbers have eight bytes,
    big-endian. As in DSSE and PASETO, but without decimal digits to parse. `domain` separates uses of one
    key: a signature made for one says nothing in another.
    """
    pieces = [_LENGTH.pack(len(parts) + 1)]
    for part in (domain.encode(), *parts):
        pieces.append(_LENGTH.pack(len(part)))
        pieces.append(part)
    return b"".join(pieces)


def sign(key: SigningKey, message: bytes) -> bytes:
    """Sign: Ed25519; ECDSA with SHA-256 (P-256) or SHA-384 (P-384); RSA-PSS with SHA-256, salt 32 bytes."""
    if isinstance(key, Ed25519PrivateKey):
        return key.sign(message)
    if isinstance(key, EllipticCurvePrivateKey):
        return key.sign(message, _ecdsa(key.curve))
    return key.sign(message, _pss(), SHA256())


def verify(public_key: VerifyingKey, message: bytes, signature: bytes) -> None:
    """Check a signature made by `sign`; the kind of key alone decides the algorithm, never the message.

    Raises MessageRefused("signature"), whatever bytes come.
    """
    try:
        if isinstance(public_key, Ed25519PublicKey):
            public_key.verify(signature, message)
        elif isinstance(public_key, EllipticCurvePublicKey):
            public_key.verify(signature, message, _ecdsa(public_key.curve))
        else:
            public_key.verify(signature, message, _pss(), SHA256())
    except (InvalidSignature, ValueError) as exc:
        raise MessageRefused(
            "signature", "the signature is not the sender's over this message; it was altered or forged"
        ) from exc


def _ecdsa(curve: EllipticCurve) -> ECDSA:
    return ECDSA(SHA384() if isinstance(curve, SECP384R1) else SHA256())


def _pss() -> PSS:
    return PSS(mgf=MGF1(SHA256()), salt_length=_PSS_SALT_BYTES)
