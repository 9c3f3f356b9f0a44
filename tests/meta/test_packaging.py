"""Without a Rust toolchain the package installs all the same: what setup.py promises setuptools-rust."""

from __future__ import annotations

import ast
from pathlib import Path


def test_what_is_built_by_rust_may_be_left_out() -> None:
    """And only one names a version: two cannot be compared where there is no toolchain to compare them with."""
    tree = ast.parse(Path(__file__).parents[2].joinpath("setup.py").read_text())
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "RustExtension"
    ]
    words = [{word.arg: ast.unparse(word.value) for word in call.keywords} for call in calls]
    assert len(words) == 2
    assert all(each["optional"] == "True" and each["debug"] == "False" for each in words)
    assert sum("rust_version" in each for each in words) == 1
