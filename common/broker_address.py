"""The addresses in broker.urls and the TLS settings, read and checked before anything connects."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from common.errors import Misconfigured
from common.settings import BrokerSettings, BrokerTls

_PORTS = {"amqp": 5672, "amqps": 5671}


@dataclass(frozen=True)
class Address:
    """One broker: where it listens, and our login; without a password by client certificate."""

    host: str
    port: int
    vhost: str
    user: str | None
    password: str | None = field(repr=False)
    tls: bool = False

    @property
    def place(self) -> str:
        """host:port, fit for messages: it never holds a secret."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def login(self) -> str:
        """The user's name, fit for messages."""
        return self.user or "(of the client certificate)"


def addresses(settings: BrokerSettings) -> tuple[Address, ...]:
    """Every address of broker.urls; raises Misconfigured naming the key, never the URL with its password."""
    return tuple(
        _address(url.get_secret_value(), f"broker.urls[{number}]", settings.tls) for number, url in enumerate(settings.urls)
    )


def _address(url: str, key: str, tls: BrokerTls | None) -> Address:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise Misconfigured(f"{key}: not an address; {_FORM}") from exc
    if parts.scheme not in _PORTS or not parts.hostname or parts.query or parts.fragment:
        raise Misconfigured(f"{key}: not an address; {_FORM}")
    path = parts.path.removeprefix("/")
    if "/" in path:
        raise Misconfigured(f"{key}: write a slash in the name of the virtual host as %2F; {_FORM}")
    secure = parts.scheme == "amqps"
    if parts.password is None and not (secure and tls and tls.certificate):
        raise Misconfigured(f"{key}: names no user and password, and there is no amqps:// with broker.tls.certificate")
    return Address(
        host=parts.hostname,
        port=port or _PORTS[parts.scheme],
        vhost=unquote(path) or "/",
        user=unquote(parts.username) if parts.username else None,
        password=None if parts.password is None else unquote(parts.password),
        tls=secure,
    )


def tls_context(tls: BrokerTls | None) -> ssl.SSLContext:
    """A context that verifies the broker's certificate and name; raises Misconfigured naming key and file."""
    tls = tls or BrokerTls()
    try:
        context = ssl.create_default_context(cafile=tls.authorities)
    except (OSError, ssl.SSLError) as exc:
        raise Misconfigured(f"broker.tls.authorities: {tls.authorities} cannot be used: {_text(exc)}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.certificate:
        _load_certificate(context, tls.certificate, tls.key)
    return context


def _load_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as exc:
        named = f"{certificate}" + (f" with {key}" if key else "")
        raise Misconfigured(f"broker.tls.certificate, broker.tls.key: {named} cannot be used: {_text(exc)}") from exc


def _text(exc: OSError) -> str:
    return str(exc.strerror or exc)


_FORM = "the form is amqp://USER:PASSWORD@HOST:PORT/VHOST or amqps://…, special characters percent-encoded"
