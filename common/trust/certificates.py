"""A certificate read once and in full, so that rules work on values and no reading error surfaces later."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Self, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import NameOID
from pydantic import TypeAdapter, ValidationError

from common.errors import MessageRefused
from common.settings import Name

MAX_CERTIFICATE_BYTES = 16 * 1024  # a node certificate has 0.3 to 2 KiB; whatever is larger is not one
_TITLE_LENGTH = 96
_NODE_NAME: TypeAdapter[str] = TypeAdapter(Name)
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


@dataclass(frozen=True)
class Certificate:
    """What the rules look at; `title` names it in messages, bounded and printable whoever wrote it."""

    der: bytes = field(repr=False)
    raw: x509.Certificate = field(repr=False)
    title: str
    subject: x509.Name = field(repr=False)
    issuer: x509.Name = field(repr=False)
    key: object = field(repr=False)
    extensions: x509.Extensions = field(repr=False)
    not_before: datetime
    not_after: datetime
    common_names: tuple[str, ...]
    dns_names: tuple[str, ...]

    @classmethod
    def parse(cls, der: bytes) -> Self:
        """Read DER from anyone. Raises MessageRefused("certificate") if oversized or not readable in full."""
        if len(der) > MAX_CERTIFICATE_BYTES:
            raise MessageRefused(
                "certificate",
                f"a certificate of {len(der)} bytes is too large; {MAX_CERTIFICATE_BYTES} are the limit",
            )
        try:
            raw = x509.load_der_x509_certificate(der)
            extensions = raw.extensions
            certificate = cls(
                der=der,
                raw=raw,
                title=_title(raw.subject),
                subject=raw.subject,
                issuer=raw.issuer,
                key=raw.public_key(),
                extensions=extensions,
                not_before=raw.not_valid_before_utc,
                not_after=raw.not_valid_after_utc,
                common_names=_common_names(raw.subject),
                dns_names=_dns_names(extensions),
            )
        except _UNREADABLE as exc:
            raise _unreadable() from exc
        if not der.endswith(b"\0" + raw.signature):  # unused bits: the one octet that no signature covers
            raise _unreadable()
        return certificate

    def extension(self, kind: type[_Extension]) -> _Extension | None:
        """The extension of that kind, or None when the certificate has none."""
        try:
            return self.extensions.get_extension_for_class(kind).value
        except x509.ExtensionNotFound:
            return None

    def check_dates(self, at: datetime) -> None:
        """Raises MessageRefused("certificate") giving the dates when it is not valid at `at`."""
        if at < self.not_before:
            raise MessageRefused(
                "certificate",
                f"the certificate {self.title} is valid only from {self.not_before:%Y-%m-%d %H:%M:%S} UTC, "
                f"and it is {at:%Y-%m-%d %H:%M:%S %Z} here; check the clocks",
            )
        if at > self.not_after:
            raise MessageRefused(
                "certificate",
                f"the certificate {self.title} expired at {self.not_after:%Y-%m-%d %H:%M:%S} UTC, and it is "
                f"{at:%Y-%m-%d %H:%M:%S %Z} here; have a new one issued, or check the clocks",
            )

    def node_name(self) -> str:
        """The node this certificate speaks for: its one DNS name (SAN); without any, its one common name.

        With several DNS names, the common name decides, and must be one of them. Raises
        MessageRefused("certificate") when no single name follows or the name cannot be a node's
        (`settings.Name`).
        """
        candidates = self.dns_names or self.common_names
        if len(self.dns_names) > 1:
            candidates = tuple(name for name in self.common_names if name in self.dns_names)
        if len(candidates) != 1:
            raise MessageRefused(
                "certificate",
                f"the certificate {self.title} names no single node; it needs one DNS name (subjectAltName) "
                "or one common name",
            )
        try:
            return _NODE_NAME.validate_python(candidates[0])
        except ValidationError as exc:
            raise MessageRefused(
                "certificate",
                f"the certificate {self.title} is not a node's: {_printable(candidates[0])} cannot be a node's name",
            ) from exc


def is_node_name(name: str) -> bool:
    """Whether a node (or a cluster) may have this name: the rule of the settings."""
    try:
        _NODE_NAME.validate_python(name)
    except ValidationError:
        return False
    return True


def _unreadable() -> MessageRefused:
    return MessageRefused("certificate", "a certificate cannot be read; it is damaged or of an unknown kind")


def _common_names(subject: x509.Name) -> tuple[str, ...]:
    values = (one.value for one in subject.get_attributes_for_oid(NameOID.COMMON_NAME))
    return tuple(value for value in values if isinstance(value, str))


def _dns_names(extensions: x509.Extensions) -> tuple[str, ...]:
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(names.get_values_for_type(x509.DNSName))


def _title(subject: x509.Name) -> str:
    return _printable(subject.rfc4514_string()) if subject.rdns else "(without a subject)"


def _printable(text: str) -> str:
    shown = text if len(text) <= _TITLE_LENGTH else text[:_TITLE_LENGTH] + "…"
    return repr(shown)
