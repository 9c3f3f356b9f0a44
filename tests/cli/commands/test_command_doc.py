"""docs/command.md: its examples run, and it covers every sub-command."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.wyrmhole_command import WYRMHOLE
from wyrmhole.cli import app

TEXT = (Path(__file__).parents[3] / "docs" / "command.md").read_text()
CONF = """[Interface]
PrivateKey = sL4hQ0m2gqZ0pUe0cN5w6f1aDqv3uPp0l1Jq9d2m4Hc=
Address = 10.0.0.2/24
ListenPort = 51820
MTU = 9000

[Peer]
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
AllowedIPs = 10.192.122.3/32, 10.192.124.1/24
"""
HARMLESS = re.compile(r"umask|wyrmhole (genkey|genpsk|check|strip|qr|doctor|completion)\b")


def blocks() -> Iterator[list[tuple[str, str]]]:
    """Return the examples that any user can run with files only: commands, each with its output."""
    for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL):
        found = [
            (line.partition("\n")[0], line.partition("\n")[2]) for line in re.split(r"^\$ ", block, flags=re.M)[1:]
        ]
        if found and all(HARMLESS.match(line) for line, _ in found):
            yield found


@pytest.mark.parametrize("block", list(blocks()), ids=lambda block: block[-1][0][:30])
def test_example_prints_the_documented_output(block: list[tuple[str, str]], tmp_path: Path) -> None:
    (tmp_path / "wg0.conf").touch(0o600)
    (tmp_path / "wg0.conf").write_text(CONF)
    for folder in (".zfunc", ".config/fish/completions", ".local/share/bash-completion/completions"):
        (tmp_path / folder).mkdir(parents=True)
    path = f"{Path(WYRMHOLE).parent}:{os.environ['PATH']}"
    environ = os.environ | {"PATH": path, "HOME": str(tmp_path)}
    for line, shown in block:
        command = ["bash", "-e", "-o", "pipefail", "-c", line]
        result = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        if "doctor" in line:
            assert re.search(r"^(ok|--|NO)  TUN ", result.stdout, re.M)
        else:
            assert (result.returncode, result.stdout) == (0, shown.rstrip("\n") + "\n" * bool(shown)), line


def test_every_sub_command_is_documented() -> None:
    for name in app.COMMAND_MODULES:
        assert re.search(rf"wyrmhole {name}\b", TEXT), name


def test_there_are_examples_to_run() -> None:
    assert len(list(blocks())) == 5
