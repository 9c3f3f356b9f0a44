"""A small assembler for seccomp filters: classic BPF over `struct seccomp_data` (seccomp(2), linux/filter.h).

A filter has no loops: there is a block for each system call, each block ends in a verdict, and the last instruction is
the verdict for all other calls. A condition tests one half of an argument. Of an int the kernel reads only the low
half; a pointer needs two conditions.

    nr == socket?   no -> next block
      arg0 == AF_INET?   no -> next alternative;   ...   allow
      arg0 == AF_INET6?  ...
      EPERM
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_INSTRUCTION = struct.Struct("=HBBI")
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_EQUAL, _GREATER, _AT_LEAST = 0x15, 0x25, 0x35
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
MAX_INSTRUCTIONS = 4096
"""BPF_MAXINSNS: the kernel refuses longer programs."""

ALLOW = 0x7FFF_0000
KILL = 0x8000_0000
"""SECCOMP_RET_KILL_PROCESS: the process gets SIGSYS, and the system's log names the call."""


def refuse(errno_value: int) -> int:
    """Return the verdict that makes a call fail with an errno."""
    return 0x0005_0000 | errno_value


@dataclass(frozen=True, slots=True)
class Condition:
    """A test of `argument & mask == value` on the low or high 32 bits of an argument."""

    argument: int
    value: int
    mask: int = 0xFFFF_FFFF
    high: bool = False


@dataclass(frozen=True, slots=True)
class FilterRule:
    """A system call, allowed if all conditions of one alternative hold; otherwise the verdict is `otherwise`."""

    number: int
    alternatives: Sequence[Sequence[Condition]]
    otherwise: int


def assemble(
    architecture: int, rules: Iterable[FilterRule], *, last_number: int, beyond: int, default: int, foreign: int
) -> bytes:
    """Assemble a program. `foreign` is the verdict for other ABIs, `beyond` for numbers above `last_number`.

    Raises ValueError if the program is too long for the kernel.
    """
    program = [
        _instruction(_LOAD, _ARCHITECTURE_OFFSET),
        _instruction(_EQUAL, architecture, 1, 0),
        _instruction(_RETURN, foreign),
        _instruction(_LOAD, _NUMBER_OFFSET),
        # Bit 30 marks x32 on x86_64; no other ABI has numbers as high.
        _instruction(_AT_LEAST, 1 << 30, 0, 1),
        _instruction(_RETURN, foreign),
        _instruction(_GREATER, last_number, 0, 1),
        _instruction(_RETURN, beyond),
    ]
    for rule in rules:
        program += _block(rule)
    program.append(_instruction(_RETURN, default))
    if len(program) > MAX_INSTRUCTIONS:
        raise ValueError(f"the filter has {len(program)} instructions; the kernel accepts {MAX_INSTRUCTIONS}")
    return b"".join(program)


def _block(rule: FilterRule) -> list[bytes]:
    body: list[bytes] = []
    for conditions in rule.alternatives:
        body += _alternative(conditions)
    if all(rule.alternatives):
        body.append(_instruction(_RETURN, rule.otherwise))
    return [_instruction(_EQUAL, rule.number, 0, len(body)), *body]


def _alternative(conditions: Sequence[Condition]) -> list[bytes]:
    """Build the code from the end, because each condition jumps there if it fails."""
    code = [_instruction(_RETURN, ALLOW)]
    for condition in reversed(conditions):
        check = [_instruction(_LOAD, _ARGUMENTS_OFFSET + 8 * condition.argument + 4 * condition.high)]
        if condition.mask != 0xFFFF_FFFF:
            check.append(_instruction(_AND, condition.mask))
        code = [*check, _instruction(_EQUAL, condition.value, 0, len(code)), *code]
    return code


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, if_true, if_false, operand)
