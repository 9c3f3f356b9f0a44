"""Without a Rust toolchain the package installs all the same: what setup.py promises setuptools-rust."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
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


def test_the_simulator_ships_and_needs_no_more_than_the_daemon() -> None:
    """Every package below src is in the wheel, and a run imports nothing from elsewhere but the one dependency."""
    root = Path(__file__).parents[2]
    settings = tomllib.loads(root.joinpath("pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["packages"]["find"] == {"where": ["src"]}
    assert root.joinpath("src", "wyrmhole", "simulation", "__init__.py").exists()
    program = (
        "import sys; before = set(sys.modules); from wyrmhole.simulation.__main__ import main;"
        "main(['--seed', '1', '--hours', '0.01', '--hosts', '2']);"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    foreign = set(said.splitlines()[-1].split()) - set(sys.stdlib_module_names) - {"wyrmhole"}
    assert foreign - {"__mp_main__"} <= {"cryptography", "_cffi_backend", "_openssl"}, "the latter two are its parts"
