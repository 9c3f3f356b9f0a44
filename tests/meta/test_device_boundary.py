"""Programs use protocol and engine only through a device: they do not bypass it or assemble its parts."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "wyrmhole"
BELOW = {"device", "protocol", "datapath", "engine", "simulation"}
"""The device's room, the rooms below it, and the simulation, which replaces it."""
ENGINE_CALLS = {
    "attach_bind",
    "attach_tun",
    "commit",
    "detach_bind",
    "poll_reports",
    "send_keepalive",
    "send_to_peer",
}
"""Methods that only engines have; a call of one bypasses the device."""
INSIDE = {
    "wyrmhole.protocol.interface",
    "wyrmhole.protocol.exchange",
    "wyrmhole.protocol.peer",
    "wyrmhole.protocol.timers",
    "wyrmhole.engine.portable",
    "wyrmhole.engine.native",
    "wyrmhole.device.driver",
}
"""Modules that only a device may use."""
ASKING = {("cli/doctor/checks.py", "select_engine")}
"""The doctor asks which engine a device would use, but does not make one."""


def programs() -> Iterator[tuple[str, ast.Module]]:
    """Yield every file above the device, and the examples."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE)
        if name.parts[0] not in BELOW:
            yield name.as_posix(), ast.parse(path.read_text())
    for path in sorted((ROOT / "examples").glob("*.py")):
        yield f"examples/{path.name}", ast.parse(path.read_text())


def test_programs_do_not_import_the_parts_of_a_device() -> None:
    for name, tree in programs():
        for node in ast.walk(tree):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                imported = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            found = INSIDE & set(imported)
            assert not found, f"{name} imports {found}: ask the device"


def test_programs_make_devices_with_make_device() -> None:
    for name, tree in programs():
        calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
        called = {call.id for call in calls if isinstance(call, ast.Name)}
        made = called & {"Device", "Driver", "select_engine", "PortableEngine", "NativeEngine"}
        assert {(name, each) for each in made} <= ASKING, f"{name} calls {made}: use make_device"


def test_programs_do_not_reach_through_a_device() -> None:
    for name, tree in programs():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute | ast.Name):
                owner = node.value.attr if isinstance(node.value, ast.Attribute) else node.value.id
                reaches = owner.lstrip("_") == "device" and node.attr in {"interface", "engine", "driver"}
                is_private = owner.lstrip("_") == "device" and node.attr.startswith("_")
                assert not reaches and not is_private, f"{name}:{node.lineno} reaches through a device"


def test_programs_do_not_call_an_engine() -> None:
    for name, tree in programs():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in ENGINE_CALLS, f"{name}:{node.lineno} calls the engine"
