"""Every ailment by every treatment: `python -m tests.ailments FOLDER [WORD]` writes one file of text for each."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tests.conftest  # noqa: F401  finds the tools of `make test-deps`
from tests.ailments.ailments import AILMENTS, Ailment
from tests.ailments.treatments import TREATMENTS
from tests.ailments.ward import Ward

AT_ONCE = 40
"""All of them: nearly all of their time is waiting."""


def treat(ailment: Ailment, *more: str) -> dict[str, str]:
    """The texts of its treatments and of `more`, one after the other: they use one key."""
    with tempfile.TemporaryDirectory() as folder, Ward(Path(folder)) as ward:
        ailment.apply(ward)
        ward.start_peer()
        texts = {}
        for name in (*ailment.treatments, *more):
            texts[name] = TREATMENTS[name](ward)
            if ward.heal is not None:
                ward.heal()
        return texts


def treat_all(ailments: Sequence[Ailment], *more: str) -> Iterator[tuple[Ailment, dict[str, str]]]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from zip(ailments, pool.map(lambda ailment: treat(ailment, *more), ailments), strict=True)


def main(folder: str, word: str = "") -> None:
    wanted = [ailment for ailment in AILMENTS if word in ailment.name]
    for ailment, texts in treat_all(wanted, "go"):
        marks = []
        for name, text in texts.items():
            Path(folder, f"{ailment.name}.{name}.txt").write_text(text)
            mark = "blind" if name in ailment.blind else "NO"
            marks.append(f"{name}: {'yes' if ailment.is_named(text) else mark}")
            if name != "go" and (wrong := ailment.wrong(text)):
                marks.append(f"WRONG ({', '.join(wrong)})")
        print(f"{ailment.name:48} {', '.join(marks)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
