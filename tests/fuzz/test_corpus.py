"""Run every input of the fuzzing corpus once, without a fuzzer, so that faults found earlier do not come back."""

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
"""The originals, saved before any target is imported."""


@pytest.fixture(autouse=True)
def real_diffie_hellman_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore Diffie-Hellman after the test; the fuzz targets replace it when they are imported."""
    for module, name, value in REPLACED:
        setattr(module, name, ORIGINAL[module, name])
        monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_of_the_corpus_passes(name: str) -> None:
    target = importlib.import_module(f"fuzz.targets.{name}")
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs, "the target has no corpus"
    for path in inputs:
        target.TestOneInput(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_some_random_inputs_pass(name: str) -> None:
    target = importlib.import_module(f"fuzz.targets.{name}")
    dice = random.Random(name)
    for data in [b"", *seeds.of(name), *(dice.randbytes(dice.choice([1, 5, 20, 80, 300])) for _ in range(20))]:
        target.TestOneInput(data)


def test_the_corpus_is_small_and_belongs_to_targets() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    for name in TARGETS:
        assert len(list((CORPUS / name).iterdir())) <= MOST_KEPT + len(seeds.of(name))


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_names_its_oracle(name: str) -> None:
    module = ast.parse((Path(seeds.__file__).parent / "targets" / f"{name}.py").read_text())
    (entry,) = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "TestOneInput"]
    assert ast.get_docstring(module) and ast.get_docstring(entry)


def test_there_are_at_least_ten_targets() -> None:
    assert len(TARGETS) >= 10
