"""The blocks of docs/guide.md, by the names that stand above them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guide.md").read_text()
BLOCKS = dict(re.findall(r"<!-- run: ([\w-]+) -->\n```python\n(.*?)```", GUIDE, re.S))
RECIPES = ("pytest", "notebook", "fastapi", "workers", "gunicorn", "stats")
"""Blocks of "In your framework" and "Reference", which `test_guide_recipes.py` runs."""
