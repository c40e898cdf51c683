"""Which kinds of key serve for what, and how key files are read, so that every side accepts the same."""

from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from common.errors import Misconfigured

SigningKey: TypeAlias = Ed25519PrivateKey | EllipticCurvePrivateKey | RSAPrivateKey
VerifyingKey: TypeAlias = Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey
WrappingKey: TypeAlias = EllipticCurvePublicKey | RSAPublicKey
UnwrappingKey: TypeAlias = EllipticCurvePrivateKey | RSAPrivateKey

RSA_BITS = range(2048, 8192 + 1)  # below: breakable; above: one verification costs a receiver milliseconds
NODE_KINDS = "Ed25519, EC P-256, EC P-384 or RSA of 2048 to 8192 bits"
CLUSTER_KINDS = "EC P-256, EC P-384 or RSA of 2048 to 8192 bits"
_CURVES = (SECP256R1, SECP384R1)


def as_verifying_key(key: object) -> VerifyingKey | None:
    """The key as one that may verify a node's signatures (NODE_KINDS), or None."""
    return key if isinstance(key, Ed25519PublicKey) else as_wrapping_key(key)


def as_signing_key(key: object) -> SigningKey | None:
    """The key as one that a node may sign with (NODE_KINDS), or None."""
    return key if isinstance(key, Ed25519PrivateKey) else as_unwrapping_key(key)


def as_wrapping_key(key: object) -> WrappingKey | None:
    """The key as one that data keys may be wrapped to (CLUSTER_KINDS), or None."""
    if isinstance(key, RSAPublicKey) and key.key_size in RSA_BITS:
        return key
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, _CURVES):
        return key
    return None


def as_unwrapping_key(key: object) -> UnwrappingKey | None:
    """The key as one that data keys may be unwrapped with (CLUSTER_KINDS), or None."""
    if isinstance(key, RSAPrivateKey) and key.key_size in RSA_BITS:
        return key
    if isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, _CURVES):
        return key
    return None


def may_issue(key: object) -> bool:
    """Whether a certification authority may hold such a key: what nodes may, and EC P-521."""
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP521R1):
        return True
    return as_verifying_key(key) is not None


def read_file(path: Path) -> bytes:
    """The content of a key or certificate file.

    Raises Misconfigured naming the file when it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise Misconfigured(f"{path}: no such file; correct the path, or create the file with `stsync pki`") from exc
    except OSError as exc:
        raise Misconfigured(f"{path}: cannot be read: {exc.strerror}; correct the path or its rights") from exc


def read_private_key(path: Path) -> object:
    """The private key of a PEM file, of whatever kind; the caller narrows it.

    Raises Misconfigured naming the file when it is missing, unreadable, not PEM, encrypted or of an unknown
    kind. The message never holds anything of the content.
    """
    data = read_file(path)
    try:
        return load_pem_private_key(data, password=None)
    except TypeError as exc:
        raise Misconfigured(
            f"{path}: the private key is encrypted; the service starts unattended and needs it without "
            f"a passphrase, protected by file rights: openssl pkey -in {path.name} -out NEW.key"
        ) from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise Misconfigured(
            f"{path}: holds no private key that can be read; it must be PEM (-----BEGIN PRIVATE KEY-----)"
        ) from exc


def read_certificates(path: Path) -> tuple[bytes, ...]:
    """The certificates of a PEM file as DER, in the file's order; at least one.

    Raises Misconfigured naming the file when it is missing, unreadable or holds no PEM certificate.
    """
    data = read_file(path)
    try:
        return tuple(one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(data))
    except (ValueError, x509.InvalidVersion) as exc:
        raise Misconfigured(
            f"{path}: holds no certificate that can be read; it must be PEM (-----BEGIN CERTIFICATE-----)"
        ) from exc
