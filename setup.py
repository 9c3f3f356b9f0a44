"""What is built by Rust, and how the wheel is tagged. Everything else is in pyproject.toml.

The native engine and the native helper of the library are built where a Rust toolchain is. Without one, or with
WYRMHOLE_NO_RUST=1, the package installs anyway, as a wheel for every platform (`py3-none-any`).

One wheel serves every CPython from 3.11 on (abi3), except the free-threaded ones, which lack the stable ABI until 3.15:
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
    """The compiler's version as two numbers; None: there is no toolchain."""
    compiler = shutil.which(os.environ.get("RUSTC", "rustc"))
    if compiler is None or shutil.which(os.environ.get("CARGO", "cargo")) is None:
        return None
    result = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    found = re.match(r"rustc (\d+)\.(\d+)", result.stdout)
    return (int(found[1]), int(found[2])) if found else None


def why_without_rust():
    """The reason for a wheel of Python alone; None: Rust takes part."""
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

    # The engine's own default is the stable ABI.
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
    """Whether a build left anything of Rust's there: each part is optional, and may have failed."""
    return any(any(Path(folder).glob(pattern)) for pattern in BUILT)


def wheel_command(base):
    class Wheel(base):
        """For the stable ABI where there is one, and for every platform if no part was built after all."""

        def initialize_options(self):
            # Not by the `options` of `setup`: an editable installation loses those on its way.
            super().initialize_options()
            self.py_limited_api = False if is_free_threaded() else STABLE_ABI

        def get_tag(self):
            built = is_built(self.get_finalized_command("build").build_lib)
            return super().get_tag() if built else ("py3", "none", "any")

    return Wheel


def arguments(wheel_base):
    """Those of `setup`. `wheel_base`: the command that makes wheels."""
    reason = why_without_rust()
    if reason is not None:
        print(f"wyrmhole: built without the native engine: {reason}")
        return {}
    return {"rust_extensions": rust_extensions(), "cmdclass": {"bdist_wheel": wheel_command(wheel_base)}}


if __name__ == "__main__":
    from setuptools import setup
    from setuptools.command.bdist_wheel import bdist_wheel

    setup(**arguments(bdist_wheel))
