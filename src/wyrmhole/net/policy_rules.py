"""Manage rules of policy routing and their tables by rtnetlink, like ip-rule(8).

Source: linux/fib_rules.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from dataclasses import dataclass

from wyrmhole.net import netlink

PROTOCOL = 87
"""The FRA_PROTOCOL of our rules. It is different from those of the routing daemons in /etc/iproute2/rt_protos."""

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

_RTM_NEWRULE, _RTM_DELRULE, _RTM_GETRULE = 32, 33, 34
_CREATE, _EXCLUSIVE = 0x400, 0x200
_FRA_SRC, _FRA_PRIORITY, _FRA_FWMARK, _FRA_SUPPRESS_PREFIXLEN, _FRA_TABLE = 2, 6, 10, 14, 15
_FRA_OIFNAME, _FRA_PROTOCOL = 17, 21
_RTA_TABLE = 15
_TO_TABLE = 1
_INVERT, _OIF_DETACHED = 0x2, 0x10
_SUPPRESS_NOTHING = 0xFFFF_FFFF

_RULE = struct.Struct("=BBBBBBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_UINT = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that selects a table for packets, by output interface, source address or mark.

    `oif` matches only sockets that are bound to the interface (SO_BINDTODEVICE). `inverted` selects the packets that do
    not match. A route whose prefix length is at most `suppressed` is ignored, and the next rule is tried.
    """

    family: int
    table: int
    oif: str = ""
    source: bytes = b""
    mark: int = 0
    inverted: bool = False
    suppressed: int | None = None
    priority: int | None = None
    protocol: int = PROTOCOL
    detached: bool = False
    """Whether the interface `oif` does not exist."""


def add(client: netlink.Client, rule: Rule) -> None:
    """Add a rule. Raises Refused: EEXIST if it exists, EAFNOSUPPORT or EOPNOTSUPP without policy routing."""
    client.change(_RTM_NEWRULE, _CREATE | _EXCLUSIVE, _emit(rule))


def remove(client: netlink.Client, rule: Rule) -> None:
    """Remove a rule. Raises Refused: ENOENT if it does not exist."""
    client.change(_RTM_DELRULE, 0, _emit(rule))


def rules(client: netlink.Client, family: int) -> list[Rule]:
    """Return all rules of a family. Raises OSError."""
    body = _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    return [_parse(message) for message in client.dump(_RTM_GETRULE, body) if message.kind == _RTM_NEWRULE]


def remove_orphans(client: netlink.Client, family: int) -> None:
    """Remove our rules whose interface does not exist or whose table is empty, for example after SIGKILL.

    Raises OSError.
    """
    for rule in rules(client, family):
        if rule.protocol != PROTOCOL:
            continue
        if rule.detached or (rule.source and not has_routes(rule.table, family, unknown=True)):
            with contextlib.suppress(netlink.Refused):
                remove(client, rule)


def has_routes(table: int, family: int, *, unknown: bool = False) -> bool:
    """Whether a table has routes. Returns `unknown` before Linux 4.20, which cannot list a single table.

    Raises OSError.
    """
    client = netlink.Client()
    try:
        client.check_strictly()
        body = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + _number(_RTA_TABLE, table)
        return any(message.kind == netlink.RTM_NEWROUTE for message in list(client.dump(netlink.RTM_GETROUTE, body)))
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return unknown
        if error.errno == errno.ENOENT:
            return False
        raise
    finally:
        client.close()


def _emit(rule: Rule) -> bytes:
    small = rule.table if rule.table < 256 else 0
    body = _RULE.pack(rule.family, 0, len(rule.source) * 8, 0, small, 0, 0, _TO_TABLE, _INVERT if rule.inverted else 0)
    if rule.source:
        body += netlink.emit_attribute(_FRA_SRC, rule.source)
    if rule.oif:
        body += netlink.emit_attribute(_FRA_OIFNAME, rule.oif.encode() + b"\0")
    if rule.mark:
        body += _number(_FRA_FWMARK, rule.mark)
    for kind, value in ((_FRA_SUPPRESS_PREFIXLEN, rule.suppressed), (_FRA_PRIORITY, rule.priority)):
        if value is not None:
            body += _number(kind, value)
    if rule.protocol:
        body += netlink.emit_attribute(_FRA_PROTOCOL, bytes((rule.protocol,)))
    return body + _number(_FRA_TABLE, rule.table)


def _parse(message: netlink.Message) -> Rule:
    family, _, source_bits, _, table, _, _, _, flags = _RULE.unpack_from(message.payload)
    attributes = netlink.parse_attributes(message.payload, _RULE.size)
    source = attributes.get(_FRA_SRC, b"")
    suppressed = _uint(attributes.get(_FRA_SUPPRESS_PREFIXLEN), _SUPPRESS_NOTHING)
    return Rule(
        family=family,
        table=_uint(attributes.get(_FRA_TABLE), table),
        oif=attributes.get(_FRA_OIFNAME, b"").rstrip(b"\0").decode("utf-8", "surrogateescape"),
        source=source if source_bits == len(source) * 8 else b"",
        mark=_uint(attributes.get(_FRA_FWMARK), 0),
        inverted=bool(flags & _INVERT),
        suppressed=None if suppressed == _SUPPRESS_NOTHING else suppressed,
        priority=_uint(attributes.get(_FRA_PRIORITY), 0),
        protocol=(attributes.get(_FRA_PROTOCOL) or b"\0")[0],
        detached=bool(flags & _OIF_DETACHED),
    )


def _uint(value: bytes | None, default: int) -> int:
    return int(_UINT.unpack(value)[0]) if value is not None and len(value) == _UINT.size else default


def _number(kind: int, value: int) -> bytes:
    return netlink.emit_attribute(kind, _UINT.pack(value))
