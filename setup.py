"""The parts that are built from Rust, and the wheel's tag. Everything else is in pyproject.toml.

The native engine and the library's native helper are built if there is a Rust toolchain. Without one, or with
WYRMHOLE_NO_RUST=1, the package still installs, as a wheel for every platform (`py3-none-any`).

One wheel serves CPython 3.11 and every later version (abi3). Free-threaded builds have no stable ABI before 3.15, so
they get a wheel for their own version.
"""

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

OLDEST_RUST = (1, 85)
STABLE_ABI = "cp311"
BUILT = ("wyrmhole/engine/_native*.so", "wyrmhole/library/stacks/_netns_helper")


def is_free_threaded():
    return bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def rust_version():
    """Return the compiler's version as two numbers, or None without a toolchain."""
    compiler = shutil.which(os.environ.get("RUSTC", "rustc"))
    if compiler is None or shutil.which(os.environ.get("CARGO", "cargo")) is None:
        return None
    result = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    found = re.match(r"rustc (\d+)\.(\d+)", result.stdout)
    return (int(found[1]), int(found[2])) if found else None


def why_without_rust():
    """Return the reason for a wheel without Rust, or None if Rust is used."""
    if os.environ.get("WYRMHOLE_NO_RUST", "") not in ("", "0"):
        return "WYRMHOLE_NO_RUST is set"
    version = rust_version()
    if version is None:
        return "there is no Rust toolchain"
    if version < OLDEST_RUST:
        return f"Rust {version[0]}.{version[1]} is older than {OLDEST_RUST[0]}.{OLDEST_RUST[1]}"
    return None


def rust_extensions():
    from setuptools_rust import Binding, RustExtension

    # The crate's default feature is the stable ABI.
    features = ["--no-default-features"] if is_free_threaded() else []
    return [
        RustExtension(
            "wyrmhole.engine._native",
            path="rust/native/Cargo.toml",
            binding=Binding.PyO3,
            args=["--locked", *features],
            debug=False,
            optional=True,
        ),
        RustExtension(
            {"netns_helper": "wyrmhole.library.stacks._netns_helper"},
            path="rust/helper/Cargo.toml",
            binding=Binding.Exec,
            args=["--locked"],
            debug=False,
            optional=True,
        ),
    ]


def is_built(folder):
    """Whether the folder contains a part built from Rust: each part is optional, and its build may have failed."""
    return any(any(Path(folder).glob(pattern)) for pattern in BUILT)


def wheel_command(base):
    class Wheel(base):
        """A wheel for the stable ABI if there is one, or for every platform if no Rust part was built."""

        def initialize_options(self):
            # Set here because an editable installation ignores the `options` of `setup`.
            super().initialize_options()
            self.py_limited_api = False if is_free_threaded() else STABLE_ABI

        def get_tag(self):
            built = is_built(self.get_finalized_command("build").build_lib)
            return super().get_tag() if built else ("py3", "none", "any")

    return Wheel


def build_command(base):
    class Build(base):
        """Start with an empty folder: modules that have moved, or an engine of older sources, would be packed again."""

        def run(self):
            shutil.rmtree(self.build_lib, ignore_errors=True)
            super().run()

    return Build


def arguments(wheel_base):
    """Return the arguments of `setup`. `wheel_base` is the command that builds wheels."""
    reason = why_without_rust()
    if reason is not None:
        print(f"wyrmhole: built without the native engine: {reason}")
        return {}
    return {"rust_extensions": rust_extensions(), "cmdclass": {"bdist_wheel": wheel_command(wheel_base)}}


if __name__ == "__main__":
    from setuptools import setup
    from setuptools.command.bdist_wheel import bdist_wheel
    from setuptools.command.build import build

    chosen = arguments(bdist_wheel)
    chosen.setdefault("cmdclass", {})["build"] = build_command(build)
    setup(**chosen)
