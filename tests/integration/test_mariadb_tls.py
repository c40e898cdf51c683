"""Connections to a MariaDB that has TLS are encrypted by it, and check its certificate where the address asks for that."""

import datetime
import ipaddress
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from common.database import Database
from common.errors import StsyncError
from common.settings import DatabaseSettings
from deploy.servers import PrivateMariaDB


def make_certificate(directory: Path, name: str) -> Path:
    """Signed by itself, for 127.0.0.1; its key beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    (directory / f"{name}-key.pem").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    path = directory / f"{name}.pem"
    path.write_bytes(made.public_bytes(pem))
    for one in directory.iterdir():
        one.chmod(0o644)
    return path


@pytest.fixture
def place() -> Iterator[Path]:
    """Where the server's own user may look."""
    with tempfile.TemporaryDirectory(prefix="stsync-tls-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def certificates(place: Path) -> dict[str, Path]:
    """The server's, and another's."""
    (place / "tls").mkdir()
    return {name: make_certificate(place / "tls", name) for name in ("server", "other")}


@pytest.fixture
def url(place: Path, certificates: dict[str, Path]) -> Iterator[str]:
    """Of a database on a server with TLS."""
    path = certificates["server"]
    with PrivateMariaDB(place / "server", fast=True) as server:
        server.stop()
        with (place / "server" / "server.cnf").open("a") as options:
            options.write(f"ssl-cert = {path}\nssl-key = {path.with_name('server-key.pem')}\n")
        server.start()
        yield server.new_database("tls")


def cipher(url: str) -> str:
    """What the connections of a service are encrypted by."""
    with Database(DatabaseSettings(url=SecretStr(url))).connect() as connection:
        return str(connection.exec_driver_sql("SHOW STATUS LIKE 'Ssl_cipher'").one()[1])


def test_what_is_said_is_encrypted_and_the_server_known_where_its_certificate_is_given(
    url: str, certificates: dict[str, Path]
) -> None:
    assert "TLS" in cipher(url)
    assert "TLS" in cipher(f"{url}&ssl_ca={certificates['server']}")
    with pytest.raises(StsyncError, match=r"(?i)certificate"):
        cipher(f"{url}&ssl_ca={certificates['other']}")
