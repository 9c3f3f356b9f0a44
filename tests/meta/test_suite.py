"""Rules of the suite itself: what test modules share is furniture, not another test module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for room in ("tests", "fuzz", "bench", "examples") for path in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The full names of modules, and of what is imported from them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_imports_a_test_module(path: Path) -> None:
    """A test module that serves as a library runs its tests where nobody looks for them, and cannot be split."""
    for name in imported(path):
        assert not (name.startswith("tests.") and ".test_" in name), f"{name} belongs into tests/support"
