"""scripts/check-words finds the phrases of its list, and accepts ordinary English."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "check-words"


def load() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("check_words", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


CHECK = load()


def phrases(path: str, text: str) -> list[str]:
    return [finding.better for finding in CHECK.find(path, text)]


@pytest.mark.parametrize(
    "sentence",
    [
        "A key of zeros is " + "none.",
        "Raises ValueError when it is not to be " + "had.",
        "It takes some " + "20 us.",
        "The peer is silent from then " + "on.",
        "This is " + "no address.",
        "It hangs " + "else.",
    ],
)
@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("a.py", '"""{}"""\n'),
        ("a.py", "# {}\nX = 1\n"),
        ("a.rs", "/// {}\n"),
        ("a.rs", 'f("{}");\n'),
        ("a.md", "- {}\n"),
    ],
)
def test_phrase_is_found_in_every_kind_of_text(path: str, form: str, sentence: str) -> None:
    assert len(phrases(path, form.format(sentence))) == 1


def test_phrase_is_found_across_lines_and_in_test_names() -> None:
    assert phrases("a.py", "# a key of zeros is\n# none\n")
    assert phrases("a.py", "def test_a_key_of_zeros_is_" + "none() -> None: ...\n")
    assert phrases("a.md", "a key of zeros is\n" + "none\n")


@pytest.mark.parametrize(
    "sentence",
    ["If there is none, the packet waits.", "It is no longer valid.", "x is None", "Nothing else.", "Who is it?"],
)
def test_ordinary_english_is_accepted(sentence: str) -> None:
    assert phrases("a.py", f'"""{sentence}"""\n') == []


def test_tree_is_clean() -> None:
    findings = [finding for path in CHECK.tracked() for finding in CHECK.find(path, (CHECK.ROOT / path).read_text())]
    assert [finding for finding in findings if not finding.path.startswith(CHECK.NOT_YET)] == []


def test_every_exception_is_still_needed() -> None:
    for path, phrase, reason in CHECK.EXCEPTIONS:
        assert reason and phrase in " ".join((CHECK.ROOT / path).read_text().split())
