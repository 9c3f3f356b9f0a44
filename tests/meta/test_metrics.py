"""The figures of docs/architecture.md have bounds, so that none of them grows unnoticed."""

from __future__ import annotations

import re
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOADER = SourceFileLoader("metrics", str(ROOT / "scripts" / "metrics"))
SPEC = spec_from_loader("metrics", LOADER)
assert SPEC is not None
metrics = module_from_spec(SPEC)
LOADER.exec_module(metrics)

BOUNDS = {"inner_imports": 19, "uses_of_any": 59, "pairs_of_places": 39, "without_twin": 0}


@pytest.mark.parametrize("figure", BOUNDS)
def test_a_figure_stays_within_its_bound(figure: str) -> None:
    found = getattr(metrics, figure)()
    assert len(found) <= BOUNDS[figure], "\n".join(found)


@pytest.mark.parametrize("language", ["python", "rust"])
def test_no_function_has_more_than_sixty_lines(language: str) -> None:
    sizes = getattr(metrics, f"{language}_functions")()
    assert len(sizes) > 500
    assert {name: size for name, size in sizes.items() if size > 60} == {}


def test_a_long_file_gives_its_reason() -> None:
    assert [name for name, has_reason in metrics.long_files().items() if not has_reason] == []


def test_a_copy_of_six_lines_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"value_{number} = function({number})" for number in range(8)]
    (tmp_path / "src").mkdir()
    for name, copied in (("one", lines), ("six", lines[:6]), ("five", lines[3:])):
        (tmp_path / "src" / f"{name}.py").write_text("import os\n\n" + "\n\n    ".join(copied) + "\n")
    monkeypatch.setattr(metrics, "ROOT", tmp_path)
    assert metrics.pairs_of_places() == ["src/one.py:3 ~ src/six.py:3"]


def test_the_document_gives_the_names_of_all_figures() -> None:
    document = (ROOT / "docs" / "architecture.md").read_text()
    script = (ROOT / "scripts" / "metrics").read_text()
    for what in re.findall(r'^        \("([^"]+)", \w+\),$', script, re.MULTILINE):
        assert what in document
