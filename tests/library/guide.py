"""The code blocks of docs/guide.md, by the names above them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guide.md").read_text()
BLOCKS = dict(re.findall(r"<!-- run: ([\w-]+) -->\n```python\n(.*?)```", GUIDE, re.S))
RECIPES = ("pytest", "notebook", "fastapi", "workers", "gunicorn", "stats")
"""Blocks of "In your framework" and "Reference", which `test_guide_recipes.py` runs."""


CHECKS = {
    "names": "assert infos[0][4][0] == 'fd77::2'",
    "httpx": "assert page.text.startswith('hello')",
    "requests": "assert page.text.startswith('hello')",
    "aiohttp": "assert page.startswith(b'hello')",
    "anyio": "",
    "forward": (
        "writer.write(b'GET / HTTP/1.0\\r\\n\\r\\n')\nassert b'200' in await reader.readline()\nwriter.close()\n"
        "forward.close()"
    ),
    "forward-udp": "forward.close()",
    "expose": "exposed.close()",
    "proxy": "assert port > 0\nproxy.close()",
}
"""The checks after each block."""
