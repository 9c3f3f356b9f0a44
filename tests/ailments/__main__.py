"""Every ailment with every treatment: `python -m tests.ailments FOLDER [WORD]` writes the text of each to a file.

`--table` prints the table of docs/troubleshooting.md. `--anonymous` numbers the files in random order, for a reader
who is to find out what is wrong; FOLDER.key maps the numbers to names.
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tests.conftest  # noqa: F401  finds the tools of `make test-deps`
from tests.ailments.ailments import AILMENTS, USUAL, Ailment
from tests.ailments.treatments import TREATMENTS
from tests.ailments.ward import Ward

AT_ONCE = 24
"""Ailments that run at the same time. They mostly wait, but with more, programs start late on two cores."""


def treat(ailment: Ailment, *more: str) -> dict[str, str]:
    """Return the texts of its treatments and of `more`. They run one after the other, because they use one key."""
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
    """Yield the results in the given order. The longest ailments begin first."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        # The last ailments of the list occur within a session and take longest.
        longest = list(reversed(ailments))
        running = {ailment.name: pool.submit(treat, ailment, *more) for ailment in longest}
        for ailment in ailments:
            yield ailment, running[ailment.name].result()


def marks(ailment: Ailment, texts: dict[str, str]) -> Iterator[str]:
    for name, text in texts.items():
        is_named = ailment.is_named_by_go(text) if name == "go" else ailment.is_named(text)
        yield f"{name}: {'yes' if is_named else 'blind' if name in ailment.blind else 'NO'}"
        if name != "go" and (wrong := ailment.wrong(text)):
            yield f"WRONG ({', '.join(wrong)})"


def table(results: Sequence[tuple[Ailment, dict[str, str]]]) -> Iterator[str]:
    """Yield Markdown. wireguard-go's column shows its first line about the cause, otherwise its last line."""
    yield "| what is wrong | doctor | library | `up` | wireguard-go, `LOG_LEVEL=verbose` |"
    yield "|---|---|---|---|---|"
    count = Counter[str]()
    for ailment, texts in results:
        named = {name for name, text in texts.items() if name != "go" and ailment.is_named(text)}
        named |= {"go"} if ailment.is_named_by_go(texts["go"]) else set()
        count.update(named)
        cells = ["names it" if name in named else "-" for name in USUAL]
        if "peer" in named:
            cells[2] = "names it, on the peer"
            count["up"] += "up" not in named
        yield f"| {ailment.name} | {' | '.join(cells)} | {line_of_go(ailment, texts['go'])} |"
    total = " | ".join(f"{count[name]} of {len(results)}" for name in (*USUAL, "go"))
    yield f"| named | {total} |"


def line_of_go(ailment: Ailment, text: str) -> str:
    lines = [re.sub(r"^[A-Z]+: \(\S+\) \S+ \S+ (peer\(\S+\) - )?", "", line) for line in text.splitlines()]
    lines = [line for line in lines if not re.match(r"Routine|UAPI|Interface|UDP bind|Device|Starting|Stopping", line)]
    about = [line for line in lines if ailment.is_named_by_go(line)] or lines[-1:]
    return f"`{about[0][:120].replace('`', chr(39))}`" if about and about[0] else "nothing"


def write(folder: Path, results: Sequence[tuple[Ailment, dict[str, str]]], *, anonymous: bool) -> None:
    files = [(f"{ailment.name}.{name}", text) for ailment, texts in results for name, text in texts.items()]
    if not anonymous:
        for title, text in files:
            (folder / f"{title}.txt").write_text(text)
        return
    files = [(title, text) for title, text in files if not title.endswith(".go")]
    random.shuffle(files)
    for number, (_, text) in enumerate(files, 1):
        (folder / f"{number:03}.txt").write_text(text or "(nothing)\n")
    key = "".join(f"{number:03} {title}\n" for number, (title, _) in enumerate(files, 1))
    folder.with_name(f"{folder.name}.key").write_text(key)


def main(*words: str) -> None:
    options = {word for word in words if word.startswith("--")}
    folder, word = (*(word for word in words if word not in options), "")[:2]
    wanted = [ailment for ailment in AILMENTS if word in ailment.name]
    results = []
    for ailment, texts in treat_all(wanted, "go"):
        results.append((ailment, texts))
        print(f"{ailment.name:48} {', '.join(marks(ailment, texts))}", flush=True, file=sys.stderr)
    Path(folder).mkdir(exist_ok=True)
    write(Path(folder), results, anonymous="--anonymous" in options)
    if "--table" in options:
        print("\n".join(table(results)))


if __name__ == "__main__":
    main(*sys.argv[1:])
