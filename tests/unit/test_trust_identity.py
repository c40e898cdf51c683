"""A node's key and certificate are checked at start, and every mistake names its file."""

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from common.errors import Misconfigured
from common.trust.authorities import Authorities
from common.trust.identity import load_identity
from common.trust.signing import sign, verify
from tests.unit.test_trust_factory import NODE_KEYS, Made, key, key_pem, make, make_ca, pem, usage, write

DAY = timedelta(days=1)
CA = make_ca()


def files(folder: Path, *chain: Made) -> tuple[Path, Path]:
    return write(folder / "st1.key", key_pem(chain[0].key)), write(folder / "st1.pem", pem(*chain))


@pytest.mark.parametrize("kind", NODE_KEYS)
def test_what_it_signs_is_accepted_by_those_who_trust_the_authority(kind: str, tmp_path: Path) -> None:
    made = make("st1", CA, using=key(kind))
    identity = load_identity(*files(tmp_path, made), "st1")
    assert identity.node == "st1"
    assert identity.chain == (made.der,)
    assert identity.not_after == made.parsed.not_after
    verified = Authorities([CA.parsed]).verify(identity.chain)
    verify(verified.public_key, b"message", sign(identity.key, b"message"))


def test_its_chain_carries_the_intermediates_but_not_the_root(tmp_path: Path) -> None:
    root = make_ca("root")
    lower = make_ca("lower", root)
    node = make("st1", lower)
    identity = load_identity(*files(tmp_path, node, lower, root), "st1")
    assert identity.chain == (node.der, lower.der)
    assert Authorities([root.parsed]).verify(identity.chain).node == "st1"


def test_its_key_is_not_in_what_is_printed(tmp_path: Path) -> None:
    identity = load_identity(*files(tmp_path, make("st1", CA)), "st1")
    assert repr(identity) == "Identity(node='st1')"


def test_openssl_and_traditional_key_files_are_read(tmp_path: Path) -> None:
    made = make("st1", CA, using=key("p256"))
    _, certificate = files(tmp_path, made)
    form = made.key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    assert load_identity(write(tmp_path / "ec.key", form), certificate, "st1").chain == (made.der,)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "holds no private key"),
        (b"\xff\x00", "holds no private key"),
        (pem(CA), "holds no private key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "holds no private key"),
        (key_pem(key("ed25519"), b"secret"), "is encrypted.*without a passphrase"),
        (key_pem(key("rsa1024")), "not accepted for a node"),
        (key_pem(key("p521")), "not accepted for a node"),
        (
            X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            "not accepted for a node",
        ),
    ],
    ids=["empty", "binary", "certificate", "garbled", "encrypted", "rsa1024", "p521", "x25519"],
)
def test_a_bad_key_file_is_named(content: bytes, why: str, tmp_path: Path) -> None:
    _, certificate = files(tmp_path, make("st1", CA))
    bad = write(tmp_path / "bad.key", content)
    with pytest.raises(Misconfigured, match=rf"^{bad}: .*{why}"):
        load_identity(bad, certificate, "st1")


def test_no_content_of_a_key_file_is_in_the_message(tmp_path: Path) -> None:
    _, certificate = files(tmp_path, make("st1", CA))
    garbled = key_pem(key("ed25519")).replace(b"M", b"#", 1)
    with pytest.raises(Misconfigured) as caught:
        load_identity(write(tmp_path / "bad.key", garbled), certificate, "st1")
    assert garbled.splitlines()[1].decode()[:12] not in str(caught.value)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (make("st2", CA), "is the certificate of node 'st2', but this is 'st1'.*stsync pki issue --node st1"),
        (make("st1", CA, dns=["st2"]), "is the certificate of node 'st2'"),
        (make("st1", CA, valid=(-2 * DAY, -DAY)), "expired at .*have a new one issued"),
        (make("st1", CA, valid=(DAY, 2 * DAY)), "is valid only from .*clocks"),
        (make_ca("st1", CA), "a node needs its own"),
        (make("st1", CA, extensions=[(usage(agree=True), True)]), "needs digitalSignature"),
        (make("mft cluster", CA), "cannot be a node's name"),
    ],
    ids=["other node", "other DNS name", "expired", "not yet valid", "CA", "key usage", "cluster"],
)
def test_a_certificate_that_others_would_refuse_is_named(made: Made, why: str, tmp_path: Path) -> None:
    private_key, certificate = files(tmp_path, made)
    with pytest.raises(Misconfigured, match=rf"^{certificate}: .*{why}"):
        load_identity(private_key, certificate, "st1")


def test_a_key_that_is_not_the_certificates_is_refused_with_both_files(tmp_path: Path) -> None:
    _, certificate = files(tmp_path, make("st1", CA))
    for kind in NODE_KEYS:
        other = write(tmp_path / "other.key", key_pem(key(kind)))
        with pytest.raises(Misconfigured, match=rf"{certificate}: .*does not belong to .*{other}"):
            load_identity(other, certificate, "st1")


def test_a_chain_longer_than_others_accept_is_refused(tmp_path: Path) -> None:
    chain = [CA]
    for number in range(6):
        chain.insert(0, make_ca(f"CA {number}", chain[0]))
    with pytest.raises(Misconfigured, match="7 certificates; other nodes accept chains of at most 6"):
        load_identity(*files(tmp_path, make("st1", chain[0]), *chain[:-1]), "st1")


def test_missing_and_damaged_certificate_files_are_named(tmp_path: Path) -> None:
    private_key, _ = files(tmp_path, make("st1", CA))
    absent = tmp_path / "absent"
    with pytest.raises(Misconfigured, match=rf"^{absent}: no such file"):
        load_identity(private_key, absent, "st1")
    with pytest.raises(Misconfigured, match=rf"^{absent}: no such file"):
        load_identity(absent, private_key, "st1")
    with pytest.raises(Misconfigured, match=rf"^{private_key}: holds no certificate"):
        load_identity(private_key, private_key, "st1")
    with pytest.raises(Misconfigured, match=rf"^{tmp_path}: cannot be read: Is a directory"):
        load_identity(private_key, tmp_path, "st1")


def test_an_unreadable_key_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    private_key, certificate = files(tmp_path, make("st1", CA))
    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(Misconfigured, match=rf"^{private_key}: cannot be read: Permission denied"):
        load_identity(private_key, certificate, "st1")
