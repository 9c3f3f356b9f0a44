"""A small assembler for seccomp filters: classic BPF over `struct seccomp_data` (seccomp(2), linux/filter.h).

A filter is straight-line: one block for each system call, each block ends in a verdict, and the last instruction is
the verdict on everything else. A condition looks at one half of an argument: of an int the kernel reads only the low
one, a pointer takes two conditions.

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
"""SECCOMP_RET_KILL_PROCESS: SIGSYS, and the system's log says which call it was."""


def refuse(errno_value: int) -> int:
    """The verdict "fail with this errno"."""
    return 0x0005_0000 | errno_value


@dataclass(frozen=True, slots=True)
class Condition:
    """`argument & mask == value`, for the low or the high 32 bits of the argument."""

    argument: int
    value: int
    mask: int = 0xFFFF_FFFF
    high: bool = False


@dataclass(frozen=True, slots=True)
class FilterRule:
    """One system call: allowed when all conditions of one of the alternatives hold, else `otherwise`."""

    number: int
    alternatives: Sequence[Sequence[Condition]]
    otherwise: int


def assemble(
    architecture: int, rules: Iterable[FilterRule], *, last_number: int, beyond: int, default: int, foreign: int
) -> bytes:
    """The program. `foreign`: the verdict on calls of another ABI; `beyond`: on numbers above `last_number`.

    Raises ValueError when it is longer than the kernel takes.
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
        raise ValueError(f"the filter has {len(program)} instructions, the kernel takes {MAX_INSTRUCTIONS}")
    return b"".join(program)


def _block(rule: FilterRule) -> list[bytes]:
    body: list[bytes] = []
    for conditions in rule.alternatives:
        body += _alternative(conditions)
    if all(rule.alternatives):
        body.append(_instruction(_RETURN, rule.otherwise))
    return [_instruction(_EQUAL, rule.number, 0, len(body)), *body]


def _alternative(conditions: Sequence[Condition]) -> list[bytes]:
    """Backwards, because each condition jumps to the end when it fails."""
    code = [_instruction(_RETURN, ALLOW)]
    for it in reversed(conditions):
        check = [_instruction(_LOAD, _ARGUMENTS_OFFSET + 8 * it.argument + 4 * it.high)]
        if it.mask != 0xFFFF_FFFF:
            check.append(_instruction(_AND, it.mask))
        code = [*check, _instruction(_EQUAL, it.value, 0, len(code)), *code]
    return code


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, if_true, if_false, operand)
