"""A small model of the kernel's seccomp interpreter, with the instructions that our assembler emits."""

from __future__ import annotations

import struct

_INSTRUCTION = struct.Struct("=HBBI")


def run(program: bytes, number: int, architecture: int, arguments: tuple[int, ...] = ()) -> int:
    """Return the verdict. Raises IndexError if a jump leaves the program, ValueError for an unknown instruction."""
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *padded)
    code = list(_INSTRUCTION.iter_unpack(program))
    accumulator = at = 0
    while True:
        operation, if_true, if_false, operand = code[at]
        at += 1
        if operation == 0x06:
            return int(operand)
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif operation == 0x54:
            accumulator &= operand
        elif operation in (0x15, 0x25, 0x35):
            holds = {0x15: accumulator == operand, 0x25: accumulator > operand, 0x35: accumulator >= operand}
            at += if_true if holds[operation] else if_false
        else:
            raise ValueError(hex(operation))
