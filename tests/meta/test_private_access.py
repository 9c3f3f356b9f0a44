"""No module uses private names of another module: whatever is shared has a public name.

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
"""Names with an underscore that are public in the standard library: of named tuples, enums and `os`."""

EXCEPTIONS = {
    # The host name that urllib3 resolves; it strips brackets and a trailing dot from the public one.
    ("adapters/requests.py", "_dns_host"),
    # aiohttp's exception keeps the constructor's argument only under this name.
    ("adapters/aiohttp.py", "_conn_key"),
}
"""The exceptions: (file, attribute), each with its reason."""


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED


def _is_own(receiver: ast.expr) -> bool:
    """Return whether the receiver is `self`, `cls` or `super()`."""
    if isinstance(receiver, ast.Call):
        receiver = receiver.func
    return isinstance(receiver, ast.Name) and receiver.id in {"self", "cls", "super"}


def defined_in(tree: ast.AST) -> set[str]:
    """Return the private names that the module's own classes define."""
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
            # The extension module is called _native, and importing a module is not access to a private attribute.
            yield from (alias.name for alias in node.names if _is_private(alias.name) and alias.name != "_native")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_uses_no_private_name_of_another(path: Path) -> None:
    name = str(path.relative_to(PACKAGE))
    found = {(name, attribute) for attribute in reached_into(path.read_text())}
    assert not found - EXCEPTIONS


def test_each_exception_is_still_needed() -> None:
    """If this fails, delete the exception, because its reason no longer exists."""
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
def test_private_access_is_recognised(source: str, found: list[str]) -> None:
    assert list(reached_into(source)) == found
