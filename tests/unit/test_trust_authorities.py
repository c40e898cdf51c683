"""How long a verified chain is valid and remembered, whatever bytes come, and the files (TRAPS 34)."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from common.errors import MessageRefused, Misconfigured
from common.trust import path as rules
from common.trust.authorities import REMEMBERED_CHAINS, Authorities
from tests.unit.test_trust_factory import (
    accepted,
    key,
    make,
    make_ca,
    pem,
    refused,
    trusting,
    write,
)

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
TLS_BOTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])


# Time


def test_dates_are_checked_for_every_certificate_of_the_chain() -> None:
    now = datetime.now(UTC)
    for short in range(3):
        spans = [(-DAY, DAY)] * 3
        spans[short] = (-HOUR, HOUR)
        root = make_ca("root", valid=spans[0])
        lower = make_ca("lower", root, valid=spans[1])
        node = make("st1", lower, valid=spans[2])
        name = ("root", "lower", "st1")[short]
        for authorities in (trusting(root), trusting(root)):
            assert accepted(authorities, node, lower, at=now) == "st1"
            late = rf"CN={name}' expired at .* UTC, and it is .* UTC here"
            refused(authorities, node, lower, at=now + 2 * HOUR, why=late)
            refused(authorities, node, lower, at=now - 2 * HOUR, why=rf"CN={name}' is valid only from .* clocks")
            assert accepted(authorities, node, lower, at=now) == "st1"


def test_the_bounds_of_validity_belong_to_it() -> None:
    ca = make_ca(valid=(-DAY, DAY))
    node = make("st1", ca)
    first, last = node.certificate.not_valid_before_utc, node.certificate.not_valid_after_utc
    for moment in (first, last):
        authorities = trusting(ca)
        for remembered in (first, moment, last):
            assert accepted(trusting(ca), node, at=remembered) == "st1"
            assert accepted(authorities, node, at=remembered) == "st1"
        refused(authorities, node, at=last + timedelta(seconds=1), why="expired")
        refused(authorities, node, at=first - timedelta(seconds=1), why="valid only from")


def test_without_a_time_it_is_now() -> None:
    ca = make_ca(valid=(-2 * DAY, DAY))
    authorities = trusting(ca)
    refused(authorities, make("st1", ca, valid=(-DAY, -HOUR)), why="expired")
    refused(authorities, make("st1", ca, valid=(HOUR, DAY)), why="valid only from")
    assert accepted(authorities, make("st1", ca)) == "st1"


# Memory


def test_a_chain_is_examined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ca = make_ca()
    node = make("st1", ca)
    authorities = trusting(ca)
    first = authorities.verify([node.der])
    monkeypatch.setattr(rules, "validate", None)
    assert authorities.verify([bytes(bytearray(node.der))]) is first


def test_a_refused_chain_is_not_remembered_as_good() -> None:
    ca = make_ca()
    node = make("st1", make_ca("foreign"))
    authorities = trusting(ca)
    for _ in range(2):
        refused(authorities, node, why="issued by none")
    assert not authorities._remembered


def test_a_bounded_number_of_chains_is_remembered() -> None:
    ca = make_ca()
    authorities = trusting(ca)
    nodes = [make(f"st{number}", ca) for number in range(REMEMBERED_CHAINS + 2)]
    used_all_along = authorities.verify([nodes[0].der])
    for node in nodes:
        accepted(authorities, node)
        assert authorities.verify([nodes[0].der]) is used_all_along
    assert len(authorities._remembered) == REMEMBERED_CHAINS


def test_several_threads_verify() -> None:
    ca = make_ca()
    authorities = trusting(ca)
    nodes = [make(f"st{number}", ca) for number in range(REMEMBERED_CHAINS * 2)]
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda node: accepted(authorities, node), nodes * 3))
    assert names == [f"st{number}" for number in range(len(nodes))] * 3


# Whatever bytes come


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.parametrize("kind", ["ed25519", "p256", "rsa2048"])
def test_every_altered_byte_of_a_chain_is_noticed(kind: str) -> None:
    """No octet of a certificate is outside its signature, and whatever cannot be read is refused."""
    root = make_ca("root", using=key(kind, 1))
    lower = make_ca("lower", root, using=key(kind, 2))
    chain = [make("st1", lower, using=key(kind), dns=["st1"], extensions=[(TLS_BOTH, False)]).der, lower.der]
    authorities = trusting(root)
    for which, der in enumerate(chain):
        for index in range(len(der)):
            for bit in (0x01, 0x02, 0x20):
                altered = list(chain)
                altered[which] = der[:index] + bytes([der[index] ^ bit]) + der[index + 1 :]
                with pytest.raises(MessageRefused) as caught:
                    authorities.verify(altered)
                assert caught.value.kind == "certificate"


NOISE_AUTHORITY = make_ca()


@given(st.lists(st.binary(max_size=200), max_size=8))
def test_noise_is_refused_and_raises_nothing_else(chain: list[bytes]) -> None:
    with pytest.raises(MessageRefused):
        trusting(NOISE_AUTHORITY).verify(chain)


def test_the_ignored_warning_exists() -> None:
    """The filter above names it by a string, which would go stale silently."""
    assert issubclass(CryptographyDeprecationWarning, UserWarning)


# Files


def test_authorities_come_from_files_with_one_certificate_or_more(tmp_path: Path) -> None:
    first, second, third = make_ca("first"), make_ca("second"), make_ca("third")
    bundle = write(tmp_path / "bundle.pem", pem(first, second))
    authorities = Authorities.from_files([bundle, write(tmp_path / "third.pem", pem(third))])
    for ca in (first, second, third):
        assert accepted(authorities, make("st1", ca)) == "st1"


def test_an_expired_authority_does_not_prevent_the_start(tmp_path: Path) -> None:
    expired, current = make_ca("expired", valid=(-2 * DAY, -DAY)), make_ca("current")
    authorities = Authorities.from_files([write(tmp_path / "ca.pem", pem(expired, current))])
    assert accepted(authorities, make("st1", current)) == "st1"
    refused(authorities, make("st1", expired), why="expired")


def test_bad_authority_files_are_named(tmp_path: Path) -> None:
    node = write(tmp_path / "st1.pem", pem(make("st1", make_ca())))
    weak = write(tmp_path / "weak.pem", pem(make_ca(using=key("rsa1024"))))
    noise = write(tmp_path / "noise.pem", b"\xff not pem")
    for path, why in (
        (node, "not a certification authority"),
        (weak, "not accepted for an authority"),
        (noise, "holds no certificate"),
        (tmp_path / "absent.pem", "no such file"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(Misconfigured, match=rf"^{path}: .*{why}"):
            Authorities.from_files([path])
    with pytest.raises(Misconfigured, match=r"trust\.authorities"):
        Authorities.from_files([])
