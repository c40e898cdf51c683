"""What a signature guarantees, and that the encoding under it is unambiguous (TRAPS 34)."""

from itertools import permutations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from hypothesis import given
from hypothesis import strategies as st

from common.errors import MessageRefused
from common.trust.signing import pae, sign, verify
from tests.unit.test_trust_factory import NODE_KEYS, key

DOMAINS = st.text(st.characters(codec="utf-8"), max_size=8)
PARTS = st.lists(st.binary(max_size=12), max_size=4)


@pytest.mark.parametrize("kind", NODE_KEYS)
def test_a_signature_is_accepted_for_exactly_the_message(kind: str) -> None:
    private_key = key(kind)
    signature = sign(private_key, b"message")
    verify(private_key.public_key(), b"message", signature)
    for altered in (b"messagf", b"message\0", b"messag", b""):
        with pytest.raises(MessageRefused) as caught:
            verify(private_key.public_key(), altered, signature)
        assert caught.value.kind == "signature"


@pytest.mark.parametrize("kind", NODE_KEYS)
def test_another_key_of_the_same_kind_does_not_verify(kind: str) -> None:
    with pytest.raises(MessageRefused):
        verify(key(kind, 1).public_key(), b"message", sign(key(kind), b"message"))


@pytest.mark.parametrize(("kind", "other"), list(permutations(NODE_KEYS, 2)))
def test_a_signature_of_another_kind_of_key_is_refused(kind: str, other: str) -> None:
    with pytest.raises(MessageRefused):
        verify(key(kind).public_key(), b"message", sign(key(other), b"message"))


@pytest.mark.parametrize("kind", NODE_KEYS)
def test_every_altered_bit_of_a_signature_is_noticed(kind: str) -> None:
    private_key = key(kind)
    signature = sign(private_key, b"message")
    for index in range(len(signature)):
        altered = bytearray(signature)
        altered[index] ^= 1
        with pytest.raises(MessageRefused):
            verify(private_key.public_key(), b"message", bytes(altered))


@pytest.mark.parametrize("kind", NODE_KEYS)
@given(signature=st.binary(max_size=300))
def test_arbitrary_bytes_as_a_signature_are_refused_and_nothing_else(kind: str, signature: bytes) -> None:
    with pytest.raises(MessageRefused):
        verify(key(kind).public_key(), b"message", signature)


def test_the_algorithms_are_the_documented_ones() -> None:
    """Programs in other languages check signatures by the README: the parameters are a contract."""
    p256, p384, rsa_key = key("p256"), key("p384"), key("rsa2048")
    assert isinstance(p256, ec.EllipticCurvePrivateKey)
    assert isinstance(p384, ec.EllipticCurvePrivateKey)
    assert isinstance(rsa_key, rsa.RSAPrivateKey)
    p256.public_key().verify(sign(p256, b"m"), b"m", ec.ECDSA(SHA256()))
    p384.public_key().verify(sign(p384, b"m"), b"m", ec.ECDSA(SHA384()))
    pss = padding.PSS(mgf=padding.MGF1(SHA256()), salt_length=32)
    rsa_key.public_key().verify(sign(rsa_key, b"m"), b"m", pss, SHA256())
    assert len(sign(Ed25519PrivateKey.generate(), b"m")) == 64


def test_a_weaker_rsa_padding_is_refused() -> None:
    """The key decides the algorithm: a PKCS#1 v1.5 signature of the right key is no signature here."""
    private_key = key("rsa2048")
    assert isinstance(private_key, rsa.RSAPrivateKey)
    with pytest.raises(MessageRefused):
        verify(private_key.public_key(), b"m", private_key.sign(b"m", padding.PKCS1v15(), SHA256()))


def test_pae_is_the_documented_encoding() -> None:
    one, two, three = (n.to_bytes(8, "big") for n in (1, 2, 3))
    assert pae("d") == one + one + b"d"
    assert pae("dd", b"abc", b"") == three + two + b"dd" + three + b"abc" + bytes(8)


@given(DOMAINS, PARTS, DOMAINS, PARTS)
def test_pae_never_encodes_two_things_alike(d1: str, p1: list[bytes], d2: str, p2: list[bytes]) -> None:
    assert (pae(d1, *p1) == pae(d2, *p2)) == ((d1, p1) == (d2, p2))


@given(DOMAINS, PARTS.filter(bool), st.data())
def test_pae_notices_a_moved_boundary(domain: str, parts: list[bytes], data: st.DataObject) -> None:
    joined = b"".join(parts)
    cut = data.draw(st.integers(0, len(joined)))
    moved = [joined[:cut], joined[cut:]]
    if moved != parts:
        assert pae(domain, *moved) != pae(domain, *parts)


@given(DOMAINS, PARTS)
def test_pae_can_be_taken_apart_again(domain: str, parts: list[bytes]) -> None:
    """An encoding from which the parts follow cannot be ambiguous."""
    encoded = pae(domain, *parts)
    count, rest = int.from_bytes(encoded[:8], "big"), encoded[8:]
    found = []
    for _ in range(count):
        length = int.from_bytes(rest[:8], "big")
        found.append(rest[8 : 8 + length])
        rest = rest[8 + length :]
    assert rest == b""
    assert found == [domain.encode(), *parts]
