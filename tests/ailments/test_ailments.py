"""Every ailment with every treatment: the text names the cause, and no other one.

All ailments run at the same time, because they mostly wait. Each test checks the texts of one ailment.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ailments.__main__ import treat_all
from tests.ailments.ailments import AILMENTS, USUAL, Ailment
from tests.ailments.messages import Message, messages

pytestmark = pytest.mark.network

DOCUMENT = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
LEAST = 25
"""The least number of ailments that the doctor must name, and that a program with the library must name."""


@pytest.fixture(scope="module")
def texts() -> Iterator[dict[str, dict[str, str]]]:
    yield {ailment.name: by_treatment for ailment, by_treatment in treat_all(AILMENTS)}


@pytest.mark.parametrize("ailment", AILMENTS, ids=lambda ailment: ailment.name.replace(" ", "-"))
def test_text_names_the_cause_and_no_other(texts: dict[str, dict[str, str]], ailment: Ailment) -> None:
    assert {*ailment.treatments, *ailment.blind} >= set(USUAL), "a treatment is left out without a reason"
    for name, text in texts[ailment.name].items():
        assert ailment.is_named(text) or name in ailment.blind, f"{name} does not name the cause:\n{text}"
        assert not ailment.wrong(text), f"{name} names {ailment.wrong(text)}:\n{text}"
        assert "Traceback" not in text


def test_nearly_all_ailments_are_named(texts: dict[str, dict[str, str]]) -> None:
    named = Counter(
        name for ailment in AILMENTS for name, text in texts[ailment.name].items() if ailment.is_named(text)
    )
    assert named["doctor"] >= LEAST and named["library"] >= LEAST
    anywhere = [each.name for each in AILMENTS if not any(map(each.is_named, texts[each.name].values()))]
    assert not anywhere, f"no treatment names {anywhere}"


@pytest.mark.parametrize("message", messages(DOCUMENT.read_text()), ids=lambda message: message.text[:60])
def test_message_of_the_document_appears(texts: dict[str, dict[str, str]], message: Message) -> None:
    """Numbers and the part marked `…` may differ."""
    everything = "\n".join(text for by_treatment in texts.values() for text in by_treatment.values())
    assert re.search(message.pattern, everything), f"no text contains: {message.text}"


def test_no_text_shows_a_private_key(texts: dict[str, dict[str, str]]) -> None:
    for by_treatment in texts.values():
        for text in by_treatment.values():
            assert "PrivateKey =" not in text
