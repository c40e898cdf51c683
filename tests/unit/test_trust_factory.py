"""Makers of keys and certificates, good and bad, for the tests of trust."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256, HashAlgorithm
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from common.errors import MessageRefused
from common.trust.authorities import Authorities
from common.trust.certificates import Certificate
from common.trust.keys import SigningKey

NODE_KEYS = ("ed25519", "p256", "p384", "rsa2048")
CLUSTER_KEYS = ("p256", "p384", "rsa2048")


@cache
def key(kind: str, number: int = 0) -> SigningKey:
    """The same key for the same arguments, since RSA keys are slow to make."""
    del number
    if kind == "ed25519":
        return Ed25519PrivateKey.generate()
    if kind.startswith("rsa"):
        return rsa.generate_private_key(65537, int(kind.removeprefix("rsa")))
    curves = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1(), "k256": ec.SECP256K1()}
    return ec.generate_private_key(curves[kind])


def usage(*, sign: bool = False, agree: bool = False, certify: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=agree,
        key_cert_sign=certify,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


@dataclass(frozen=True)
class Made:
    """A certificate with its private key."""

    certificate: x509.Certificate
    key: SigningKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def parsed(self) -> Certificate:
        return Certificate.parse(self.der)


def make(
    name: str | None,
    issuer: Made | None = None,
    *,
    using: SigningKey | None = None,
    dns: Sequence[str] = (),
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    valid: tuple[timedelta, timedelta] = (timedelta(hours=-1), timedelta(hours=1)),
    algorithm: HashAlgorithm | None = None,
) -> Made:
    """A certificate; self-signed without an issuer. `valid` is relative to now."""
    own = using or Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    signer = issuer.key if issuer else own
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + valid[0])
        .not_valid_after(now + valid[1])
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    if dns:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(one) for one in dns]), False)
    if isinstance(signer, Ed25519PrivateKey):
        return Made(builder.sign(signer, None), own)
    return Made(builder.sign(signer, algorithm or SHA256()), own)  # type: ignore[arg-type]


def make_ca(
    name: str = "bank CA",
    issuer: Made | None = None,
    *,
    using: SigningKey | None = None,
    path_length: int | None = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    valid: tuple[timedelta, timedelta] = (timedelta(hours=-1), timedelta(hours=1)),
) -> Made:
    constraints = x509.BasicConstraints(ca=True, path_length=path_length)
    return make(name, issuer, using=using, extensions=((constraints, True), *extensions), valid=valid)


def pem(*made: Made) -> bytes:
    return b"".join(one.certificate.public_bytes(Encoding.PEM) for one in made)


def key_pem(private_key: SigningKey, passphrase: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def trusting(*authorities: Made) -> Authorities:
    return Authorities([one.parsed for one in authorities])


def accepted(authorities: Authorities, *chain: Made, at: datetime | None = None) -> str:
    return authorities.verify([one.der for one in chain], at).node


def refused(authorities: Authorities, *chain: Made, why: str, at: datetime | None = None) -> None:
    with pytest.raises(MessageRefused, match=why) as caught:
        authorities.verify([one.der for one in chain], at)
    assert caught.value.kind == "certificate"


def test_the_makers_make_what_they_say() -> None:
    ca = make_ca()
    node = make("st1", ca, dns=["st1"])
    node.certificate.verify_directly_issued_by(ca.certificate)
    assert node.parsed.node_name() == "st1"
