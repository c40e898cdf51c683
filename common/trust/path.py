"""The rules by which a chain of certificates is a node's: pure, because cryptography's verifier knows fewer.

`cryptography.x509.verification` knows the Web PKI only: it refuses every chain with an Ed25519 authority and
demands names and key usages that a bank's own authority need not give. A chain here is short and ordered, so
the rules are few (RFC 5280 §6.1; what is not understood is refused):

1. The chain is the node's certificate, then its issuers, each the issuer of the one before; the last is
   issued by one of the configured authorities. What stands behind a configured authority is not looked at.
   Nothing is searched or fetched.
2. Every signature is checked from the authority down to the node, so that no unvouched key is ever used. Keys
   are Ed25519, EC P-256/P-384 (authorities: P-521 as well) or RSA of 2048 to 8192 bits; hashes are SHA-256 or
   better.
3. Every certificate, the authority's too, is valid at the time of the check.
4. An issuer is a CA (basicConstraints), may sign certificates (keyUsage, where present), is not restricted
   to purposes other than TLS (extendedKeyUsage), and its path length allows the issuers below it, self-issued
   ones included.
5. The node's certificate is of version 3, not a CA's, may sign (digitalSignature, where keyUsage is present)
   and serve as a TLS client or server (where extendedKeyUsage is present), and names one node.
6. Critical extensions that are not among these, and name constraints of any kind, are refused.

Revocation is not checked: a node is excluded by taking it out of the roster.
"""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.x509.oid import ExtendedKeyUsageOID

from common.errors import MessageRefused
from common.trust.certificates import Certificate
from common.trust.keys import NODE_KINDS, as_verifying_key, may_issue

MAX_CHAIN = 6  # the node's certificate and five issuers; real ones have one or two
_HASHES = (SHA256, SHA384, SHA512)
_PURPOSES = {
    ExtendedKeyUsageOID.CLIENT_AUTH,
    ExtendedKeyUsageOID.SERVER_AUTH,
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
}
_UNDERSTOOD = {
    x509.BasicConstraints.oid,
    x509.KeyUsage.oid,
    x509.ExtendedKeyUsage.oid,
    x509.SubjectAlternativeName.oid,
    x509.CertificatePolicies.oid,  # no policy is asked for, so any will do (RFC 5280 §6.1.1 c)
}


def validate(chain: Sequence[bytes], authorities: Sequence[Certificate], at: datetime) -> tuple[Certificate, ...]:
    """The path from the node's certificate up to and with the authority that vouches for it.

    Raises MessageRefused("certificate") saying which certificate breaks which rule.
    """
    if not 1 <= len(chain) <= MAX_CHAIN:
        raise _refuse(f"a chain of {len(chain)} certificates is not acceptable; 1 to {MAX_CHAIN} are")
    certificates = [Certificate.parse(der) for der in chain]
    presented = _below_authorities(certificates, authorities)
    issuer_name = presented[-1].issuer
    refusal = _refuse(
        f"the certificate {presented[-1].title} was issued by none of the authorities configured here (trust.authorities)"
    )
    for authority in authorities:  # one name may be there several times: with a new key, or with new dates
        if authority.subject != issuer_name:
            continue
        path = (*presented, authority)
        try:
            _check_path(path, at)
        except MessageRefused as exc:
            refusal = exc
        else:
            return path
    raise refusal


def _check_path(path: Sequence[Certificate], at: datetime) -> None:
    """Rules 2 to 6, from the authority down."""
    for index in reversed(range(1, len(path))):
        check_issuer(path[index], issuers_below=index - 1)
        path[index].check_dates(at)
        check_link(path[index - 1], path[index])
    check_node(path[0])
    path[0].check_dates(at)


def check_issuer(certificate: Certificate, issuers_below: int = 0) -> None:
    """Rules 2, 4 and 6 for an issuer with `issuers_below` between it and the node; dates are the caller's."""
    constraints = certificate.extension(x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        raise _refuse(f"{certificate.title} is not a certification authority's certificate and may issue none")
    usage = certificate.extension(x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        raise _refuse(f"the certificate {certificate.title} may not sign certificates by its key usage")
    if constraints.path_length is not None and constraints.path_length < issuers_below:
        raise _refuse(f"the authority {certificate.title} allows fewer issuers below it than the chain has")
    if not may_issue(certificate.key):
        raise _refuse(f"the key of {certificate.title} is of a kind or size that is not accepted for an authority")
    if certificate.extension(x509.NameConstraints) is not None:
        raise _refuse(f"{certificate.title} has name constraints, which are not evaluated here; use an issuer without them")
    _check_purpose(certificate)
    _check_critical(certificate)


def check_node(certificate: Certificate) -> None:
    """Rules 5 and 6 for a node's own certificate; dates are the caller's."""
    if certificate.raw.version is not x509.Version.v3:
        raise _refuse(f"the certificate {certificate.title} is not of version 3")
    constraints = certificate.extension(x509.BasicConstraints)
    usage = certificate.extension(x509.KeyUsage)
    if (constraints is not None and constraints.ca) or (usage is not None and usage.key_cert_sign):
        raise _refuse(f"{certificate.title} is a certification authority's certificate; a node needs its own")
    if usage is not None and not usage.digital_signature:
        raise _refuse(f"the certificate {certificate.title} may not sign by its key usage; it needs digitalSignature")
    if as_verifying_key(certificate.key) is None:
        raise _refuse(f"the key of the certificate {certificate.title} is not accepted for a node; it must be {NODE_KINDS}")
    _check_purpose(certificate)
    _check_critical(certificate)
    certificate.node_name()


def check_link(child: Certificate, issuer: Certificate) -> None:
    """Rule 2: the issuer's name and key stand behind the child, by a signature that is strong enough."""
    try:
        hash_algorithm = child.raw.signature_hash_algorithm
        child.raw.verify_directly_issued_by(issuer.raw)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as exc:
        raise _refuse(f"the certificate {child.title} was not issued by {issuer.title}: name or signature differs") from exc
    if not isinstance(issuer.key, Ed25519PublicKey) and not isinstance(hash_algorithm, _HASHES):
        raise _refuse(f"the certificate {child.title} is signed with too weak a hash; it needs SHA-256 or better")


def _below_authorities(certificates: Sequence[Certificate], authorities: Sequence[Certificate]) -> Sequence[Certificate]:
    """Rule 1: what is presented below the first configured authority; the node's own is always in it."""
    known = {authority.der for authority in authorities}
    for index, certificate in enumerate(certificates):
        if index > 0 and certificate.der in known:
            return certificates[:index]
    return certificates


def _check_purpose(certificate: Certificate) -> None:
    purposes = certificate.extension(x509.ExtendedKeyUsage)
    if purposes is not None and _PURPOSES.isdisjoint(purposes):
        raise _refuse(
            f"the certificate {certificate.title} is for other purposes; it needs clientAuth or "
            "serverAuth in its extended key usage"
        )


def _check_critical(certificate: Certificate) -> None:
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise _refuse(
                f"the certificate {certificate.title} has the critical extension "
                f"{extension.oid.dotted_string}, which is not understood here"
            )


def _refuse(text: str) -> MessageRefused:
    return MessageRefused("certificate", text)
