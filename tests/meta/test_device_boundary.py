"""The device as the only way to protocol and engine: programs neither reach through it nor put its parts together."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "wyrmhole"
BELOW = {"device", "protocol", "datapath", "engine", "simulation"}
"""Rooms that are the device, or what it is made of, or stand in its place."""
ENGINE_CALLS = {
    "attach_bind",
    "attach_tun",
    "commit",
    "detach_bind",
    "poll_reports",
    "send_keepalive",
    "send_to_peer",
}
"""Methods of an engine that no other class of the package has; calling one goes around the device."""
INSIDE = {
    "wyrmhole.protocol.interface",
    "wyrmhole.protocol.exchange",
    "wyrmhole.protocol.peer",
    "wyrmhole.protocol.timers",
    "wyrmhole.engine.portable",
    "wyrmhole.engine.native",
    "wyrmhole.device.driver",
}
"""Modules that only a device drives."""
ASKING = {("cli/doctor/checks.py", "select_engine")}
"""The doctor asks which engine a device would get, and makes none."""


def programs() -> Iterator[tuple[str, ast.Module]]:
    """Every file above the device, and the examples."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE)
        if name.parts[0] not in BELOW:
            yield name.as_posix(), ast.parse(path.read_text())
    for path in sorted((ROOT / "examples").glob("*.py")):
        yield f"examples/{path.name}", ast.parse(path.read_text())


def test_programs_import_nothing_that_only_a_device_drives() -> None:
    for name, tree in programs():
        for node in ast.walk(tree):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                imported = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            found = INSIDE & set(imported)
            assert not found, f"{name} imports {found}: ask the device"


def test_programs_make_devices_by_the_one_function() -> None:
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


def test_programs_call_no_engine() -> None:
    for name, tree in programs():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in ENGINE_CALLS, f"{name}:{node.lineno} calls the engine"
