"""Keys and certificates for clusters without a PKI of their own: a CA, the cluster pair, the nodes'."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import MessageRefused, Misconfigured
from common.trust.certificates import Certificate, is_node_name
from common.trust.keys import (
    NODE_KINDS,
    SigningKey,
    VerifyingKey,
    as_signing_key,
    read_certificates,
    read_private_key,
)
from common.trust.path import check_issuer

CA_CERTIFICATE = "ca.pem"
CA_KEY = "ca.key"
CLUSTER_CERTIFICATE = "cluster.pem"
CLUSTER_KEY = "cluster.key"
CA_DAYS = 3653
CLUSTER_DAYS = 3653
NODE_DAYS = 825
SKEW = timedelta(minutes=5)  # certificates start this much earlier, for nodes whose clocks are behind
_COMMON_NAME_LENGTH = 64  # X.520 ub-common-name
_NAME_RULE = "letters, digits, '_', '.' and '-', beginning with a letter or digit, at most 63"
_PRIVATE = 0o600
_PUBLIC = 0o644


@dataclass(frozen=True)
class _File:
    path: Path
    content: bytes = field(repr=False)
    mode: int


@dataclass(frozen=True)
class _Issuer:
    name: x509.Name
    key: SigningKey = field(repr=False)
    not_after: datetime


def init_cluster(cluster: str, out: Path) -> None:
    """Create a cluster's CA (`ca.*`) and cluster pair (`cluster.*`), each `.pem` and `.key`, in `out`.

    The cluster certificate can never pass for a node's: its key usage is key agreement only, and its name
    cannot be a node's. Raises Misconfigured naming the file: one of the four exists already (nothing is
    overwritten), the directory cannot be written; or naming the option when `cluster` is not a valid name.
    """
    _check_name("--cluster", cluster)
    ca_key = Ed25519PrivateKey.generate()
    name = _name(cluster, "CA")
    issuer = _Issuer(name, ca_key, not_after=_now() + timedelta(days=CA_DAYS))
    authority = (
        _draft(name, ca_key.public_key(), issuer, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
    )
    cluster_key = generate_private_key(SECP256R1())
    pair = (
        _draft(_name(cluster, "cluster"), cluster_key.public_key(), issuer, CLUSTER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(key_agreement=True), critical=True)
    )
    _create(
        out,
        (
            _File(out / CA_KEY, _key_pem(ca_key), _PRIVATE),
            _File(out / CA_CERTIFICATE, _signed(authority, issuer), _PUBLIC),
            _File(out / CLUSTER_KEY, _key_pem(cluster_key), _PRIVATE),
            _File(out / CLUSTER_CERTIFICATE, _signed(pair, issuer), _PUBLIC),
        ),
        directory_mode=0o700,
    )


def issue_node(ca_dir: Path, node: str, out: Path) -> None:
    """Create the private key and certificate of a node (`NODE.key`, `NODE.pem`) in `out`, made if missing.

    `ca_dir` holds `ca.pem` and `ca.key`. The certificate ends with the CA's at the latest. Raises
    Misconfigured naming the file: CA files missing, unreadable, not belonging together, no CA's or expired;
    one of the two files exists already; the directory cannot be written; or naming the option when `node` is
    not a valid name.
    """
    _check_name("--node", node)
    issuer = _load_issuer(ca_dir)
    key = Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
    certificate = (
        _draft(subject, key.public_key(), issuer, NODE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(node)]), critical=False)
    )
    _create(
        out,
        (
            _File(out / f"{node}.key", _key_pem(key), _PRIVATE),
            _File(out / f"{node}.pem", _signed(certificate, issuer), _PUBLIC),
        ),
        directory_mode=0o755,
    )


def _load_issuer(ca_dir: Path) -> _Issuer:
    certificate_path, key_path = ca_dir / CA_CERTIFICATE, ca_dir / CA_KEY
    try:
        certificate = Certificate.parse(read_certificates(certificate_path)[0])
        check_issuer(certificate)
        certificate.check_dates(_now())
    except MessageRefused as exc:
        raise Misconfigured(f"{certificate_path}: {exc}") from exc
    key = as_signing_key(read_private_key(key_path))
    if key is None:
        raise Misconfigured(f"{key_path}: this kind or size of key cannot issue certificates here; it must be {NODE_KINDS}")
    if key.public_key() != certificate.key:
        raise Misconfigured(
            f"{key_path}: is not the private key of {certificate_path}; both must be of one `stsync pki init`"
        )
    return _Issuer(certificate.subject, key, certificate.not_after)


def _draft(subject: x509.Name, public_key: VerifyingKey, issuer: _Issuer, days: int) -> x509.CertificateBuilder:
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(min(now + timedelta(days=days), issuer.not_after))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    )


def _signed(draft: x509.CertificateBuilder, issuer: _Issuer) -> bytes:
    key = issuer.key
    algorithm: SHA256 | SHA384 | None = SHA256()
    if isinstance(key, Ed25519PrivateKey):
        algorithm = None  # the hash is part of Ed25519
    elif isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP384R1):
        algorithm = SHA384()
    return draft.sign(key, algorithm).public_bytes(Encoding.PEM)


def _usage(
    *,
    digital_signature: bool = False,
    key_agreement: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=key_agreement,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _name(cluster: str, what: str) -> x509.Name:
    """`CLUSTER WHAT` within the length of a common name; the space keeps it from ever being a node's name."""
    room = _COMMON_NAME_LENGTH - len(what) - 1
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{cluster[:room]} {what}")])


def _key_pem(key: SigningKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _check_name(option: str, name: str) -> None:
    if not is_node_name(name):
        raise Misconfigured(f"{option} {name!r}: not a valid name; use {_NAME_RULE} characters")


def _create(out: Path, files: Sequence[_File], *, directory_mode: int) -> None:
    """Write all the files or none, and only where nothing was."""
    try:
        out.mkdir(mode=directory_mode, parents=True, exist_ok=True)
    except OSError as exc:
        raise Misconfigured(f"{out}: the directory cannot be made: {exc.strerror}; choose another with --out") from exc
    written: list[Path] = []
    for file in files:
        try:
            _write_new(file, written)
        except OSError as exc:
            for path in written:
                path.unlink(missing_ok=True)
            if isinstance(exc, FileExistsError):
                raise Misconfigured(
                    f"{file.path}: exists already and is never overwritten; choose another directory with "
                    "--out, or move the file away"
                ) from exc
            raise Misconfigured(f"{file.path}: cannot be written: {exc.strerror}; nothing was left behind") from exc


def _write_new(file: _File, written: list[Path]) -> None:
    # The mode is given at creation: a private key must not be readable by others for even a moment.
    descriptor = os.open(file.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, file.mode)
    written.append(file.path)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(file.content)
        stream.flush()
        os.fsync(stream.fileno())


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
