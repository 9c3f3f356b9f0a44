"""Documents cite existing tests and files, and each rule of the protocol has a row and a test."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFORMANCE = (ROOT / "docs" / "conformance.md").read_text()
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@cache
def scenarios_of(path: Path) -> dict[str, str]:
    """Return the test functions of a file with their docstrings."""
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


@cache
def sources() -> tuple[dict[str, str], set[str]]:
    """Return all source files by their path without `src/`, and the functions that they define."""
    folders = ("src", "tests", "bench", "examples", "rust/core", "rust/native", "rust/helper")
    paths = (path for folder in folders for end in ("py", "rs") for path in (ROOT / folder).rglob(f"*.{end}"))
    texts = {short(path.relative_to(ROOT).as_posix()): path.read_text() for path in paths if "target" not in path.parts}
    return texts, {name for text in texts.values() for name in re.findall(r"\b(?:def|fn) (\w+)", text)}


def short(path: str) -> str:
    return f"/{path}".replace("/src/", "/")


def slug(heading: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", document.read_text()):
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), target
        if anchor:
            assert anchor in map(slug, re.findall(r"^#+ (.+)$", path.read_text(), re.M)), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_tests_named_in_a_document_exist(document: Path) -> None:
    """A document may omit leading folders, as in `net/tun.py`. `test_x_*` stands for several tests."""
    texts, functions = sources()
    for span in re.findall(r"`([^`\n]+)`", document.read_text()):
        for name in re.findall(r"(?:\w+/)+\w+\.(?:py|rs)\b", span):
            assert any(path.endswith(short(name)) for path in texts), name
        for name in re.findall(r"(?<![\w/])(test_\w+)(?!\w*\.)", span):
            assert any(it == name or (name.endswith("_") and it.startswith(name)) for it in functions), name
