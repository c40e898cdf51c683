"""Who this node is towards the others: its private key, and the certificates sent with what it signs."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature

from common.errors import MessageRefused, Misconfigured
from common.trust.certificates import Certificate
from common.trust.keys import NODE_KINDS, SigningKey, as_signing_key, read_certificates, read_private_key
from common.trust.path import MAX_CHAIN, check_node


@dataclass(frozen=True)
class Identity:
    """A node's name, its private key, its chain as DER (its own certificate, then its issuers), and when its own expires."""

    node: str
    key: SigningKey = field(repr=False)
    chain: tuple[bytes, ...] = field(repr=False)
    not_after: datetime = field(repr=False)


def load_identity(key_path: Path, certificate_path: Path, node: str) -> Identity:
    """Read and check what `node` signs with, so that a mistake shows at start and not at other nodes.

    The certificate file may hold the issuers after the node's certificate; a self-signed one among them is
    left out, since receivers have it from their own files or do not trust it. Raises Misconfigured naming the
    file: missing, unreadable, not PEM, encrypted, an unsupported kind of key, key and certificate that
    differ, a certificate that is another node's, no node's at all, expired or not yet valid. Whether the
    receivers' authorities vouch for it is `Authorities.verify`'s.
    """
    private_key = as_signing_key(read_private_key(key_path))
    if private_key is None:
        raise Misconfigured(f"{key_path}: this kind or size of key is not accepted for a node; it must be {NODE_KINDS}")
    try:
        first, *issuers = (Certificate.parse(der) for der in read_certificates(certificate_path))
        check_node(first)
        first.check_dates(datetime.now(UTC))
    except MessageRefused as exc:
        raise Misconfigured(f"{certificate_path}: {exc}") from exc
    if private_key.public_key() != first.key:
        raise Misconfigured(
            f"{certificate_path}: its first certificate {first.title} does not belong to the private key "
            f"in {key_path}; the node's own certificate must come first, and both files must be of one issue"
        )
    if first.node_name() != node:
        raise Misconfigured(
            f"{certificate_path}: is the certificate of node {first.node_name()!r}, but this is {node!r} "
            f"(node.name); name this node's own, or issue one: stsync pki issue --node {node}"
        )
    chain = (first.der, *(one.der for one in issuers if not _is_self_signed(one)))
    if len(chain) > MAX_CHAIN:
        raise Misconfigured(
            f"{certificate_path}: {len(chain)} certificates; other nodes accept chains of at most {MAX_CHAIN}"
        )
    return Identity(node, private_key, chain, first.not_after)


def _is_self_signed(certificate: Certificate) -> bool:
    try:
        certificate.raw.verify_directly_issued_by(certificate.raw)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
