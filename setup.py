"""The native engine and the native helper of the library are built where a Rust toolchain is;
without one the package installs all the same.

Everything else is in pyproject.toml.
"""

from setuptools import setup
from setuptools_rust import Binding, RustExtension

setup(
    rust_extensions=[
        RustExtension(
            "wyrmhole.engine._native",
            path="rust/native/Cargo.toml",
            binding=Binding.PyO3,
            py_limited_api=True,
            rust_version=">=1.85",
            args=["--locked"],
            debug=False,
            optional=True,
        ),
        RustExtension(
            {"netns_helper": "wyrmhole.library._netns_helper"},
            path="rust/helper/Cargo.toml",
            binding=Binding.Exec,
            # No rust_version here: where no toolchain is, two of them cannot be compared.
            args=["--locked"],
            debug=False,
            optional=True,
        ),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
