"""Every ailment by every treatment: `python -m tests.ailments FOLDER [WORD]` writes one file of text for each."""

from __future__ import annotations

import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tests.conftest  # noqa: F401  finds the tools of `make test-deps`
from tests.ailments.ailments import AILMENTS, Ailment
from tests.ailments.treatments import TREATMENTS
from tests.ailments.ward import Ward

AT_ONCE = 8
"""Nearly all of their time is waiting."""


def treat(ailment: Ailment) -> dict[str, str]:
    """The texts of all treatments, one after the other: they use one key."""
    with tempfile.TemporaryDirectory() as folder, Ward(Path(folder)) as ward:
        ailment.apply(ward)
        ward.start_peer()
        return {name: treatment(ward) for name, treatment in TREATMENTS.items()}


def names_cause(ailment: Ailment, text: str) -> bool:
    return any(re.search(pattern, text) for pattern in ailment.cause)


def names_another(ailment: Ailment, text: str) -> bool:
    return any(re.search(pattern, text) for pattern in ailment.never)


def main(folder: str, word: str = "") -> None:
    wanted = [ailment for ailment in AILMENTS if word in ailment.name]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for ailment, texts in zip(wanted, pool.map(treat, wanted), strict=True):
            marks = []
            for name, text in texts.items():
                Path(folder, f"{ailment.name}.{name}.txt").write_text(text)
                mark = "blind" if name in ailment.blind else "NO"
                marks.append(f"{name}: {'yes' if names_cause(ailment, text) else mark}")
                if names_another(ailment, text):
                    marks.append("WRONG")
            print(f"{ailment.name:48} {', '.join(marks)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
