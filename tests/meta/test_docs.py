"""What the documents name is there: tests, files, and each rule of the protocol."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFORMANCE = (ROOT / "docs" / "conformance.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@cache
def scenarios_of(path: Path) -> dict[str, str]:
    """The test functions of a file with their docstrings."""
    functions = (node for node in ast.walk(ast.parse(path.read_text())) if hasattr(node, "args"))
    return {
        node.name: ast.get_docstring(node) or ""
        for node in functions
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def test_every_test_that_conformance_cites_exists() -> None:
    cited = re.findall(r"`([a-z]+/test_\w+\.py)::(\w+)`", CONFORMANCE)
    assert len(cited) > 80
    for file, name in cited:
        assert name in scenarios_of(ROOT / "tests" / file), f"{file}::{name}"


@pytest.mark.parametrize("number", range(1, 54))
def test_every_rule_has_a_row_and_a_test_that_cites_it(number: int) -> None:
    assert CONFORMANCE.count(f"\n| M{number} |") == 1
    files = (ROOT / "tests").rglob("test_*.py")
    docs = (doc for path in files for doc in scenarios_of(path).values())
    assert any(re.search(rf"\bM{number}\b", doc) for doc in docs)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_file_names_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (document.parent / target).exists(), target
    rooms = "wire|protocol|net|engine|device|control|cli|simulation|library|adapters|sandbox"
    for name in re.findall(rf"`((?:{rooms})/\w+\.py)`", text):
        assert any((folder / name).exists() for folder in (ROOT / "src" / "wyrmhole", ROOT / "tests")), name
