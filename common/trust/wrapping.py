"""Data keys wrapped to the cluster's key pair: only a holder of the cluster key can unwrap them."""

from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDH,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.errors import MessageRefused
from common.trust.keys import UnwrappingKey, WrappingKey
from common.trust.signing import pae

DATA_KEY_BYTES = 32
_DOMAIN = "stsync data key v1"


def wrap(key: WrappingKey, data_key: bytes) -> bytes:
    """Wrap a data key: RSA-OAEP with SHA-256, or ephemeral ECDH with HKDF-SHA256 and AES key wrap.

    With EC the result is the ephemeral public point (uncompressed) and then the wrapped key; the key that
    wraps is bound to both public points.
    """
    if isinstance(key, EllipticCurvePublicKey):
        ephemeral = generate_private_key(key.curve)
        point = _point(ephemeral.public_key())
        return point + aes_key_wrap(_agreed_key(ephemeral.exchange(ECDH(), key), point, _point(key)), data_key)
    return key.encrypt(data_key, _oaep())


def unwrap(key: UnwrappingKey, wrapped: bytes) -> bytes:
    """The data key again. Raises MessageRefused("seal"), whatever bytes come."""
    try:
        data_key = _agree(key, wrapped) if isinstance(key, EllipticCurvePrivateKey) else key.decrypt(wrapped, _oaep())
    except (ValueError, InvalidUnwrap) as exc:
        raise _refuse() from exc
    if len(data_key) != DATA_KEY_BYTES:
        raise _refuse()
    return data_key


def _agree(key: EllipticCurvePrivateKey, wrapped: bytes) -> bytes:
    own = _point(key.public_key())
    point, inner = wrapped[: len(own)], wrapped[len(own) :]
    # A point off the curve would let its sender learn the private key; from_encoded_point refuses it.
    ephemeral = EllipticCurvePublicKey.from_encoded_point(key.curve, point)
    return aes_key_unwrap(_agreed_key(key.exchange(ECDH(), ephemeral), point, own), inner)


def _agreed_key(shared: bytes, ephemeral: bytes, static: bytes) -> bytes:
    info = pae(_DOMAIN, ephemeral, static)
    return HKDF(algorithm=SHA256(), length=DATA_KEY_BYTES, salt=None, info=info).derive(shared)


def _point(key: EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _oaep() -> OAEP:
    return OAEP(mgf=MGF1(algorithm=SHA256()), algorithm=SHA256(), label=_DOMAIN.encode())


def _refuse() -> MessageRefused:
    return MessageRefused("seal", "the data key was not wrapped to this cluster's certificate, or was altered")
