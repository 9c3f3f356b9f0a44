"""The alarm: it rings at its deadline, and closes its descriptor exactly once."""

from __future__ import annotations

import os
import select
import subprocess
import sys

import pytest

from wyrmhole.device.clock import Alarm, SystemClock


def rings(alarm: Alarm, patience: float = 20) -> bool:
    return bool(select.select([alarm.fileno()], [], [], patience)[0])


def test_a_deadline_in_the_past_rings_immediately_and_once() -> None:
    alarm = Alarm()
    alarm.set(0)
    assert rings(alarm)
    alarm.clear()
    assert not rings(alarm, 0)
    alarm.clear()
    alarm.close()


def test_without_a_deadline_the_alarm_does_not_ring() -> None:
    alarm = Alarm()
    alarm.set(SystemClock().boottime())
    alarm.set(None)
    assert not rings(alarm, 0)
    alarm.close()


def test_a_repeated_close_does_not_close_another_descriptor() -> None:
    alarm = Alarm()
    number = alarm.fileno()
    alarm.close()
    assert alarm.fileno() == -1
    with pytest.raises(OSError):
        os.fstat(number)
    other = os.open(os.devnull, os.O_RDONLY)
    assert other == number, "the kernel did not reuse the lowest number"
    alarm.close()
    os.fstat(other)
    os.close(other)


def test_descriptor_zero_is_closed_like_any_other() -> None:
    """If the program has closed its standard input, the alarm gets descriptor 0."""
    program = (
        "import os; from wyrmhole.device.clock import Alarm; os.close(0); alarm = Alarm()\n"
        "assert alarm.fileno() == 0; alarm.close()\n"
        "try: os.fstat(0)\n"
        "except OSError: print('closed')"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("closed\n", "")
