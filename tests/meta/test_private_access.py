"""No module reaches into the private parts of another: what it needs there has a public name.

An underscore in front of an attribute is a promise that the attribute can be renamed by reading one file. So `x._name`
is allowed for `self`, `cls` and `super()`, and for other objects only in a module that defines `_name` itself: two
objects of one class, or two classes of one file, may know each other. `from module import _name` is never allowed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "wyrmhole"

DOCUMENTED = {"_asdict", "_exit", "_fields", "_make", "_replace", "_value_"}
"""Names with an underscore that the standard library documents for everybody: of named tuples, enums and `os`."""

EXCEPTIONS = {
    # The name that urllib3 itself resolves: the host without the brackets and the trailing dot that it strips.
    ("adapters/requests.py", "_dns_host"),
    # The constructor's argument, which aiohttp's exception keeps under this name only.
    ("adapters/aiohttp.py", "_conn_key"),
}
"""(file, attribute), each with its reason."""


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED


def _is_own(receiver: ast.expr) -> bool:
    """`self`, `cls` or `super()`."""
    if isinstance(receiver, ast.Call):
        receiver = receiver.func
    return isinstance(receiver, ast.Name) and receiver.id in {"self", "cls", "super"}


def defined_in(tree: ast.AST) -> set[str]:
    """The private names that the module's own classes define."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_own(node.value):
            names.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def reached_into(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    own = defined_in(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and not _is_own(node.value):
            if node.attr not in own:
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wyrmhole"):
            # The extension module is called _native, and a module's name is not an attribute of somebody else.
            yield from (alias.name for alias in node.names if _is_private(alias.name) and alias.name != "_native")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_keeps_out_of_the_private_parts_of_others(path: Path) -> None:
    name = str(path.relative_to(PACKAGE))
    found = {(name, attribute) for attribute in reached_into(path.read_text())}
    assert not found - EXCEPTIONS


def test_each_exception_is_still_needed() -> None:
    """If this fails, delete the line of the exception: its reason is gone."""
    used = {
        (str(path.relative_to(PACKAGE)), each)
        for path in PACKAGE.rglob("*.py")
        for each in reached_into(path.read_text())
    }
    assert used >= EXCEPTIONS


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("engine._tables.indices", ["_tables"]),
        ("self._engine._tables", ["_tables"]),
        ("exchange._limiter = None", ["_limiter"]),
        ("from wyrmhole.library.opening import _open", ["_open"]),
        ("self._own; cls._own; super()._own; value.__class__; record._replace(a=1)", []),
        ("class A:\n def __init__(self): self._x = 1\n def __eq__(self, other): return other._x == self._x", []),
        ("class A:\n def _x(self): ...\ndef use(a): a._x()", []),
        ("class A:\n  _x: int = 0\ndef use(a): return a._x", []),
    ],
)
def test_the_rule_itself(source: str, found: list[str]) -> None:
    assert list(reached_into(source)) == found
