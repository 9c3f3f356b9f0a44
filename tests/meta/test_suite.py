"""Rules of the suite itself: shared code is in support modules, and docstrings are sentences."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for room in ("tests", "fuzz", "bench", "examples") for path in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Return the full names of imported modules, and of the names imported from them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_no_module_imports_a_test_module() -> None:
    """A test module that others import cannot be split, and its tests run again with another room's fixtures."""
    for path in MODULES:
        for name in imported(path):
            assert not (name.startswith("tests.") and ".test_" in name), f"{path}: {name} belongs in tests/support"


TABLES = {
    "M": (ROOT / "docs" / "conformance.md").read_text(),
    "I": (ROOT / "docs" / "reliability.md").read_text(),
    "L": (ROOT / "docs" / "reliability.md").read_text(),
}
CODE = re.compile(r"\b([A-Z])(\d{1,2})\b(?! ?=)")
PROSE = [path for path in MODULES if path.is_relative_to(ROOT / "tests") or path.is_relative_to(ROOT / "fuzz")]


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""


def test_docstring_is_a_sentence_and_its_codes_are_listed() -> None:
    for path in [*PROSE, *sorted((ROOT / "src").rglob("*.py"))]:
        for doc in docstrings(path):
            assert not doc or re.search(r"[A-Za-z]{2}", CODE.sub("", doc)), f"{path}: only codes: {doc!r}"
            for letter, number in CODE.findall(doc):
                row = f"\n| {letter}{number} |"
                assert letter not in "BMIL" or row in TABLES.get(letter, ""), f"{path}: {letter}{number} has no row"
