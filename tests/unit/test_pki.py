"""`stsync pki` makes what the other side of trust accepts, keeps keys private and never overwrites one."""

import os
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest
import typer
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner

from common.commands import pki as command
from common.errors import MessageRefused, Misconfigured
from common.trust import pki
from common.trust.authorities import Authorities
from common.trust.identity import load_identity
from common.trust.keys import read_certificates
from common.trust.sealing import Opener, Sealer, load_cluster_pair
from common.trust.signing import sign, verify
from tests.unit.test_trust_factory import NODE_KEYS, key, key_pem, make_ca, pem, write

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    pki.init_cluster("mft", tmp_path / "ca")
    return tmp_path / "ca"


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def extension(of: x509.Certificate, kind: type[_Extension]) -> _Extension:
    return of.extensions.get_extension_for_class(kind).value


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_it_makes_carries_a_signed_and_sealed_message(ca: Path, tmp_path: Path) -> None:
    pki.issue_node(ca, "st1", tmp_path / "st1")
    identity = load_identity(tmp_path / "st1/st1.key", tmp_path / "st1/st1.pem", "st1")
    verified = Authorities.from_files([ca / "ca.pem"]).verify(identity.chain)
    assert verified.node == "st1"
    verify(verified.public_key, b"message", sign(identity.key, b"message"))
    public_key, private_key = load_cluster_pair(ca / "cluster.pem", ca / "cluster.key")
    assert Opener(private_key).open(Sealer(public_key, 3600).seal(b"body", b""), b"") == b"body"


def test_openssl_accepts_what_it_makes(ca: Path, tmp_path: Path) -> None:
    pki.issue_node(ca, "st1", tmp_path)
    for made in (ca / "cluster.pem", tmp_path / "st1.pem"):
        subprocess.run(
            ["openssl", "verify", "-x509_strict", "-CAfile", ca / "ca.pem", made],
            check=True,
            capture_output=True,
        )


def test_the_cluster_certificate_and_the_ca_are_no_nodes(ca: Path) -> None:
    authorities = Authorities.from_files([ca / "ca.pem"])
    for name in ("cluster.pem", "ca.pem"):
        with pytest.raises(MessageRefused):
            authorities.verify(read_certificates(ca / name))


def test_the_certificates_are_the_documented_ones(ca: Path, tmp_path: Path) -> None:
    pki.issue_node(ca, "st1.bank-7_a", tmp_path)
    root = certificate(ca / "ca.pem")
    assert isinstance(root.public_key(), Ed25519PublicKey)
    assert extension(root, x509.BasicConstraints) == x509.BasicConstraints(ca=True, path_length=0)
    assert extension(root, x509.KeyUsage).key_cert_sign
    cluster = certificate(ca / "cluster.pem")
    cluster_key = cluster.public_key()
    assert isinstance(cluster_key, EllipticCurvePublicKey)
    assert isinstance(cluster_key.curve, SECP256R1)
    assert cluster.subject.rfc4514_string() == "CN=mft cluster"
    assert not extension(cluster, x509.KeyUsage).digital_signature
    node = certificate(tmp_path / "st1.bank-7_a.pem")
    assert isinstance(node.public_key(), Ed25519PublicKey)
    assert list(extension(node, x509.SubjectAlternativeName)) == [x509.DNSName("st1.bank-7_a")]
    assert set(extension(node, x509.ExtendedKeyUsage)) == {
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    }
    now = datetime.now(UTC)
    for one, days in ((root, 3653), (cluster, 3653), (node, 825)):
        assert timedelta(minutes=4) < now - one.not_valid_before_utc < timedelta(minutes=6)
        assert timedelta(days=days, minutes=-2) < one.not_valid_after_utc - now < timedelta(days=days, minutes=2)


def test_a_node_certificate_ends_with_its_authority_at_the_latest(tmp_path: Path) -> None:
    short = make_ca(valid=(timedelta(hours=-1), timedelta(days=3)))
    write(tmp_path / "ca.pem", pem(short))
    write(tmp_path / "ca.key", key_pem(short.key))
    pki.issue_node(tmp_path, "st1", tmp_path)
    assert certificate(tmp_path / "st1.pem").not_valid_after_utc == short.certificate.not_valid_after_utc


@pytest.mark.parametrize("kind", NODE_KEYS)
def test_an_authority_of_any_accepted_kind_can_issue(kind: str, tmp_path: Path) -> None:
    authority = make_ca(using=key(kind))
    write(tmp_path / "ca.pem", pem(authority))
    write(tmp_path / "ca.key", key_pem(authority.key))
    pki.issue_node(tmp_path, "st1", tmp_path)
    assert Authorities([authority.parsed]).verify(read_certificates(tmp_path / "st1.pem")).node == "st1"


def test_two_clusters_of_one_name_do_not_trust_each_other(ca: Path, tmp_path: Path) -> None:
    pki.init_cluster("mft", tmp_path / "other")
    pki.issue_node(tmp_path / "other", "st1", tmp_path)
    with pytest.raises(MessageRefused):
        Authorities.from_files([ca / "ca.pem"]).verify(read_certificates(tmp_path / "st1.pem"))


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_private_keys_are_readable_by_their_owner_only(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        pki.init_cluster("mft", tmp_path / "new" / "ca")
        pki.issue_node(tmp_path / "new" / "ca", "st1", tmp_path / "out")
    finally:
        os.umask(before)
    assert mode(tmp_path / "new" / "ca") == 0o700
    for path in (tmp_path / "new/ca/ca.key", tmp_path / "new/ca/cluster.key", tmp_path / "out/st1.key"):
        assert mode(path) == 0o600


@pytest.mark.parametrize("present", ["ca.pem", "ca.key", "cluster.pem", "cluster.key"])
@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_init_overwrites_nothing_and_leaves_nothing(present: str, kind: str, tmp_path: Path) -> None:
    if kind == "file":
        write(tmp_path / present, b"precious")
    else:
        (tmp_path / present).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Misconfigured, match=rf"{tmp_path / present}: exists already"):
        pki.init_cluster("mft", tmp_path)
    assert names(tmp_path) == [present]
    if kind == "file":
        assert (tmp_path / present).read_bytes() == b"precious"


@pytest.mark.parametrize("present", ["st1.pem", "st1.key"])
def test_issue_overwrites_nothing_and_leaves_nothing(present: str, ca: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write(out / present, b"precious")
    with pytest.raises(Misconfigured, match=rf"{out / present}: exists already"):
        pki.issue_node(ca, "st1", out)
    assert names(out) == [present]
    assert (out / present).read_bytes() == b"precious"


def test_a_node_called_like_the_authority_cannot_replace_its_key(ca: Path) -> None:
    before = (ca / "ca.key").read_bytes()
    with pytest.raises(Misconfigured, match=r"ca\.key: exists already"):
        pki.issue_node(ca, "ca", ca)
    assert (ca / "ca.key").read_bytes() == before


def test_a_disk_that_fails_midway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter([None, None, OSError(28, "No space left on device")])

    def fsync(_: int) -> None:
        outcome = next(calls)
        if outcome is not None:
            raise outcome

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(Misconfigured, match=r"cluster\.key: cannot be written: No space left"):
        pki.init_cluster("mft", tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["", "st 1", "../st1", "st1/x", ".st1", "a" * 64, "st1\n", "stö", "-x"])
def test_names_that_no_node_may_have_are_refused(name: str, ca: Path, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"--node .*: not a valid name"):
        pki.issue_node(ca, name, tmp_path / "out")
    with pytest.raises(Misconfigured, match=r"--cluster .*: not a valid name"):
        pki.init_cluster(name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_longest_name_is_accepted(tmp_path: Path) -> None:
    longest = "a" * 63
    pki.init_cluster(longest, tmp_path)
    pki.issue_node(tmp_path, longest, tmp_path)
    chain = read_certificates(tmp_path / f"{longest}.pem")
    assert Authorities.from_files([tmp_path / "ca.pem"]).verify(chain).node == longest


def test_an_unusable_authority_is_named(ca: Path, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=rf"{tmp_path / 'ca.pem'}: no such file"):
        pki.issue_node(tmp_path, "st1", tmp_path)
    write(tmp_path / "ca.pem", (ca / "ca.pem").read_bytes())
    with pytest.raises(Misconfigured, match=rf"{tmp_path / 'ca.key'}: no such file"):
        pki.issue_node(tmp_path, "st1", tmp_path)
    write(tmp_path / "ca.key", key_pem(key("ed25519", 9)))
    with pytest.raises(Misconfigured, match=rf"{tmp_path / 'ca.key'}: is not the private key of .*ca\.pem"):
        pki.issue_node(tmp_path, "st1", tmp_path)
    write(tmp_path / "ca.key", key_pem(key("p521")))
    with pytest.raises(Misconfigured, match=r"ca\.key: .*cannot issue"):
        pki.issue_node(tmp_path, "st1", tmp_path)
    write(tmp_path / "ca.pem", (ca / "cluster.pem").read_bytes())
    with pytest.raises(Misconfigured, match=r"ca\.pem: .*not a certification authority"):
        pki.issue_node(tmp_path, "st1", tmp_path)
    write(tmp_path / "ca.pem", pem(make_ca(valid=(timedelta(days=-2), timedelta(days=-1)))))
    with pytest.raises(Misconfigured, match=r"ca\.pem: .*expired"):
        pki.issue_node(tmp_path, "st1", tmp_path)
    assert names(tmp_path) == ["ca", "ca.key", "ca.pem"]


def test_a_directory_that_cannot_be_made_or_written_is_named(ca: Path, tmp_path: Path) -> None:
    blocked = write(tmp_path / "file", b"")
    with pytest.raises(Misconfigured, match=rf"{blocked / 'out'}: the directory cannot be made"):
        pki.init_cluster("mft", blocked / "out")
    with pytest.raises(Misconfigured, match=rf"{blocked}: the directory cannot be made"):
        pki.issue_node(ca, "st1", blocked)


# The command


@pytest.fixture
def app() -> typer.Typer:
    root = typer.Typer()

    @root.callback()
    def nothing() -> None:
        """Stands for the other commands."""

    command.register(root)
    return root


def test_the_command_says_what_it_wrote_and_where_it_belongs(app: typer.Typer, tmp_path: Path) -> None:
    ca, out = tmp_path / "ca", tmp_path / "out"
    result = CliRunner().invoke(app, ["pki", "init", "--cluster", "mft", "--out", str(ca)])
    assert result.exit_code == 0
    assert names(ca) == ["ca.key", "ca.pem", "cluster.key", "cluster.pem"]
    for name in names(ca):
        assert str(ca / name) in result.stdout
    for word in ("authorities", "cluster_certificate", "cluster_key", f"stsync pki issue --ca {ca}"):
        assert word in result.stdout
    result = CliRunner().invoke(app, ["pki", "issue", "--ca", str(ca), "--node", "st1", "--out", str(out)])
    assert result.exit_code == 0
    assert names(out) == ["st1.key", "st1.pem"]
    for name in names(out):
        assert str(out / name) in result.stdout
    assert "PRIVATE" not in result.stdout


def test_the_commands_failures_are_misconfigured(app: typer.Typer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["pki", "init", "--cluster", "m f", "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, Misconfigured)
    assert result.exception.exit_code == 2
    assert result.stdout == ""
    assert CliRunner().invoke(app, ["pki", "init", "--cluster", "mft"]).exit_code == 2
