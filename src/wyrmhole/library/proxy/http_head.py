"""Correct harmless errors in the head of an HTTP message before h11 parses it strictly.

A correction never changes where a message ends or whom it is for; h11 refuses all other errors. In requests (RFC 9112,
2.2 and 3), empty lines before the request are removed, a known method is written in capitals, and Host is added if the
target names the host. In responses (RFC 9112, 5.1; RFC 9110, 5.5), blanks before a colon and fields with an illegal
name are removed, and control characters in values become blanks.
"""

from __future__ import annotations

import re

_END = re.compile(rb"\n\r?\n")
_TOKEN = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_CONTROL = re.compile(rb"[\x00\r\x0b\x0c]")
_METHODS = frozenset(b"CONNECT DELETE GET HEAD OPTIONS PATCH POST PUT TRACE".split())
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))


def take_head(data: bytes) -> tuple[bytes, bytes] | None:
    """Split off the head, including its empty line, from the rest. Return None while it is incomplete."""
    start = len(data) - len(data.lstrip(b"\r\n"))
    found = _END.search(data, start)
    return None if found is None else (data[start : found.end()], data[found.end() :])


def clean_request(head: bytes) -> bytes:
    """Correct the head of a request if its meaning is unambiguous."""
    first, newline, rest = head.partition(b"\n")
    method, blank, target = first.partition(b" ")
    if method.upper() in _METHODS:
        first = method.upper() + blank + target
    if not re.search(rb"(?mi)^host[ \t]*:", rest) and (host := host_of(target)):
        rest = b"Host: " + host + b"\r\n" + rest
    return first + newline + rest


def host_of(target: bytes) -> bytes:
    """Return the host in a request target, for CONNECT and the absolute form; otherwise return nothing."""
    address = target.partition(b" ")[0]
    _, separator, rest = address.partition(b"://")
    if separator:
        address = re.split(rb"[/?#]", rest, maxsplit=1)[0].rpartition(b"@")[2]
    return b"" if address.startswith((b"/", b"*")) or not re.fullmatch(rb"[!-~]+", address) else address


def clean_response(head: bytes) -> tuple[bytes, list[bytes]]:
    """Correct the head of a response, and return it with the lines that were removed."""
    first, *lines = [line.removesuffix(b"\r") for line in head.split(b"\n")]
    kept, left_out = [first], []
    is_kept = True
    for line in lines:
        if line[:1] not in (b" ", b"\t"):  # a continuation line shares the fate of its field
            cleaned = clean_field(line)
            is_kept = cleaned is not None
            line = line if cleaned is None else cleaned
        if is_kept:
            kept.append(line)
        else:
            left_out.append(line)
    return b"\r\n".join(kept), left_out


def clean_field(line: bytes) -> bytes | None:
    """Correct a field line. Return None to remove it."""
    if not line:
        return line
    name, colon, value = line.partition(b":")
    name = name.rstrip(b" \t")
    if not colon or not _TOKEN.fullmatch(name):
        return None
    if name.lower() in _FRAMING:
        is_identity = name.lower() == b"transfer-encoding" and value.strip().lower() == b"identity"
        return None if is_identity else name + colon + value
    return name + colon + _CONTROL.sub(b" ", value)
