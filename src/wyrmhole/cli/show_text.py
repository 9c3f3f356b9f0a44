"""Format a `DeviceStatus` like wg(8), for `show` and `showconf`. Pure: the time is an argument.

The tests compare each format with the output of `wg` byte for byte, except `show all FIELD`: it has the interface's
name in every line, like wireguard-tools since 1.0.20250521; older versions omit it for some fields.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import cast

from wyrmhole.control.uapi.format import emit_prefix
from wyrmhole.device.status import DeviceStatus, DropCounts, PeerStatus
from wyrmhole.protocol.drops import meaning_of
from wyrmhole.protocol.keys import Key, PublicKey
from wyrmhole.wire.endpoint import Endpoint

RESET, BOLD = "\x1b[0m", "\x1b[1m"
RED, GREEN, YELLOW, CYAN = "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[36m"

_UNITS = ((365 * 86400, "year"), (86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
_SIZES = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def emit_endpoint(endpoint: Endpoint | None, missing: str = "(none)") -> str:
    """Format an endpoint. A scope is written as the name of its interface, if this host has that interface."""
    if endpoint is None:
        return missing
    if not endpoint.scope_id:
        return endpoint.emit()
    try:
        scope = socket.if_indextoname(endpoint.scope_id)
    except OSError:
        scope = str(endpoint.scope_id)
    return f"[{endpoint.host}%{scope}]:{endpoint.port}"


def emit_fwmark(mark: int) -> str:
    return f"0x{mark:x}" if mark else "off"


# Output for people


def pretty_duration(seconds: int) -> str:
    parts = []
    for size, name in _UNITS:
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count} {CYAN}{name}{'' if count == 1 else 's'}{RESET}")
    return ", ".join(parts)


def pretty_ago(then: int, now: int) -> str:
    """Format the time since `then`. Both arguments are wall-clock seconds."""
    if then == now:
        return "Now"
    if then > now:
        return f"({RED}System clock wound backward; connection problems may ensue.{RESET})"
    return f"{pretty_duration(now - then)} ago"


def pretty_bytes(count: int) -> str:
    for size, name in _SIZES:
        if count >= size:
            return f"{count / size:.2f} {CYAN}{name}{RESET}"
    return f"{count} {CYAN}B{RESET}"


def pretty(status: DeviceStatus, now: int, hide_keys: bool = True) -> str:
    """Return the output of `wg show NAME` in colour. The peer with the latest handshake comes first."""
    lines = [f"{RESET}{GREEN}{BOLD}interface{RESET}: {GREEN}{status.name}{RESET}"]
    lines += [f"  {BOLD}{name}{RESET}: {value}" for name, value in _interface_lines(status, hide_keys)]
    for peer in sorted(status.peers, key=lambda peer: peer.last_handshake, reverse=True):
        lines += ["", f"{YELLOW}{BOLD}peer{RESET}: {YELLOW}{peer.public_key.base64()}{RESET}"]
        lines += [f"  {BOLD}{name}{RESET}: {value}" for name, value in _peer_lines(peer, now, hide_keys)]
    return "".join(f"{line}\n" for line in lines)


def plain(text: str) -> str:
    """Remove the colours."""
    for code in (RESET, BOLD, RED, GREEN, YELLOW, CYAN):
        text = text.replace(code, "")
    return text


def _masked(key: Key, hide_keys: bool) -> str:
    return "(hidden)" if hide_keys else key.base64()


def _interface_lines(status: DeviceStatus, hide_keys: bool) -> Iterator[tuple[str, str]]:
    if status.private_key is not None:
        yield "public key", status.private_key.public_key().base64()
        yield "private key", _masked(status.private_key, hide_keys)
    if status.listen_port:
        yield "listening port", str(status.listen_port)
    if status.fwmark:
        yield "fwmark", emit_fwmark(status.fwmark)


def _peer_lines(peer: PeerStatus, now: int, hide_keys: bool) -> Iterator[tuple[str, str]]:
    if not peer.preshared_key.is_zero:
        yield "preshared key", _masked(peer.preshared_key, hide_keys)
    if peer.endpoint is not None:
        yield "endpoint", emit_endpoint(peer.endpoint)
    prefixes = (emit_prefix(prefix).replace("/", f"{CYAN}/{RESET}") for prefix in peer.allowed_ips)
    yield "allowed ips", ", ".join(prefixes) or "(none)"
    if peer.last_handshake[0]:
        yield "latest handshake", pretty_ago(peer.last_handshake[0], now)
    if peer.rx_bytes or peer.tx_bytes:
        yield "transfer", f"{pretty_bytes(peer.rx_bytes)} received, {pretty_bytes(peer.tx_bytes)} sent"
    if peer.persistent_keepalive:
        yield "persistent keepalive", f"every {pretty_duration(peer.persistent_keepalive)}"


# Output for scripts


def _key_or_none(key: Key | None) -> str:
    return "(none)" if key is None or key.is_zero else key.base64()


def _public_key(status: DeviceStatus) -> str:
    return "(none)" if status.private_key is None else status.private_key.public_key().base64()


def _allowed_ips(peer: PeerStatus, separator: str) -> str:
    return separator.join(map(emit_prefix, peer.allowed_ips)) or "(none)"


def _keepalive(peer: PeerStatus) -> str:
    return str(peer.persistent_keepalive) if peer.persistent_keepalive else "off"


INTERFACE_FIELDS: dict[str, Callable[[DeviceStatus], str]] = {
    "public-key": _public_key,
    "private-key": lambda status: _key_or_none(status.private_key),
    "listen-port": lambda status: str(status.listen_port),
    "fwmark": lambda status: emit_fwmark(status.fwmark),
}

PEER_FIELDS: dict[str, Callable[[PeerStatus], tuple[str, ...]]] = {
    "peers": lambda peer: (),
    "preshared-keys": lambda peer: (_key_or_none(peer.preshared_key),),
    "endpoints": lambda peer: (emit_endpoint(peer.endpoint),),
    "allowed-ips": lambda peer: (_allowed_ips(peer, " "),),
    "latest-handshakes": lambda peer: (str(peer.last_handshake[0]),),
    "persistent-keepalive": lambda peer: (_keepalive(peer),),
    "transfer": lambda peer: (str(peer.rx_bytes), str(peer.tx_bytes)),
}

FIELDS = (*INTERFACE_FIELDS, *PEER_FIELDS, "dump")


def field_text(status: DeviceStatus, field: str, with_name: bool) -> str:
    """Return the output of `wg show NAME FIELD`, or of `wg show all FIELD` if `with_name`. Raises KeyError."""
    start = (status.name,) if with_name else ()
    return "".join("\t".join((*start, *row)) + "\n" for row in _rows(status, field))


def _rows(status: DeviceStatus, field: str) -> Iterable[tuple[str, ...]]:
    if field == "dump":
        return _dump_rows(status)
    if field in INTERFACE_FIELDS:
        return [(INTERFACE_FIELDS[field](status),)]
    return [(peer.public_key.base64(), *PEER_FIELDS[field](peer)) for peer in status.peers]


def _dump_rows(status: DeviceStatus) -> Iterator[tuple[str, ...]]:
    yield (
        _key_or_none(status.private_key),
        _public_key(status),
        str(status.listen_port),
        emit_fwmark(status.fwmark),
    )
    for peer in status.peers:
        yield (
            peer.public_key.base64(),
            _key_or_none(peer.preshared_key),
            emit_endpoint(peer.endpoint),
            _allowed_ips(peer, ","),
            str(peer.last_handshake[0]),
            str(peer.rx_bytes),
            str(peer.tx_bytes),
            _keepalive(peer),
        )


def drops_text(name: str, counts: DropCounts | None, peers: Iterable[PublicKey]) -> str:
    """Return the output of `show --drops` for one interface: a line for each reason, with its meaning."""
    lines = [f"{RESET}{GREEN}{BOLD}interface{RESET}: {GREEN}{name}{RESET}"]
    if counts is None:
        lines += [f"  the daemon of {name} does not report what it drops"]
        return "".join(f"{line}\n" for line in lines)
    lines += list(_drop_lines(counts.total)) or ["  nothing was dropped"]
    for key in peers:
        if drops := counts.peers.get(key):
            lines += ["", f"{YELLOW}{BOLD}peer{RESET}: {YELLOW}{key.base64()}{RESET}", *_drop_lines(drops)]
    return "".join(f"{line}\n" for line in lines)


def _drop_lines(drops: Mapping[str, int]) -> Iterator[str]:
    """Yield a line for each reason, the most frequent first."""
    width = max(map(len, drops), default=0)
    for name, count in sorted(drops.items(), key=lambda item: (-item[1], item[0])):
        yield f"  {BOLD}{name}{RESET}{' ' * (width - len(name))} {count:>8}  {meaning_of(name)}".rstrip()


def drops_json(document: dict[str, object], counts: DropCounts | None, peers: Iterable[PublicKey]) -> dict[str, object]:
    """Add `drops` to the document of `as_json`: null if the daemon does not report them."""
    entries = cast("list[dict[str, object]]", document["peers"])
    for peer, key in zip(entries, peers, strict=True):
        peer["drops"] = None if counts is None else dict(counts.peers.get(key, {}))
    return document | {"drops": None if counts is None else dict(counts.total)}


def as_json(status: DeviceStatus) -> dict[str, object]:
    """Return the fields of `dump` without secret keys, for `--json`. Times are seconds since 1970, null for never."""
    return {
        "name": status.name,
        "public_key": None if status.private_key is None else _public_key(status),
        "listen_port": status.listen_port,
        "fwmark": status.fwmark,
        "peers": [_peer_json(peer) for peer in status.peers],
    }


def _peer_json(peer: PeerStatus) -> dict[str, object]:
    return {
        "public_key": peer.public_key.base64(),
        "has_preshared_key": not peer.preshared_key.is_zero,
        "endpoint": None if peer.endpoint is None else emit_endpoint(peer.endpoint),
        "allowed_ips": [emit_prefix(prefix) for prefix in peer.allowed_ips],
        "latest_handshake": peer.last_handshake[0] or None,
        "rx_bytes": peer.rx_bytes,
        "tx_bytes": peer.tx_bytes,
        "persistent_keepalive": peer.persistent_keepalive,
    }


# Configuration files


def configuration(status: DeviceStatus) -> str:
    """Return the output of `wg showconf NAME`."""
    sections = ["\n".join(["[Interface]", *_interface_keys(status), ""])]
    sections += ["\n".join(["[Peer]", *_peer_keys(peer), ""]) for peer in status.peers]
    return "\n".join(sections) + ("" if status.peers else "\n")


def _interface_keys(status: DeviceStatus) -> Iterator[str]:
    if status.listen_port:
        yield f"ListenPort = {status.listen_port}"
    if status.fwmark:
        yield f"FwMark = {emit_fwmark(status.fwmark)}"
    if status.private_key is not None:
        yield f"PrivateKey = {status.private_key.base64()}"


def _peer_keys(peer: PeerStatus) -> Iterator[str]:
    yield f"PublicKey = {peer.public_key.base64()}"
    if not peer.preshared_key.is_zero:
        yield f"PresharedKey = {peer.preshared_key.base64()}"
    if peer.allowed_ips:
        yield f"AllowedIPs = {', '.join(map(emit_prefix, peer.allowed_ips))}"
    if peer.endpoint is not None:
        yield f"Endpoint = {emit_endpoint(peer.endpoint)}"
    if peer.persistent_keepalive:
        yield f"PersistentKeepalive = {peer.persistent_keepalive}"
