"""The first line and fields of an HTTP message, as they came, put right before h11 reads them strictly.

Only what cannot change where a message ends or whom it is for is put right; the rest is h11's to refuse. Requests (RFC
9112, 2.2 and 3): empty lines before them go, a known method is written in capitals, and a request that names its host
in the address may lack Host. Answers (RFC 9112, 5.1; RFC 9110, 5.5): blanks before a colon go, as do fields whose name
is illegal, and control characters in values become blanks.
"""

from __future__ import annotations

import re

_END = re.compile(rb"\n\r?\n")
_TOKEN = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_CONTROL = re.compile(rb"[\x00\r\x0b\x0c]")
_METHODS = frozenset(b"CONNECT DELETE GET HEAD OPTIONS PATCH POST PUT TRACE".split())
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))


def take_head(data: bytes) -> tuple[bytes, bytes] | None:
    """The head with the empty line behind it, and what follows; None while it is not complete."""
    start = len(data) - len(data.lstrip(b"\r\n"))
    found = _END.search(data, start)
    return None if found is None else (data[start : found.end()], data[found.end() :])


def clean_request(head: bytes) -> bytes:
    """A head that h11 takes where the request means one thing only."""
    first, newline, rest = head.partition(b"\n")
    method, blank, target = first.partition(b" ")
    if method.upper() in _METHODS:
        first = method.upper() + blank + target
    if not re.search(rb"(?mi)^host[ \t]*:", rest) and (host := host_of(target)):
        rest = b"Host: " + host + b"\r\n" + rest
    return first + newline + rest


def host_of(target: bytes) -> bytes:
    """Of the address in a request line, for CONNECT and in absolute form; empty for any other."""
    address = target.partition(b" ")[0]
    _, scheme, behind = address.partition(b"://")
    if scheme:
        address = re.split(rb"[/?#]", behind, maxsplit=1)[0].rpartition(b"@")[2]
    return b"" if address.startswith((b"/", b"*")) or not re.fullmatch(rb"[!-~]+", address) else address


def clean_response(head: bytes) -> tuple[bytes, list[bytes]]:
    """A head that h11 takes, and the lines that were left out."""
    first, *lines = [line.removesuffix(b"\r") for line in head.split(b"\n")]
    kept, left_out = [first], []
    is_kept = True
    for line in lines:
        if line[:1] not in (b" ", b"\t"):  # a continuation goes where its field went
            cleaned = clean_field(line)
            is_kept = cleaned is not None
            line = line if cleaned is None else cleaned
        if is_kept:
            kept.append(line)
        else:
            left_out.append(line)
    return b"\r\n".join(kept), left_out


def clean_field(line: bytes) -> bytes | None:
    """None to leave it out."""
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
