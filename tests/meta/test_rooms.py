"""The architecture as a test: which room may import which, and that the pure rooms are pure."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "wyrmhole"

_PROTOCOL = {"wire", "protocol"}
_DATAPATH = _PROTOCOL | {"datapath"}
_EDGES = {"wire", "net", "system"}
_ENGINE = _DATAPATH | {"net", "engine"}
_DEVICE = _ENGINE | {"device", "errors", "system"}
_CONTROL = _DEVICE | {"control", "control.uapi", "control.config"}
_COMMON = _CONTROL | {"library.common", "namespaces"}
_SERVICES = _COMMON | {"library.services"}
_CLI = _CONTROL | {"sandbox", "cli", "namespaces"}
_QUICK = _CLI | {"cli.quick"}
_CONFINED = _QUICK | {"cli.confined"}
_DOCTOR = _CONFINED | {"cli.doctor"}
_WORLD_FLOOR = _DEVICE | {"simulation"}

ROOMS: dict[str, set[str]] = {
    "wire": {"wire"},
    "protocol": _PROTOCOL,
    "datapath": _DATAPATH,
    "net": _EDGES,
    "engine": _ENGINE,
    "device": _DEVICE,
    "control": {"control"},
    "control.uapi": _DEVICE | {"control.uapi"},
    "control.config": _CONTROL,
    "sandbox": {"sandbox", "errors", "system"},
    "library.common": _COMMON,
    "library.stacks": _COMMON | {"library.stacks"},
    "library.names": _COMMON | {"library.names"},
    "library.sockets": _COMMON | {"library.stacks", "library.names", "library.sockets"},
    "library.services": _SERVICES,
    "library.proxy": _SERVICES | {"library.proxy"},
    "library.diagnosis": _COMMON | {"library", "library.stacks", "library.sockets", "library.diagnosis"},
    "library": _SERVICES
    | {"library", "library.stacks", "library.sockets", "library.names", "library.proxy", "library.diagnosis"},
    "sync": {"library"},
    "adapters": {"library", "library.common", "library.services", "adapters", "errors"},
    "cli.daemon": _CLI | {"cli.daemon"},
    "cli.quick": _QUICK,
    "cli.confined": _CONFINED,
    "cli.doctor": _DOCTOR,
    "cli.commands": _DOCTOR | {"cli.commands"},
    "cli": _CLI | {"cli.daemon"},
    "simulation.model": _WORLD_FLOOR | {"simulation.model"},
    "simulation.world": _WORLD_FLOOR | {"simulation.model", "simulation.world"},
    "simulation.runs": _WORLD_FLOOR | {"simulation.model", "simulation.world", "simulation.runs"},
    "simulation": _WORLD_FLOOR | {"simulation.runs", "simulation.world"},
    "errors": set(),
    "system": {"system"},
    "namespaces": {"namespaces", "net", "system", "errors"},
    "__main__": {"cli"},
}
"""For each room, and each sub-room as `room.sub`, the rooms that its files may import."""
NET_INTERFACES = {"wyrmhole.net.bind", "wyrmhole.net.tun"}
IMPURE = {
    "asyncio",
    "ctypes",
    "datetime",
    "fcntl",
    "io",
    "logging",
    "os",
    "random",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
}
CLOCKS = {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "clock_gettime", "clock_gettime_ns"}


def modules() -> Iterator[tuple[str, Path]]:
    """Yield each module with its room: `wire`, `library.names`, or, for a top-level file, its own name."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts != ("__init__",):
            yield ".".join(parts[:-1]) or parts[0], path


def imports(path: Path) -> Iterator[str]:
    """Return the full names of a file's imports: `from a.b import c` gives both a.b and a.b.c."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str | None:
    """Return the room of a module, or of a name in a module, given by its full name. None if it is not ours."""
    parts = name.split(".")
    if parts[0] != "wyrmhole" or len(parts) == 1:
        return None
    folders: list[str] = []
    for part in parts[1:]:
        if not (PACKAGE.joinpath(*folders) / part).is_dir():
            break
        folders.append(part)
    return ".".join(folders) or parts[1]


def rooms_imported(path: Path) -> set[str]:
    """Return the imported rooms. If an import names both a package and its module, only the deeper room counts."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {room_of(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {room_of(f"{node.module}.{alias.name}") for alias in node.names}
    return {room for room in found if room is not None}


@pytest.mark.parametrize(("room", "path"), list(modules()), ids=lambda value: getattr(value, "stem", value))
def test_room_imports_only_the_rooms_below_it(room: str, path: Path) -> None:
    assert room in ROOMS, f"{path}: a room that the table does not know"
    assert rooms_imported(path) <= ROOMS[room]


def test_engine_imports_only_the_interfaces_of_the_edges() -> None:
    for room, path in modules():
        if room == "engine":
            edges = {".".join(name.split(".")[:3]) for name in imports(path) if name.startswith("wyrmhole.net.")}
            assert edges <= NET_INTERFACES, path


def test_native_module_has_one_importer() -> None:
    importers = {path.name for _, path in modules() if any(name.endswith("._native") for name in imports(path))}
    assert importers <= {"native.py"}


@pytest.mark.parametrize("pure", ["wire", "protocol", "datapath"])
def test_pure_rooms_import_no_clock_socket_randomness_or_loop(pure: str) -> None:
    for room, path in modules():
        if room == pure:
            assert not {name.split(".")[0] for name in imports(path)} & IMPURE, path


def test_only_one_file_loads_the_c_library() -> None:
    """This holds for the product and for the examples."""
    paths = [path for folder in (PACKAGE, PACKAGE.parents[1] / "examples") for path in folder.rglob("*.py")]
    users = {path.name for path in paths if {"ctypes", "cffi"} & {name.split(".")[0] for name in imports(path)}}
    assert users == {"libc.py"}


def test_only_a_few_files_import_the_crypto_library() -> None:
    """Keys hold its private keys, noise uses its type and aead its cipher. All other files use primitives."""
    allowed = {"primitives.py", "keys.py", "noise.py", "aead.py"}
    users = {path.name for _, path in modules() if any(name.startswith("cryptography") for name in imports(path))}
    assert users <= allowed


def test_only_one_file_reads_the_system_clocks() -> None:
    readers = set()
    for room, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                reads_clock = node.value.id == "time" and node.attr in CLOCKS
                reads_random = node.value.id == "os" and node.attr in {"urandom", "getrandom"}
                if reads_clock or reads_random:
                    readers.add(f"{room}/{path.name}")
    assert readers <= {"device/clock.py", "cli/log_lines.py"}, "only log lines carry the time of day"


def test_protocol_runs_without_clock_sockets_and_randomness() -> None:
    """Inside the pure rooms, the import of each impure module is made to fail."""
    program = """
import sys, builtins
import cryptography.hazmat.primitives.ciphers.aead, cryptography.hazmat.primitives.asymmetric.x25519
import hmac, hashlib, base64, ipaddress, dataclasses, heapq, random, tests.protocol  # what the scenario itself uses
impure = set(sys.argv[1].split(","))
PURE = ("wyrmhole.wire", "wyrmhole.protocol", "wyrmhole.datapath")
real = builtins.__import__
def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "")
    if name.split(".")[0] in impure and importer.startswith(PURE):
        raise ImportError(f"{importer} imports {name}")
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = guarded
import os, time, socket
def refuse(*args, **kwargs): raise AssertionError("the pure core touched the operating system")
for module, names in ((os, ("urandom", "getrandom")), (time, ("time", "time_ns", "monotonic", "monotonic_ns",
        "clock_gettime", "clock_gettime_ns", "sleep")), (socket, ("socket",))):
    for name in names:
        setattr(module, name, refuse)
from tests.support.world import World
world = World()
a, b = world.pair()
for number in range(300):
    a.send(b, b"%d" % number)
    world.run(10**9)
assert len(b.received) == 300, len(b.received)
print("pure")
"""
    result = subprocess.run(
        [sys.executable, "-c", program, ",".join(sorted(IMPURE))],
        cwd=PACKAGE.parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stdout == "pure\n", result.stderr


def test_every_module_can_be_imported_alone() -> None:
    """There is no cycle that works only in one order of imports."""
    names = [
        "wyrmhole." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for _, path in modules()
        if path.name not in {"__init__.py", "native.py"}
    ]
    program = """
import importlib, sys
for name in sys.argv[1:]:
    for loaded in [module for module in sys.modules if module.startswith("wyrmhole")]:
        del sys.modules[loaded]
    importlib.import_module(name)
"""
    result = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_module_has_a_docstring() -> None:
    for _, path in modules():
        assert path.name == "__init__.py" or ast.get_docstring(ast.parse(path.read_text())), path
