"""Log lines: form, escaping and rate limit."""

from __future__ import annotations

import logging
import os
import re
import select

from wyrmhole.cli.log_lines import KIND_LINES, MAX_CLASSES, BoundedHandler, LineFormatter, RateLimit
from wyrmhole.protocol.keys import PrivateKey


def record(message: str, *args: object, level: int = logging.DEBUG, rate_class: str | None = None) -> logging.LogRecord:
    record = logging.LogRecord("wyrmhole", level, __file__, 1, message, args, None)
    if rate_class is not None:
        record.rate_class = rate_class
    return record


def test_lines_have_the_form_of_wireguard_go() -> None:
    line = LineFormatter("wg0").format(record("Device %s", "started"))
    assert re.fullmatch(r"DEBUG: \(wg0\) \d{4}/\d\d/\d\d \d\d:\d\d:\d\d Device started", line)


def test_levels_are_those_of_wireguard_go_and_warnings() -> None:
    words = [LineFormatter("wg0").format(record("x", level=level)).split(":")[0] for level in (10, 20, 30, 40, 50)]
    assert words == ["DEBUG", "DEBUG", "WARNING", "ERROR", "ERROR"]


def test_foreign_bytes_stay_on_one_short_line() -> None:
    line = LineFormatter("wg0").format(record("from %s", "\x1b[2J\n\r\x00\u202e" + "A" * 100_000))
    assert "from \\x1b[2J\\n\\r\\x00\\u202eAAA" in line
    assert line.isprintable() and len(line) < 1200


def test_exception_is_one_line_with_its_place() -> None:
    """The line contains no value of a variable."""
    secret = PrivateKey(bytes(range(32)))
    try:
        raise RuntimeError(f"cannot use {secret}")
    except RuntimeError as error:
        failed = record("step failed", level=logging.ERROR)
        failed.exc_info = (type(error), error, error.__traceback__)
    line = LineFormatter("wg0").format(failed)
    assert "step failed: RuntimeError: cannot use PrivateKey(hidden)" in line
    assert "test_log_lines.py:" in line and "\n" not in line
    assert secret.hex() not in line and secret.base64() not in line


def test_one_line_per_second_and_class_is_logged() -> None:
    now = 100.0
    limit = RateLimit(clock=lambda: now)
    assert limit.filter(record("a", rate_class="a"))
    assert not any(limit.filter(record("a", rate_class="a")) for _ in range(5))
    assert limit.filter(record("b", rate_class="b"))
    assert all(limit.filter(record("not limited")) for _ in range(5))
    now = 101.0
    again = record("a %d", 7, rate_class="a")
    assert limit.filter(again)
    assert again.getMessage() == "a 7 (similar lines omitted: 5)"
    now = 102.0
    last = record("a", rate_class="a")
    assert limit.filter(last) and last.getMessage() == "a"


def test_number_of_classes_is_bounded() -> None:
    limit = RateLimit(clock=lambda: 100.0)
    passed = sum(limit.filter(record("x", rate_class=str(number))) for number in range(10 * MAX_CLASSES))
    assert passed == MAX_CLASSES + 1


def test_all_sources_together_get_ten_lines_per_second() -> None:
    now = 100.0
    limit = RateLimit(clock=lambda: now)
    passed = [limit.filter(record("x", rate_class=f"refused 192.0.2.{number}")) for number in range(200)]
    assert sum(passed) == KIND_LINES
    assert limit.filter(record("x", rate_class="silent peer(abc)")), "another kind of message"
    now = 101.0
    again = record("x", rate_class="refused 198.51.100.1")
    assert limit.filter(again) and again.getMessage() == "x (similar lines omitted: 190)"


def test_quiet_sources_are_forgotten_but_their_lines_counted() -> None:
    now = 100.0
    limit = RateLimit(clock=lambda: now)
    for _ in range(3):
        limit.filter(record("x", rate_class="refused 192.0.2.1"))
    for number in range(MAX_CLASSES):
        limit.filter(record("x", rate_class=str(number)))
    now = 105.0
    fresh = record("x", rate_class="refused 192.0.2.2")
    assert limit.filter(fresh) and fresh.getMessage() == "x (similar lines omitted: 2)"


def test_stalled_reader_costs_lines_but_does_not_block() -> None:
    """A full pipe would block the control thread. The next line that can be written reports how many were lost."""
    read_fd, write_fd = os.pipe()
    with open(read_fd, "rb") as reader, open(write_fd, "w") as writer:
        os.set_blocking(write_fd, False)
        try:
            while True:
                os.write(write_fd, bytes(4096))
        except BlockingIOError:
            os.set_blocking(write_fd, True)
        handler = BoundedHandler(writer)
        for _ in range(30):
            handler.handle(record("lost"))
        os.set_blocking(read_fd, False)
        while os.read(read_fd, 65536) and select.select([read_fd], [], [], 0)[0]:
            continue
        os.set_blocking(read_fd, True)
        handler.handle(record("taken"))
        assert reader.readline() == b"taken (lines lost: 30)\n"


def test_line_fits_into_an_atomic_write_to_a_pipe() -> None:
    for text in ("\N{GRINNING FACE}" * 2000, "\U000e0001" * 2000, "\n" * 2000):
        assert len(LineFormatter("w" * 15).format(record("%s", text)).encode()) < 4096
