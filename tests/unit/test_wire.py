"""Messages: what is written is read, what is altered in any byte is refused, sizes are bounded (TRAPS 17, 34)."""

import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import wire
from common.errors import MessageRefused, Misconfigured
from common.trust.authorities import Authorities
from common.trust.identity import Identity, load_identity
from common.trust.pki import init_cluster, issue_node
from common.trust.sealing import Opener, Sealer, load_cluster_pair
from common.trust.signing import pae, sign
from common.wire import Heartbeat, MessageKind, Reader, Writer, encode_body, message_hash, parse_body
from tests.unit.test_trust_factory import make as make_certificate
from tests.unit.test_trust_factory import make_ca


@dataclass
class Side:
    """Keys of a small cluster, and a clock that a test may turn."""

    identity: Identity
    sealer: Sealer
    opener: Opener
    authorities: Authorities
    now: float = 1_800_000_000.0

    def writer(self, cluster: str = "mft") -> Writer:
        return Writer(self.identity, self.sealer, cluster, clock=lambda: self.now)

    def reader(self, node: str = "st2") -> Reader:
        return Reader(node, "mft", ("st1", "st2"), self.authorities, self.opener)


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Side:
    return make(tmp_path_factory.mktemp("pki"), "st1")


def make(pki: Path, node: str) -> Side:
    if not (pki / "ca.pem").exists():
        init_cluster("mft", pki)
    issue_node(pki, node, pki)
    public, private = load_cluster_pair(pki / "cluster.pem", pki / "cluster.key")
    identity = load_identity(pki / f"{node}.key", pki / f"{node}.pem", node)
    return Side(identity, Sealer(public, rotate_after_s=3600), Opener(private), Authorities.from_files([pki / "ca.pem"]))


@given(st.binary(max_size=2000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_written_is_read(side: Side, body: bytes) -> None:
    message = side.writer().write(MessageKind.BATCH, body, epoch=3, sequence=7, previous=b"p" * 32, first=False, last=True)
    verified = side.reader().verify(message)
    assert side.reader().open(verified) == body
    header = verified.header
    assert (header.epoch, header.sequence, header.previous, header.first, header.last) == (3, 7, b"p" * 32, False, True)
    assert verified.hash == message_hash(message)


def test_every_altered_byte_is_refused(side: Side) -> None:
    reader = side.reader()
    message = side.writer().write(MessageKind.BATCH, b"body " * 20, epoch=1, sequence=1)
    for place in range(len(message)):
        altered = bytearray(message)
        altered[place] ^= 0x01
        with pytest.raises(MessageRefused):
            reader.open(reader.verify(bytes(altered)))


def test_every_truncation_is_refused(side: Side) -> None:
    reader = side.reader()
    message = side.writer().write(MessageKind.BATCH, b"body", epoch=1, sequence=1)
    for size in range(len(message)):
        with pytest.raises(MessageRefused):
            reader.open(reader.verify(message[:size]))


@given(st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_are_refused_by_kind(side: Side, data: bytes) -> None:
    for candidate in (data, wire.MAGIC + data):
        with pytest.raises(MessageRefused) as refused:
            side.reader().verify(candidate)
        assert refused.value.kind in {"malformed", "certificate", "signature", "size"}


def refusal(side: Side, message: bytes, node: str = "st2") -> str:
    with pytest.raises(MessageRefused) as refused:
        side.reader(node).open(side.reader(node).verify(message))
    return refused.value.kind


def test_another_cluster_or_audience_is_refused(side: Side) -> None:
    assert refusal(side, side.writer("other").write(MessageKind.BATCH, b"", epoch=1)) == "cluster"
    assert refusal(side, side.writer().write(MessageKind.REPORT, b"", epoch=1, audience="st9")) == "audience"


def test_a_node_outside_the_roster_is_refused_though_its_certificate_is_good(tmp_path: Path) -> None:
    make(tmp_path, "st1")
    stranger = make(tmp_path, "st9")
    assert refusal(stranger, stranger.writer().write(MessageKind.BATCH, b"", epoch=1)) == "sender"


def test_a_foreign_authority_is_refused(side: Side, tmp_path: Path) -> None:
    foreign = make(tmp_path, "st1")
    assert refusal(side, foreign.writer().write(MessageKind.BATCH, b"", epoch=1)) == "certificate"


def signed(side: Side, sealed_plain: bytes, **header: object) -> bytes:
    """A message of the primary's own key with anything in it."""
    fields = {
        "version": 1,
        "kind": "batch",
        "cluster": "mft",
        "sender": "st1",
        "audience": "*",
        "epoch": 1,
        "sequence": 1,
        "previous": b"",
        "issued_ms": 0,
        "expires_ms": 0,
        "first": True,
        "last": True,
    }
    head = msgspec.msgpack.encode(fields | header)
    payload = len(head).to_bytes(4, "big") + head + side.sealer.seal(sealed_plain, head)
    chain = b"".join(len(one).to_bytes(4, "big") + one for one in side.identity.chain)
    signature = sign(side.identity.key, pae(wire.DOMAIN, payload))
    return wire.MAGIC + len(chain).to_bytes(4, "big") + chain + len(signature).to_bytes(4, "big") + signature + payload


def test_what_the_primary_signed_is_checked_all_the_same(side: Side) -> None:
    assert refusal(side, signed(side, b"\x00", version=2)) == "version"
    assert refusal(side, signed(side, b"\x00", sender="st2")) == "sender"
    assert refusal(side, signed(side, b"\x00", extra=1)) == "malformed"
    assert refusal(side, signed(side, b"\x00", kind="nonsense")) == "malformed"
    assert refusal(side, signed(side, b"\x07body")) == "malformed"
    assert refusal(side, signed(side, b"\x01no zstandard")) == "malformed"


def test_a_compression_bomb_is_refused_before_it_unfolds(side: Side) -> None:
    bomb = zstandard.compress(bytes(64 << 20))
    assert len(bomb) < 1 << 16
    assert refusal(side, signed(side, b"\x01" + bomb)) == "size"
    unannounced = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20))
    assert refusal(side, signed(side, b"\x01" + unannounced)) in {"size", "malformed"}


def test_an_oversize_message_is_refused_unread(side: Side) -> None:
    assert refusal(side, wire.MAGIC + bytes(wire.MAX_MESSAGE_BYTES)) == "size"


def test_control_messages_are_parsed_strictly() -> None:
    beat = Heartbeat(1, 2, b"h", 1, 2, 2)
    assert parse_body(encode_body(beat), Heartbeat) == beat
    with pytest.raises(MessageRefused):
        parse_body(msgspec.msgpack.encode({"number": "one"}), Heartbeat)


CA = make_ca("bank CA", valid=(timedelta(days=-100), timedelta(days=100)))
OLD = make_certificate("st1", CA, valid=(timedelta(days=-10), timedelta(days=-1)))


def long_ago(side: Side, days: float, kind: MessageKind = MessageKind.BATCH) -> bytes:
    """What st1 wrote so many days ago with a certificate that expired yesterday; its clock was right."""
    identity = Identity("st1", OLD.key, (OLD.der,), OLD.parsed.not_after)
    writer = Writer(identity, side.sealer, "mft", clock=lambda: time.time() - days * 86_400)
    return writer.write(kind, b"body", epoch=1, sequence=1, previous=b"p" * 32)


def test_a_batch_outlives_the_certificate_that_it_was_signed_with(side: Side) -> None:
    """TRAPS 8, 34: the journal is served byte for byte, long after its primary has a new certificate; all else is for now."""
    reader = Reader("st2", "mft", ("st1",), Authorities([CA.parsed]), side.opener)
    verified = reader.verify(long_ago(side, 2))
    assert reader.open(verified) == b"body"
    altered = bytearray(long_ago(side, 2))
    altered[-1] ^= 1
    with pytest.raises(MessageRefused, match="signature"):
        reader.verify(bytes(altered))
    for message in (long_ago(side, 2, MessageKind.HEARTBEAT), long_ago(side, 11)):  # before it was valid, too
        with pytest.raises(MessageRefused) as told:
            reader.verify(message)
        assert told.value.kind == "certificate"
    with pytest.raises(MessageRefused, match="none of the authorities"):
        Reader("st2", "mft", ("st1",), Authorities([make_ca("another").parsed]), side.opener).verify(long_ago(side, 2))


def test_nothing_is_put_into_the_log_with_a_certificate_that_has_expired(side: Side) -> None:
    with pytest.raises(Misconfigured, match=r"expired at .*stsync pki issue --node st1"):
        long_ago(side, 0)
