"""Log lines of the commands that run a tunnel: the default level, and that each message stays on one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from wyrmhole.cli.console_log import OPENING, set_up_console


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    logger = logging.getLogger("wyrmhole")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate, level = before
    logger.setLevel(level)


@pytest.mark.parametrize(
    ("verbose", "quiet", "seen"),
    [
        (False, False, ["info", "warning", "error"]),
        (True, False, ["debug", "info", "warning", "error"]),
        (False, True, ["error"]),
    ],
)
def test_verbosity_decides_what_is_printed(
    verbose: bool, quiet: bool, seen: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_console(verbose, quiet)
    logger = logging.getLogger("wyrmhole.library.services.forward")
    for level in ("debug", "info", "warning", "error"):
        getattr(logger, level)("%s", level)
    assert capsys.readouterr().err.splitlines() == [f"wyrmhole: {level}" for level in seen]


@pytest.mark.parametrize("verbose", [False, True])
def test_choice_of_an_engine_is_printed_only_if_verbose(verbose: bool, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_console(verbose, False)
    logger = logging.getLogger(OPENING)
    logger.info("opened")
    logger.warning("beware")
    assert capsys.readouterr().err.splitlines() == ["wyrmhole: opened"] * verbose + ["wyrmhole: beware"]


def test_name_with_control_characters_stays_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_console(False, False)
    logging.getLogger("wyrmhole").warning("no %s", "a\nb\x1b[2J")
    assert capsys.readouterr().err == "wyrmhole: no a\\nb\\x1b[2J\n"
