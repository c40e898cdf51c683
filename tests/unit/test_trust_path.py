"""Which chains are a node's and which are refused, by the rules of common.trust.path (TRAPS 34)."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA1, SHA256, SHA384, SHA512
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from common.errors import MessageRefused, Misconfigured
from common.trust import path as rules
from common.trust.authorities import Authorities
from common.trust.certificates import MAX_CERTIFICATE_BYTES
from tests.unit.test_trust_factory import (
    NODE_KEYS,
    Made,
    accepted,
    key,
    make,
    make_ca,
    pem,
    refused,
    trusting,
    usage,
    write,
)

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
TLS_BOTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
MAIL_ONLY = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
UNKNOWN = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\5\0")


# What is accepted


@pytest.mark.parametrize("ca_kind", [*NODE_KEYS, "p521"])
@pytest.mark.parametrize("node_kind", NODE_KEYS)
def test_every_documented_kind_of_key_is_accepted(ca_kind: str, node_kind: str) -> None:
    ca = make_ca(using=key(ca_kind, 1))
    node = make("st1", ca, using=key(node_kind), dns=["st1"])
    verified = trusting(ca).verify([node.der])
    assert verified.node == "st1"
    assert verified.public_key == node.key.public_key()
    assert verified.fingerprint == node.certificate.fingerprint(SHA256())
    assert verified.not_after == min(node.certificate.not_valid_after_utc, ca.certificate.not_valid_after_utc)


@pytest.mark.parametrize(
    "extensions",
    [
        [],
        [(TLS_BOTH, False), (usage(sign=True), True)],
        [(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), True)],
        [(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), False)],
        [(x509.BasicConstraints(ca=False, path_length=None), True)],
        [(x509.CertificatePolicies([x509.PolicyInformation(ObjectIdentifier("1.2.3"), None)]), True)],
        [(UNKNOWN, False)],
    ],
    ids=[
        "bare",
        "both purposes",
        "server only",
        "any purpose",
        "not a CA",
        "policies",
        "unknown not critical",
    ],
)
def test_what_a_banks_own_authority_issues_is_accepted(
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
) -> None:
    ca = make_ca()
    key_identifier = x509.SubjectKeyIdentifier.from_public_key(key("ed25519").public_key())
    node = make("st1", ca, extensions=[*extensions, (key_identifier, False)])
    assert accepted(trusting(ca), node) == "st1"


def test_chains_through_intermediates_are_accepted_with_and_without_their_root() -> None:
    root = make_ca("root", path_length=2)
    upper = make_ca("upper", root, path_length=1)
    lower = make_ca("lower", upper, path_length=0)
    node = make("st1", lower)
    assert accepted(trusting(root), node, lower, upper) == "st1"
    assert accepted(trusting(root), node, lower, upper, root) == "st1"


def test_an_intermediate_may_be_the_configured_authority() -> None:
    root = make_ca("root")
    lower = make_ca("lower", root)
    node = make("st1", lower)
    for chain in ((node,), (node, lower), (node, lower, root)):
        assert accepted(trusting(lower), *chain) == "st1"


def test_an_authority_with_a_new_key_or_new_dates_stands_beside_its_predecessor() -> None:
    old_key, new_key = key("p256", 2), key("p256", 3)
    expired = make_ca(using=old_key, valid=(-2 * DAY, -DAY))
    renewed = make_ca(using=old_key)
    rekeyed = make_ca(using=new_key)
    for order in ((expired, renewed, rekeyed), (rekeyed, renewed, expired), (renewed, expired, rekeyed)):
        authorities = trusting(*order)
        assert accepted(authorities, make("st1", renewed)) == "st1"
        assert accepted(authorities, make("st2", rekeyed)) == "st2"
        assert accepted(authorities, make("st3", renewed), expired) == "st3"


# The name


def test_the_dns_name_decides_and_the_common_name_stands_in() -> None:
    ca = make_ca()
    authorities = trusting(ca)
    assert accepted(authorities, make("Server of branch 7", ca, dns=["st1"])) == "st1"
    assert accepted(authorities, make(None, ca, dns=["st1"])) == "st1"
    assert accepted(authorities, make("st2", ca)) == "st2"
    assert accepted(authorities, make("st1", ca, dns=["st1", "st1.bank.example"])) == "st1"


@pytest.mark.parametrize(
    ("common_name", "dns", "why"),
    [
        ("st9", ["st1", "st2"], "names no single node"),
        (None, ["st1", "st2"], "names no single node"),
        (None, [], "names no single node"),
        ("mft cluster", [], "cannot be a node's name"),
        ("st1", ["*.bank.example"], "cannot be a node's name"),
        ("st1\n", [], "cannot be a node's name"),
    ],
)
def test_a_certificate_that_names_no_single_node_is_refused(common_name: str | None, dns: list[str], why: str) -> None:
    ca = make_ca()
    refused(trusting(ca), make(common_name, ca, dns=dns), why=why)


def test_two_common_names_are_no_single_node() -> None:
    """Whichever of them a reader takes, another reader takes the other."""
    ca = make_ca()
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, one) for one in ("st1", "st2")]
    builder = x509.CertificateBuilder().subject_name(x509.Name(attributes))
    builder = builder.issuer_name(ca.certificate.subject).public_key(key("ed25519").public_key())
    builder = builder.serial_number(7).not_valid_before(datetime.now(UTC) - HOUR)
    node = Made(builder.not_valid_after(datetime.now(UTC) + HOUR).sign(ca.key, None), key("ed25519"))
    refused(trusting(ca), node, why="names no single node")


def test_a_message_shows_a_hostile_name_in_one_bounded_line() -> None:
    ca = make_ca()
    node = make("st1\n2026-01-01 all is well" + "x" * 38, ca)
    with pytest.raises(MessageRefused) as caught:
        trusting(ca).verify([node.der])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


# Who is refused


def test_a_foreign_authority_is_refused() -> None:
    foreign = make_ca("foreign CA")
    refused(trusting(make_ca()), make("st1", foreign), why="issued by none of the authorities")
    refused(trusting(make_ca()), make("st1", foreign), foreign, why="issued by none of the authorities")


def test_a_foreign_authority_of_the_same_name_is_refused() -> None:
    refused(trusting(make_ca()), make("st1", make_ca()), why="name or signature differs")


def test_a_certificate_of_an_older_version_is_refused() -> None:
    """Version 1 has no extensions, so nothing in it tells an authority's certificate from a node's."""
    ca = make_ca()
    modern = make("st1", ca).certificate
    sequence, version = 0x30, bytes.fromhex("a003020102")
    before, found, fields = modern.tbs_certificate_bytes.partition(version)
    assert found
    assert len(before) < 5
    signed = der(sequence, fields)
    algorithm = bytes.fromhex("300506032b6570")
    old = der(sequence, signed + algorithm + der(0x03, b"\0" + ca.key.sign(signed)))  # type: ignore[call-arg]
    assert x509.load_der_x509_certificate(old).version is x509.Version.v1
    with pytest.raises(MessageRefused, match="not of version 3"):
        trusting(ca).verify([old])


def der(tag: int, content: bytes) -> bytes:
    """One DER element of at most 255 bytes of content."""
    length = bytes([len(content)]) if len(content) < 128 else bytes([0x81, len(content)])
    return bytes([tag]) + length + content


def test_a_self_signed_certificate_is_refused() -> None:
    refused(trusting(make_ca()), make("st1"), why="issued by none of the authorities")


def test_a_certificate_issued_by_a_node_is_refused() -> None:
    ca = make_ca()
    st1 = make("st1", ca, extensions=[(usage(sign=True), True)])
    refused(trusting(ca), make("st2", st1), st1, why="not a certification authority")
    bare = make("st1", ca)
    refused(trusting(ca), make("st2", bare), bare, why="not a certification authority")


def test_an_authoritys_certificate_is_no_nodes() -> None:
    root = make_ca("root")
    lower = make_ca("lower", root)
    refused(trusting(root), lower, why="a node needs its own")
    refused(trusting(root), root, why="a node needs its own")
    certifying = make("st1", root, extensions=[(usage(sign=True, certify=True), True)])
    refused(trusting(root), certifying, why="a node needs its own")


@pytest.mark.parametrize(
    ("extension", "why"),
    [
        ((usage(agree=True), True), "needs digitalSignature"),
        ((MAIL_ONLY, False), "is for other purposes"),
        ((UNKNOWN, True), "critical extension 1.3.6.1.4.1.99999.1"),
    ],
    ids=["key agreement only", "mail only", "unknown critical"],
)
def test_a_certificate_for_something_else_is_refused(extension: tuple[x509.ExtensionType, bool], why: str) -> None:
    ca = make_ca()
    refused(trusting(ca), make("st1", ca, extensions=[extension]), why=why)


@pytest.mark.parametrize("kind", ["p521", "k256", "rsa1024"])
def test_a_node_with_an_unsuitable_key_is_refused(kind: str) -> None:
    ca = make_ca()
    refused(trusting(ca), make("st1", ca, using=key(kind)), why="not accepted for a node; it must be Ed25519")


@pytest.mark.parametrize("kind", ["k256", "rsa1024"])
def test_an_intermediate_with_an_unsuitable_key_is_refused(kind: str) -> None:
    root = make_ca("root")
    lower = make_ca("lower", root, using=key(kind))
    refused(trusting(root), make("st1", lower), lower, why="not accepted for an authority")


def test_a_weak_hash_is_refused() -> None:
    """The library does not sign with SHA-1, so only what the rule looks at is imitated."""
    ca = make_ca(using=key("rsa2048"))
    for algorithm in (SHA256(), SHA384(), SHA512()):
        assert accepted(trusting(ca), make("st1", ca, algorithm=algorithm)) == "st1"
    node = make("st1", ca).parsed
    weak = type("Weak", (), {"signature_hash_algorithm": SHA1(), "verify_directly_issued_by": lambda *_: None})
    object.__setattr__(node, "raw", weak())
    with pytest.raises(MessageRefused, match="too weak a hash"):
        rules.check_link(node, ca.parsed)


@pytest.mark.parametrize(
    ("extensions", "why"),
    [
        ([(usage(sign=True), True)], "may not sign certificates"),
        ([(MAIL_ONLY, False)], "is for other purposes"),
        ([(UNKNOWN, True)], "critical extension"),
        ([(x509.PolicyConstraints(0, None), True)], "critical extension"),
        ([(x509.NameConstraints([x509.DNSName("bank.example")], None), True)], "has name constraints"),
        ([(x509.NameConstraints([x509.DNSName("bank.example")], None), False)], "has name constraints"),
    ],
    ids=["key usage", "purpose", "unknown", "policies", "names", "names not critical"],
)
def test_the_limits_of_an_issuer_are_kept(
    extensions: list[tuple[x509.ExtensionType, bool]], why: str, tmp_path: Path
) -> None:
    root = make_ca("root")
    lower = make_ca("lower", root, extensions=extensions)
    refused(trusting(root), make("st1", lower), lower, why=why)
    with pytest.raises(Misconfigured, match=rf"ca\.pem: cannot serve as an authority.*{why}"):
        Authorities.from_files([write(tmp_path / "ca.pem", pem(lower))])


def test_path_lengths_are_kept() -> None:
    for root_length, upper_length in ((0, None), (None, 0)):
        root = make_ca("root", path_length=root_length)
        upper = make_ca("upper", root, path_length=upper_length)
        lower = make_ca("lower", upper)
        refused(trusting(root), make("st1", lower), lower, upper, why="allows fewer issuers")


def test_a_chain_must_be_in_order_and_without_gaps() -> None:
    root = make_ca("root")
    upper = make_ca("upper", root)
    lower = make_ca("lower", upper)
    node = make("st1", lower)
    refused(trusting(root), node, upper, lower, why="issued by none of the authorities")
    refused(trusting(root), node, upper, why="name or signature differs")
    refused(trusting(root), node, why="issued by none of the authorities")
    refused(trusting(root), lower, upper, node, why="issued by none of the authorities")


def test_an_intermediate_that_was_not_issued_by_the_authority_is_refused() -> None:
    root, forger = make_ca("root"), make_ca("root")
    lower = make_ca("lower", forger)
    refused(trusting(root), make("st1", lower), lower, why="name or signature differs")


def test_the_bounds_of_a_chain_are_kept() -> None:
    ca = make_ca()
    node = make("st1", ca)
    authorities = trusting(ca)
    refused(authorities, why="a chain of 0 certificates")
    refused(authorities, *[node] * (rules.MAX_CHAIN + 1), why="a chain of 7 certificates")
    with pytest.raises(MessageRefused, match="too large"):
        authorities.verify([node.der + bytes(MAX_CERTIFICATE_BYTES)])
