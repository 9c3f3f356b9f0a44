"""The Rust parts of a build, and the tags and content of wheels."""

from __future__ import annotations

import importlib.util
import runpy
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


class FakeRust(SimpleNamespace):
    """The part of setuptools_rust that setup.py uses. The package itself need not be installed."""

    Binding = SimpleNamespace(PyO3="PyO3", Exec="Exec")

    @staticmethod
    def RustExtension(target: object, **words: object) -> SimpleNamespace:
        return SimpleNamespace(target=target, **words)


class Base:
    """The setuptools command that makes wheels."""

    build_lib = ""
    py_limited_api: str | bool = False

    def initialize_options(self) -> None:
        self.py_limited_api = False

    def get_finalized_command(self, _name: str) -> SimpleNamespace:
        return SimpleNamespace(build_lib=self.build_lib)

    def get_tag(self) -> tuple[str, str, str]:
        return "cp311", "abi3", "linux_x86_64"


def options(chosen: dict[str, Any]) -> object:
    """Return the stable ABI of the wheel command, which a second initialisation must not change."""
    command = chosen["cmdclass"]["bdist_wheel"]()
    command.initialize_options()
    return command.py_limited_api


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Load setup.py on a CPython with the stable ABI and a sufficiently new toolchain."""
    monkeypatch.setitem(sys.modules, "setuptools_rust", FakeRust())
    monkeypatch.delenv("WYRMHOLE_NO_RUST", raising=False)
    spec = importlib.util.spec_from_file_location("wyrmhole_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "rust_version", lambda: (1, 95))
    monkeypatch.setattr(module, "is_free_threaded", lambda: False)
    return module


def test_one_wheel_serves_every_cpython_with_the_stable_abi(setup: ModuleType) -> None:
    chosen = setup.arguments(Base)
    assert options(chosen) == "cp311"
    engine, helper = chosen["rust_extensions"]
    assert (engine.args, helper.args) == (["--locked"], ["--locked"])
    assert engine.optional and helper.optional, "a part that fails to build may be left out"
    assert not engine.debug and not helper.debug
    assert not hasattr(engine, "py_limited_api"), "deprecated since setuptools-rust 1.13"


def test_free_threaded_cpython_gets_its_own_wheel(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before CPython 3.15, setuptools refuses a stable ABI for free threading."""
    monkeypatch.setattr(setup, "is_free_threaded", lambda: True)
    chosen = setup.arguments(Base)
    assert options(chosen) is False
    assert chosen["rust_extensions"][0].args == ["--locked", "--no-default-features"]


@pytest.mark.parametrize(("value", "expected"), [(1, True), (0, False), (None, False)])
def test_free_threading_is_read_from_the_build_configuration(
    monkeypatch: pytest.MonkeyPatch, value: object, expected: bool
) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: value if name == "Py_GIL_DISABLED" else None)
    assert runpy.run_path(str(ROOT / "setup.py"))["is_free_threaded"]() == expected


@pytest.mark.parametrize(
    ("environ", "version", "reason"),
    [
        ("1", (1, 95), "WYRMHOLE_NO_RUST is set"),
        ("", None, "there is no Rust toolchain"),
        ("0", (1, 84), "Rust 1.84 is older than 1.85"),
    ],
)
def test_wheel_without_rust_is_for_every_platform(
    setup: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environ: str,
    version: tuple[int, int] | None,
    reason: str,
) -> None:
    """Without extensions, setuptools tags a wheel `py3-none-any`. A stable ABI would be a wrong tag."""
    monkeypatch.setenv("WYRMHOLE_NO_RUST", environ)
    monkeypatch.setattr(setup, "rust_version", lambda: version)
    assert setup.arguments(Base) == {}
    assert reason in capsys.readouterr().out


def test_toolchain_needs_compiler_and_cargo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = runpy.run_path(str(ROOT / "setup.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("RUSTC", raising=False)
    monkeypatch.delenv("CARGO", raising=False)
    assert parts["rust_version"]() is None
    for name in ("rustc", "cargo"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'rustc 1.85.1 (4eb161250 2025-03-15)'\n")
        (tmp_path / name).chmod(0o755)
    assert parts["rust_version"]() == (1, 85)
    (tmp_path / "rustc").write_text("#!/bin/sh\necho 'no default toolchain' >&2; exit 1\n")
    assert parts["rust_version"]() is None


def test_wheel_of_a_failed_rust_build_has_no_platform_tag(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Base, "build_lib", str(tmp_path))
    wheel = setup.wheel_command(Base)()
    assert wheel.get_tag() == ("py3", "none", "any")
    (tmp_path / "wyrmhole/library/stacks").mkdir(parents=True)
    (tmp_path / "wyrmhole/library/stacks/_netns_helper").touch()
    assert wheel.get_tag() == ("cp311", "abi3", "linux_x86_64")


def test_build_starts_with_an_empty_folder(setup: ModuleType, tmp_path: Path) -> None:
    class BuildBase:
        build_lib = str(tmp_path / "lib")

        def run(self) -> None:
            assert not (tmp_path / "lib").exists()

    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "moved.py").touch()
    setup.build_command(BuildBase)().run()
    assert not (tmp_path / "lib").exists()


def test_engine_crate_can_be_built_without_the_stable_abi() -> None:
    manifest = tomllib.loads((ROOT / "rust/native/Cargo.toml").read_text())
    assert manifest["features"] == {"default": ["abi3"], "abi3": ["pyo3/abi3-py311"]}
    assert "abi3" not in str(manifest["dependencies"]["pyo3"])


def test_simulator_is_packaged_and_needs_one_dependency() -> None:
    """Every package below src is in the wheel, and a run imports only the standard library and the one dependency."""
    settings = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["packages"]["find"] == {"where": ["src"]}
    assert ROOT.joinpath("src", "wyrmhole", "simulation", "__init__.py").exists()
    program = (
        "import sys; before = set(sys.modules); from wyrmhole.simulation.__main__ import main;"
        "main(['--seed', '1', '--hours', '0.01', '--hosts', '2']);"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    message = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    foreign = set(message.splitlines()[-1].split()) - set(sys.stdlib_module_names) - {"wyrmhole"}
    assert foreign - {"__mp_main__"} <= {"cryptography", "_cffi_backend", "_openssl"}, "the latter two are its parts"
