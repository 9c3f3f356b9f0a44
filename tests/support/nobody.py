"""The user nobody, who has no rights, and a Python interpreter that this user may run."""

from __future__ import annotations

import subprocess
import sys

import pytest

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all")


def interpreter() -> str:
    """Return an interpreter of this version that any user may run, unlike that of an environment in root's home."""
    own = sys.executable
    names = (own, f"/usr/bin/python3.{sys.version_info.minor}", "/usr/bin/python3")
    for name in names:
        # Tried as nobody, because root could enter any folder.
        check = "import sys, os, subprocess; sys.exit(subprocess.run([sys.argv[1], '-c', 'import ssl']).returncode)"
        command = [*NOBODY, "/usr/bin/env", "python3", "-c", check, name]
        version = f"import sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
        if all(
            subprocess.run(each, capture_output=True, check=False).returncode == 0
            for each in (command, [*NOBODY, name, "-c", version])
        ):
            return name
    pytest.skip(f"no Python of version {sys.version_info[:2]} that the user 65534 may run")
