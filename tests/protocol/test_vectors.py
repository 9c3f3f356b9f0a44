"""Published test vectors. The primitives come from libraries; these vectors show that we call them correctly."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from wyrmhole.datapath.aead import TransportCipher
from wyrmhole.protocol import noise, primitives
from wyrmhole.protocol.constants import CONSTRUCTION, IDENTIFIER, LABEL_COOKIE, LABEL_MAC1
from wyrmhole.protocol.keys import PresharedKey, PrivateKey, PublicKey, clamp

VECTORS = Path(__file__).parent.parent / "vectors"
unhex = bytes.fromhex


@pytest.mark.parametrize(
    ("scalar", "point", "result"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ],
)
def test_curve25519_of_rfc_7748_section_5_2(scalar: str, point: str, result: str) -> None:
    private = X25519PrivateKey.from_private_bytes(clamp(unhex(scalar)))
    assert primitives.dh(private, unhex(point)).hex() == result


def test_curve25519_iterated_of_rfc_7748_section_5_2() -> None:
    """The results after one and after a thousand iterations, with the base point as scalar and coordinate."""
    scalar = coordinate = bytes((9,)) + bytes(31)
    results = {}
    for count in range(1, 1001):
        scalar, coordinate = primitives.dh(X25519PrivateKey.from_private_bytes(scalar), coordinate), scalar
        results[count] = scalar.hex()
    assert results[1] == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    assert results[1000] == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


def test_chacha20_poly1305_of_rfc_8439_section_2_8_2() -> None:
    key = bytes(range(0x80, 0xA0))
    nonce = unhex("070000004041424344454647")
    ad = unhex("50515253c0c1c2c3c4c5c6c7")
    plaintext = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
        b"sunscreen would be it."
    )
    sealed = ChaCha20Poly1305(key).encrypt(nonce, plaintext, ad)
    assert sealed[:16].hex() == "d31a8d34648e60db7b86afbc53ef7ec2"
    assert sealed[-16:].hex() == "1ae10b594f09e26a7e902ecbd0600691"


def test_transport_cipher_is_the_aead_without_associated_data() -> None:
    key, nonce = bytes(range(32)), bytes(4) + (7).to_bytes(8, "little")
    cipher, out = TransportCipher(key), bytearray(5 + 16)
    cipher.seal(nonce, b"hello", None, out)
    assert bytes(out) == ChaCha20Poly1305(key).encrypt(nonce, b"hello", None)
    opened = bytearray(5)
    cipher.open(nonce, bytes(out), None, opened)
    assert opened == b"hello"


def test_blake2s_of_rfc_7693_appendix_b() -> None:
    digest = "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"
    assert primitives.hash2s(b"abc").hex() == digest
    assert primitives.hash2s(b"a", b"bc").hex() == digest


def test_keyed_blake2s_has_16_bytes_of_output() -> None:
    assert primitives.mac(b"k" * 32, b"data") == hashlib.blake2s(b"data", key=b"k" * 32, digest_size=16).digest()


def test_kdf_is_hkdf_of_hmac_blake2s() -> None:
    def mac(key: bytes, data: bytes) -> bytes:
        return hmac.new(key, data, hashlib.blake2s).digest()

    secret = mac(b"key", b"input")
    first = mac(secret, b"\x01")
    second = mac(secret, first + b"\x02")
    third = mac(secret, second + b"\x03")
    assert primitives.kdf1(b"key", b"input") == first
    assert primitives.kdf2(b"key", b"input") == (first, second)
    assert primitives.kdf3(b"key", b"input") == (first, second, third)


def test_hchacha20_of_the_xchacha_draft_section_2_2_1() -> None:
    key = bytes(range(32))
    nonce = unhex("000000090000004a0000000031415927")
    subkey = "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"
    assert primitives.hchacha20(key, nonce).hex() == subkey


def test_xchacha20_poly1305_of_the_xchacha_draft_appendix_a_3_1() -> None:
    """The AEAD of cookie replies (M40)."""
    key = bytes(range(0x80, 0xA0))
    nonce = bytes(range(0x40, 0x58))
    ad = unhex("50515253c0c1c2c3c4c5c6c7")
    plaintext = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
        b"sunscreen would be it."
    )
    sealed = primitives.xseal(key, nonce, plaintext, ad)
    assert sealed[:16].hex() == "bd6d179d3e83d43b9576579493c0e939"
    assert sealed[-16:].hex() == "c0875924c1c7987947deafd8780acf49"
    assert primitives.xopen(key, nonce, sealed, ad) == plaintext
    with pytest.raises(primitives.InvalidTag):
        primitives.xopen(key, nonce, sealed, ad + b"x")


def test_construction_and_identifier_match_the_whitepaper() -> None:
    """The strings, and the initial chaining key and hash derived from them (M1, M2, M3)."""
    assert (len(CONSTRUCTION), len(IDENTIFIER)) == (37, 34)
    assert (LABEL_MAC1, LABEL_COOKIE) == (b"mac1----", b"cookie--")
    chaining_key = primitives.hash2s(CONSTRUCTION)
    assert chaining_key.hex() == "60e26daef327efc02ec335e2a025d2d016eb4206f87277f52d38d1988b78cd36"
    identified = primitives.hash2s(chaining_key, IDENTIFIER)
    assert identified.hex() == "2211b361081ac566691243db458ad5322d9c6c662293e8b70ee19c65ba079ef3"


def test_the_published_noise_vector() -> None:
    """Our code reproduces Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s of the cacophony set (M1, M2, M17, M21)."""
    vector = json.loads((VECTORS / "noise_ikpsk2_25519_chachapoly_blake2s.json").read_text())
    initiator, responder = PrivateKey(unhex(vector["init_static"])), PrivateKey(unhex(vector["resp_static"]))
    psk = PresharedKey(unhex(vector["init_psks"][0]))
    prologue = unhex(vector["init_prologue"])
    payloads = [unhex(message["payload"]) for message in vector["messages"]]
    ciphertexts = [message["ciphertext"] for message in vector["messages"]]
    assert responder.public_key() == PublicKey(unhex(vector["init_remote_static"]))
    static_static = primitives.dh(initiator.exchange_key, responder.public_key().raw)

    sent, first = noise.create_initiation(
        initiator,
        responder.public_key(),
        static_static,
        ephemeral_private=unhex(vector["init_ephemeral"]),
        local_index=1,
        payload=payloads[0],
        prologue=prologue,
    )
    assert (first.ephemeral + first.encrypted_static + first.encrypted_payload).hex() == ciphertexts[0]

    received = noise.consume_initiation(
        responder, responder.public_key(), first, 1, lambda key: static_static, prologue=prologue
    )
    assert received.payload == payloads[0]
    assert received.remote_static == initiator.public_key()
    responder_keys, second, responder_hash = noise.create_response(
        received, psk, ephemeral_private=unhex(vector["resp_ephemeral"]), payload=payloads[1]
    )
    assert (second.ephemeral + second.encrypted_payload).hex() == ciphertexts[1]

    initiator_keys, payload, initiator_hash = noise.consume_response(sent, initiator, psk, second)
    assert payload == payloads[1]
    assert initiator_hash.hex() == responder_hash.hex() == vector["handshake_hash"]
    assert (initiator_keys.send, initiator_keys.receive) == (responder_keys.receive, responder_keys.send)
    for number, (text, ciphertext) in enumerate(zip(payloads[2:], ciphertexts[2:], strict=True)):
        key = initiator_keys.send if number % 2 == 0 else responder_keys.send
        nonce = bytes(4) + (number // 2).to_bytes(8, "little")
        assert ChaCha20Poly1305(key).encrypt(nonce, text, None).hex() == ciphertext
