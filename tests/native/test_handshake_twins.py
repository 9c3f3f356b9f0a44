"""The handshake in Rust equals the one in Python, byte for byte, for published vectors and for random exchanges."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from wyrmhole.protocol import noise, primitives
from wyrmhole.protocol.constants import IDENTIFIER
from wyrmhole.protocol.cookie import CookieChecker, CookieGenerator
from wyrmhole.protocol.keys import PresharedKey, PrivateKey
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.messages import CookieReply

VECTORS = Path(__file__).parent.parent / "vectors"
unhex = bytes.fromhex
rust: Any = pytest.importorskip("wyrmhole.engine._native").handshake

LOW_ORDER = [
    bytes(32),
    bytes((1,)) + bytes(31),
    unhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    unhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    unhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


def test_the_published_noise_vector() -> None:
    vector = json.loads((VECTORS / "noise_ikpsk2_25519_chachapoly_blake2s.json").read_text())
    prologue, psk = unhex(vector["init_prologue"]), unhex(vector["init_psks"][0])
    payloads = [unhex(message["payload"]) for message in vector["messages"]]
    ciphertexts = [message["ciphertext"] for message in vector["messages"]]
    initiator, responder = unhex(vector["init_static"]), unhex(vector["resp_static"])
    remote, ephemeral = unhex(vector["init_remote_static"]), unhex(vector["init_ephemeral"])
    sent, first = rust.create_initiation(initiator, remote, ephemeral, payloads[0], prologue)
    assert first.hex() == ciphertexts[0]
    known = PrivateKey(initiator).public_key().raw
    received, caller, payload = rust.consume_initiation(responder, first, prologue, known)
    assert (caller, payload) == (known, payloads[0])
    answer = rust.create_response(received, psk, unhex(vector["resp_ephemeral"]), payloads[1])
    assert answer[2].hex() == ciphertexts[1]
    send, receive, payload = rust.consume_response(sent, initiator, psk, answer[2])
    assert (send, receive, payload) == (answer[1], answer[0], payloads[1])


@pytest.mark.parametrize("seed", range(20))
def test_the_twins_interoperate_and_emit_the_same_bytes(seed: int) -> None:
    draw = random.Random(seed).randbytes
    a, b, psk = PrivateKey(draw(32)), PrivateKey(draw(32)), draw(32)
    ephemerals, stamp = (draw(32), draw(32)), draw(12)
    static_static = primitives.dh(a.exchange_key, b.public_key().raw)
    sent, first = noise.create_initiation(
        a, b.public_key(), static_static, ephemeral_private=ephemerals[0], local_index=1, payload=stamp
    )
    body = first.ephemeral + first.encrypted_static + first.encrypted_payload
    rust_sent, rust_body = rust.create_initiation(a.raw, b.public_key().raw, ephemerals[0], stamp, IDENTIFIER)
    assert rust_body == body
    received = noise.consume_initiation(b, b.public_key(), first, 1, lambda key: static_static)
    rust_received, caller, payload = rust.consume_initiation(b.raw, body, IDENTIFIER, a.public_key().raw)
    assert (caller, payload) == (received.remote_static.raw, received.payload)
    keys, second, _ = noise.create_response(received, PresharedKey(psk), ephemeral_private=ephemerals[1])
    send, receive, answer = rust.create_response(rust_received, psk, ephemerals[1], b"")
    assert answer == second.ephemeral + second.encrypted_payload
    assert (send, receive) == (bytes(keys.send), bytes(keys.receive))
    ours, _, _ = noise.consume_response(sent, a, PresharedKey(psk), second)
    send, receive, _ = rust.consume_response(rust_sent, a.raw, psk, answer)
    assert (send, receive) == (bytes(ours.send), bytes(ours.receive))


def test_both_twins_refuse_any_altered_bit() -> None:
    draw = random.Random(7).randbytes
    a, b = PrivateKey(draw(32)), PrivateKey(draw(32))
    sent, body = rust.create_initiation(a.raw, b.public_key().raw, draw(32), draw(12), IDENTIFIER)
    for at in range(0, 8 * len(body), 5):
        altered = bytearray(body)
        altered[at // 8] ^= 1 << at % 8
        if at == 255:
            # The top bit of a public key is ignored (RFC 7748, section 5), but hashed, so the tag is still wrong.
            assert altered[31] != body[31]
        with pytest.raises(ValueError, match="InvalidTag"):
            rust.consume_initiation(b.raw, bytes(altered), IDENTIFIER, a.public_key().raw)
    received, _, _ = rust.consume_initiation(b.raw, body, IDENTIFIER, a.public_key().raw)
    answer = bytearray(rust.create_response(received, bytes(32), draw(32), b"")[2])
    with pytest.raises(ValueError, match="InvalidTag"):
        rust.consume_response(sent, a.raw, b"\1" * 32, bytes(answer))
    answer[40] ^= 1
    with pytest.raises(ValueError, match="InvalidTag"):
        rust.consume_response(sent, a.raw, bytes(32), bytes(answer))


@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_key_of_low_order_is_refused(point: bytes) -> None:
    own = PrivateKey(b"\x42" * 32)
    with pytest.raises(primitives.ZeroSharedSecret):
        primitives.dh(own.exchange_key, point)
    with pytest.raises(ValueError, match="ZeroSharedSecret"):
        rust.dh(own.raw, point)
    with pytest.raises(ValueError, match="ZeroSharedSecret"):
        rust.consume_initiation(own.raw, point + bytes(76), IDENTIFIER, bytes(32))


def test_an_unknown_key_is_detected_before_decrypting_its_timestamp() -> None:
    a, b = PrivateKey(b"\x01" * 32), PrivateKey(b"\x02" * 32)
    _, body = rust.create_initiation(a.raw, b.public_key().raw, b"\x03" * 32, bytes(12), IDENTIFIER)
    with pytest.raises(ValueError, match="UnknownPeer"):
        rust.consume_initiation(b.raw, body, IDENTIFIER, bytes(32))


@pytest.mark.parametrize("size", [0, 1, 31, 32, 63, 64, 65, 127, 128, 129, 300])
def test_the_primitives_are_equal_for_any_length(size: int) -> None:
    draw = random.Random(size).randbytes
    key, data = draw(32), draw(size)
    assert rust.hash2s(data) == primitives.hash2s(data)
    assert rust.mac(key, data) == primitives.mac(key, data)
    assert tuple(rust.kdf3(key, data)) == primitives.kdf3(key, data)
    assert rust.hchacha20(key, key[:16]) == primitives.hchacha20(key, key[:16])
    assert rust.xseal(key, key[:24], data, data[:7]) == primitives.xseal(key, key[:24], data, data[:7])


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_the_cookies_are_equal(host: str) -> None:
    draw = random.Random(3).randbytes
    secret, nonce, public = draw(32), draw(24), PrivateKey(draw(32)).public_key()
    values = iter((secret, nonce))
    checker, sender = CookieChecker(public, lambda size: next(values)), CookieGenerator(public)
    body = b"\1\0\0\0" + draw(112)
    message = sender.add_macs(body, 0)
    reply = checker.create_reply(message, int.from_bytes(message[4:8], "little"), Endpoint(host, 4711), 0)
    assert rust.create_cookie_reply(public.raw, message, (host, 4711), secret, nonce) == reply
    assert sender.consume_reply(CookieReply.parse(reply), 0)
    proven = sender.add_macs(body, 0)
    assert rust.mac2_is_valid(secret, proven, host, 4711)
    assert not rust.mac2_is_valid(secret, proven, host, 4712)
    assert not rust.mac2_is_valid(secret, message, host, 4711)
    assert not rust.mac2_is_valid(nonce + bytes(8), proven, host, 4711)
