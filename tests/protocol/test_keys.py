from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wyrmhole.protocol.keys import Key, PresharedKey, PrivateKey, PublicKey

RAW = bytes(range(32))


@given(st.binary(min_size=32, max_size=32))
def test_text_forms_round_trip(raw: bytes) -> None:
    key = PublicKey(raw)
    assert PublicKey.from_hex(key.hex()) == PublicKey.from_base64(key.base64()) == key


@pytest.mark.parametrize("text", ["", "00" * 31, "00" * 33, "g" * 64, "0" * 63, "0x" + "0" * 62, " " + "0" * 63])
def test_the_error_about_bad_hex_does_not_quote_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"key is") as caught:
        PublicKey.from_hex(text)
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize("text", ["", "AAAA", "A" * 43, "A" * 44, "A" * 42 + "B=", "not base64" * 4])
def test_bad_base64_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="44 characters"):
        PublicKey.from_base64(text)


@pytest.mark.parametrize("kind", [PrivateKey, PresharedKey])
def test_secrets_do_not_print_or_pickle(kind: type[Key]) -> None:
    key = kind(RAW)
    assert key.hex()[:6] not in repr(key) + str(key) + f"{key}"
    assert key.base64()[:4] not in repr(key)
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_public_keys_print_four_characters() -> None:
    assert repr(PublicKey(RAW)) == f"PublicKey({PublicKey(RAW).base64()[:4]}…)"


def test_keys_of_different_kinds_are_never_equal() -> None:
    assert PublicKey(RAW) != PresharedKey(RAW)
    assert PublicKey(RAW) == PublicKey(RAW)
    assert len({PublicKey(RAW), PublicKey(RAW)}) == 1


def test_private_keys_are_clamped_unless_all_zero() -> None:
    key = PrivateKey(b"\xff" * 32)
    assert key.raw[0] == 0xF8
    assert key.raw[31] == 0x7F
    assert PrivateKey(bytes(32)).is_zero
