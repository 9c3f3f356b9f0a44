"""Every input of the fuzzing corpus, once: what was found to matter keeps working, without a fuzzer."""

from __future__ import annotations

import ast
import importlib
import random
from pathlib import Path

import pytest

from fuzz import seeds
from fuzz.handshake import REPLACED
from fuzz.run import CORPUS, MOST_KEPT, names

TARGETS = names()
ORIGINAL = {(module, name): getattr(module, name) for module, name, _ in REPLACED}
"""As they are before any target is imported."""


@pytest.fixture(autouse=True)
def other_tests_compute_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the targets put in the place of Diffie-Hellman goes with the test. They do so when they are imported."""
    for module, name, value in REPLACED:
        setattr(module, name, ORIGINAL[module, name])
        monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_of_the_corpus_passes(name: str) -> None:
    target = importlib.import_module(f"fuzz.targets.{name}")
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs, "a target has a corpus"
    for path in inputs:
        target.TestOneInput(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_a_few_random_inputs_pass(name: str) -> None:
    target = importlib.import_module(f"fuzz.targets.{name}")
    dice = random.Random(name)
    for data in [b"", *seeds.of(name), *(dice.randbytes(dice.choice([1, 5, 20, 80, 300])) for _ in range(20))]:
        target.TestOneInput(data)


def test_the_corpus_is_small_and_belongs_to_targets() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    for name in TARGETS:
        assert len(list((CORPUS / name).iterdir())) <= MOST_KEPT + len(seeds.of(name))


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_says_what_its_oracle_is(name: str) -> None:
    module = ast.parse((Path(seeds.__file__).parent / "targets" / f"{name}.py").read_text())
    (entry,) = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "TestOneInput"]
    assert ast.get_docstring(module) and ast.get_docstring(entry)


def test_there_are_at_least_ten_targets() -> None:
    assert len(TARGETS) >= 10
