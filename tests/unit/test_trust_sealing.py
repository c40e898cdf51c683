"""Only holders of the cluster key read a body, and whatever was altered or never sealed is refused."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDH, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from common.errors import MessageRefused, Misconfigured
from common.trust import sealing, wrapping
from common.trust.keys import UnwrappingKey, WrappingKey, as_unwrapping_key, as_wrapping_key
from common.trust.sealing import REMEMBERED_KEYS, Opener, Sealer, load_cluster_pair
from common.trust.signing import pae
from tests.unit.test_trust_factory import CLUSTER_KEYS, key, key_pem, make, pem, write


def pair(kind: str, number: int = 0) -> tuple[WrappingKey, UnwrappingKey]:
    private_key = as_unwrapping_key(key(kind, number))
    assert private_key is not None
    return private_key.public_key(), private_key


def sealer(kind: str = "p256") -> Sealer:
    return Sealer(pair(kind)[0], rotate_after_s=3600)


def opener(kind: str = "p256", number: int = 0) -> Opener:
    return Opener(pair(kind, number)[1])


def refused(one: Opener, sealed: bytes, aad: bytes = b"aad") -> None:
    with pytest.raises(MessageRefused) as caught:
        one.open(sealed, aad)
    assert caught.value.kind == "seal"


def head(sealed: bytes) -> bytes:
    """Version, length and wrapped data key."""
    return sealed[: 3 + int.from_bytes(sealed[1:3], "big")]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("kind", CLUSTER_KEYS)
@given(plain=st.binary(max_size=200), aad=st.binary(max_size=50))
def test_what_is_sealed_opens(kind: str, plain: bytes, aad: bytes) -> None:
    sealed = sealer(kind).seal(plain, aad)
    assert opener(kind).open(sealed, aad) == plain
    if len(plain) > 8:
        assert plain not in sealed


@pytest.mark.parametrize("kind", CLUSTER_KEYS)
@pytest.mark.parametrize("warm", [False, True], ids=["unknown data key", "remembered data key"])
def test_every_altered_byte_is_noticed(kind: str, warm: bool) -> None:
    sealed = sealer(kind).seal(b"body", b"aad")
    receiver = opener(kind)
    if warm:
        receiver.open(sealed, b"aad")
    for index in range(len(sealed)):
        altered = bytearray(sealed)
        altered[index] ^= 1
        refused(receiver, bytes(altered))
    assert receiver.open(sealed, b"aad") == b"body"


@pytest.mark.parametrize("kind", CLUSTER_KEYS)
def test_every_truncation_is_refused(kind: str) -> None:
    sealed = sealer(kind).seal(b"body", b"aad")
    receiver = opener(kind)
    for length in range(len(sealed)):
        refused(receiver, sealed[:length])
    refused(receiver, sealed + b"\0")


@pytest.mark.parametrize("kind", CLUSTER_KEYS)
def test_a_body_opens_only_with_the_data_it_was_sealed_with(kind: str) -> None:
    sealed = sealer(kind).seal(b"body", b"aad")
    for other in (b"", b"aae", b"aad\0"):
        refused(opener(kind), sealed, other)


@pytest.mark.parametrize("kind", CLUSTER_KEYS)
@pytest.mark.parametrize("other", CLUSTER_KEYS)
def test_another_clusters_key_does_not_open(kind: str, other: str) -> None:
    refused(opener(other, 1), sealer(kind).seal(b"body", b"aad"))


def test_parts_of_two_bodies_do_not_combine() -> None:
    """TRAPS 34, mix and match: the wrapped key of one body and the ciphertext of another are no body."""
    first, second = sealer().seal(b"one!", b"aad"), sealer().seal(b"two!", b"aad")
    receiver = opener()
    refused(receiver, head(first) + second[len(head(second)) :])


def test_the_wrapped_key_is_authenticated_with_the_body() -> None:
    """Wrapping the same data key again would otherwise give a second valid form of one message."""
    public_key, private_key = pair("p256")
    secret = bytes(32)
    wrapped = wrapping.wrap(public_key, secret)
    sealed = b"\1" + len(wrapped).to_bytes(2, "big") + wrapped + bytes(12)
    refused(Opener(private_key), sealed + AESGCM(secret).encrypt(bytes(12), b"body", b"aad"))


@pytest.mark.parametrize("kind", CLUSTER_KEYS)
@given(noise=st.binary(max_size=600))
def test_noise_is_refused_and_raises_nothing_else(kind: str, noise: bytes) -> None:
    refused(opener(kind), noise)


@pytest.mark.parametrize("kind", CLUSTER_KEYS)
@given(data=st.data())
def test_noise_in_the_right_form_is_refused_and_raises_nothing_else(kind: str, data: st.DataObject) -> None:
    """Lengths that fit, so that the noise gets to the unwrapping and to points that are not on the curve."""
    size = len(wrapping.wrap(pair(kind)[0], bytes(32)))
    wrapped = bytearray(data.draw(st.binary(min_size=size - 1, max_size=size + 1)))
    wrapped[0] = data.draw(st.sampled_from([0, 2, 3, 4, 6, 7]))
    rest = data.draw(st.binary(min_size=27, max_size=64))
    refused(opener(kind), b"\1" + len(wrapped).to_bytes(2, "big") + bytes(wrapped) + rest)


@pytest.mark.parametrize(
    ("kind", "size"),
    [("p256", 16), ("p256", 24), ("p256", 40), ("p384", 16), ("p384", 40)]
    + [("rsa2048", size) for size in (0, 16, 24, 31, 33, 64)],
)
def test_a_data_key_of_another_length_is_refused(kind: str, size: int) -> None:
    public_key, private_key = pair(kind)
    with pytest.raises(MessageRefused):
        wrapping.unwrap(private_key, wrapping.wrap(public_key, bytes(size)))


@pytest.mark.parametrize(("kind", "size"), [("p256", 65), ("p384", 97)])
def test_the_wrapping_is_the_documented_one(kind: str, size: int) -> None:
    """The key that wraps is bound to the domain and both public points, not to the shared secret alone."""
    public_key, private_key = pair(kind)
    assert isinstance(private_key, EllipticCurvePrivateKey)
    wrapped = wrapping.wrap(public_key, b"k" * 32)
    ephemeral = EllipticCurvePublicKey.from_encoded_point(private_key.curve, wrapped[:size])
    static = public_key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    info = pae("stsync data key v1", wrapped[:size], static)
    derived = HKDF(SHA256(), 32, salt=None, info=info).derive(private_key.exchange(ECDH(), ephemeral))
    assert aes_key_unwrap(derived, wrapped[size:]) == b"k" * 32


def test_a_later_form_is_refused_with_both_numbers() -> None:
    sealed = sealer().seal(b"body", b"aad")
    with pytest.raises(MessageRefused, match=r"form 2.*form 1"):
        opener().open(b"\2" + sealed[1:], b"aad")


def test_an_oversized_body_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = sealer().seal(b"body", b"aad")
    monkeypatch.setattr(sealing, "MAX_SEALED_BYTES", len(sealed) - 1)
    refused(opener(), sealed)


def test_the_data_key_rotates_with_time() -> None:
    clock = Clock()
    one = Sealer(pair("p256")[0], rotate_after_s=10, clock=clock)
    first = head(one.seal(b"body", b""))
    clock.now += 9.9
    assert head(one.seal(b"body", b"")) == first
    clock.now += 0.1
    assert head(one.seal(b"body", b"")) != first


def test_the_data_key_rotates_with_the_number_of_messages() -> None:
    one = Sealer(pair("p256")[0], rotate_after_s=10, clock=Clock(), rotate_after_messages=3)
    heads = [head(one.seal(b"body", b"")) for _ in range(7)]
    assert [heads.count(each) for each in dict.fromkeys(heads)] == [3, 3, 1]


def test_no_two_bodies_under_one_key_have_the_same_nonce() -> None:
    one = sealer()
    bodies = [one.seal(b"body", b"") for _ in range(500)]
    assert len({head(each) for each in bodies}) == 1
    assert len({each[len(head(each)) :][:12] for each in bodies}) == 500


def test_a_rotation_does_not_make_earlier_bodies_unreadable() -> None:
    one = Sealer(pair("p256")[0], rotate_after_s=10, clock=Clock(), rotate_after_messages=1)
    bodies = [one.seal(bytes([number]), b"") for number in range(REMEMBERED_KEYS + 8)]
    receiver = opener()
    for _ in range(2):
        assert [receiver.open(each, b"") for each in bodies] == [bytes([n]) for n in range(len(bodies))]
    assert len(receiver._remembered) == REMEMBERED_KEYS


def test_a_known_data_key_is_unwrapped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bytes] = []
    real = wrapping.unwrap

    def counting(key: UnwrappingKey, wrapped: bytes) -> bytes:
        calls.append(wrapped)
        return real(key, wrapped)

    monkeypatch.setattr(sealing, "unwrap", counting)
    one, receiver = sealer(), opener()
    for _ in range(5):
        receiver.open(one.seal(b"body", b""), b"")
    assert len(calls) == 1


def test_bodies_that_do_not_open_drive_out_no_remembered_key() -> None:
    receiver = opener()
    receiver.open(sealer().seal(b"body", b""), b"")
    before = list(receiver._remembered)
    for _ in range(REMEMBERED_KEYS + 1):
        refused(receiver, sealer().seal(b"body", b"other"), b"aad")
    assert list(receiver._remembered) == before


def test_several_threads_seal_and_open() -> None:
    one = Sealer(pair("p256")[0], rotate_after_s=3600, rotate_after_messages=7)
    receiver = opener()

    def round_trip(number: int) -> bool:
        body = number.to_bytes(4, "big") * 50
        return receiver.open(one.seal(body, b"aad"), b"aad") == body

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(round_trip, range(400)))


def test_secrets_are_not_in_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.urandom", lambda size: b"\xa5" * size)
    one = sealer()
    one.seal(b"body", b"")
    shown = repr(one) + repr(one._current) + repr(vars(one))
    assert "a5" * 8 not in shown  # fewer of them may stand in an address
    assert repr(b"\xa5" * 32)[2:-1] not in shown


@pytest.mark.parametrize("kind", [*CLUSTER_KEYS, "rsa3072"])
def test_a_cluster_pair_loads_and_works(kind: str, tmp_path: Path) -> None:
    """Its dates are not looked at: an expired cluster certificate must not stop replication."""
    made = make("mft cluster", using=key(kind), valid=(timedelta(days=-2), timedelta(days=-1)))
    public_key, private_key = load_cluster_pair(
        write(tmp_path / "cluster.pem", pem(made)), write(tmp_path / "cluster.key", key_pem(made.key))
    )
    assert Opener(private_key).open(Sealer(public_key, 3600).seal(b"body", b""), b"") == b"body"


@pytest.mark.parametrize("kind", ["ed25519", "p521", "k256", "rsa1024"])
def test_an_unsuitable_cluster_key_is_refused_with_the_remedy(kind: str, tmp_path: Path) -> None:
    made = make("mft cluster", using=key(kind))
    certificate = write(tmp_path / "cluster.pem", pem(made))
    with pytest.raises(Misconfigured, match=r"cluster\.pem: .*EC P-256.*RSA.*stsync pki init"):
        load_cluster_pair(certificate, write(tmp_path / "cluster.key", key_pem(made.key)))
    assert as_wrapping_key(made.key.public_key()) is None
    fitting = write(tmp_path / "fitting.pem", pem(make("mft cluster", using=key("p256"))))
    with pytest.raises(Misconfigured, match=r"cluster\.key: .*stsync pki init"):
        load_cluster_pair(fitting, tmp_path / "cluster.key")


def test_a_cluster_pair_that_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    certificate = write(tmp_path / "cluster.pem", pem(make("mft cluster", using=key("p256"))))
    other = write(tmp_path / "cluster.key", key_pem(key("p256", 1)))
    with pytest.raises(Misconfigured, match=r"cluster\.key: is not the private key of .*cluster\.pem"):
        load_cluster_pair(certificate, other)


def test_missing_and_damaged_cluster_files_are_named(tmp_path: Path) -> None:
    good = write(tmp_path / "good.pem", pem(make("mft cluster", using=key("p256"))))
    damaged = write(tmp_path / "damaged", b"no pem")
    with pytest.raises(Misconfigured, match=r"absent\.pem: no such file"):
        load_cluster_pair(tmp_path / "absent.pem", damaged)
    with pytest.raises(Misconfigured, match=r"damaged: holds no certificate"):
        load_cluster_pair(damaged, damaged)
    with pytest.raises(Misconfigured, match=r"damaged: holds no private key"):
        load_cluster_pair(good, damaged)
