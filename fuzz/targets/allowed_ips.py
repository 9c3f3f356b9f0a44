"""The trie, compared with a table that is searched from end to end."""

from __future__ import annotations

from fuzz.reader import Reader
from tests.support.naive_table import NaiveTable
from wyrmhole.datapath.allowed_ips import AllowedIPs
from wyrmhole.wire.prefix import Prefix

_OWNERS = "abcd"


def read_prefix(reader: Reader) -> Prefix:
    """Read a prefix. Few bits differ between prefixes, so that they nest, fork and coincide."""
    shape = reader.byte()
    bits = 32 if shape & 1 else 128
    length = reader.byte() % (bits + 1)
    pattern = reader.byte() if shape & 2 else reader.integer(4)
    network = pattern << (bits - 8 if shape & 2 else bits - 32)
    if shape & 4:
        network |= shape >> 3
    return Prefix(4 if bits == 32 else 6, network >> (bits - length) << (bits - length), length)


def check_shape(table: AllowedIPs[str]) -> None:
    """Check that a node without an owner has two children, and that children extend their parent's prefix."""
    for trie in (table._v4, table._v6):
        pending = [trie.root] if trie.root is not None else []
        while pending:
            node = pending.pop()
            children = [child for child in (node.left, node.right) if child is not None]
            assert node.value is not None or len(children) == 2
            for child in children:
                assert child.parent is node and child.length > node.length
                assert not (child.network ^ node.network) >> (trie.bits - node.length)
            pending += children


def TestOneInput(data: bytes) -> None:
    """After any operations, lookups, owners, lists and sizes equal the naive table's, and the trie has its shape."""
    reader = Reader(data)
    table: AllowedIPs[str] = AllowedIPs()
    naive = NaiveTable()
    probes: list[Prefix] = []
    for _ in range(60):
        if reader.is_done:
            break
        action = reader.byte()
        owner = _OWNERS[action >> 2 & 3]
        prefix = probes[action >> 4] if action & 3 == 1 and action >> 4 < len(probes) else read_prefix(reader)
        probes.append(prefix)
        apply(table, naive, action & 3, prefix, owner)
    check(table, naive, probes)
    check_shape(table)


def apply(table: AllowedIPs[str], naive: NaiveTable, action: int, prefix: Prefix, owner: str) -> None:
    if action in (0, 2):
        table.insert(prefix, owner)
        naive.entries.pop(prefix, None)
        naive.entries[prefix] = owner
    elif action == 1:
        had = naive.entries.get(prefix) == owner
        assert table.remove(prefix, owner) is had
        if had:
            del naive.entries[prefix]
    else:
        table.remove_owner(owner)
        naive.entries = {kept: by for kept, by in naive.entries.items() if by != owner}


def check(table: AllowedIPs[str], naive: NaiveTable, probes: list[Prefix]) -> None:
    assert len(table) == len(naive.entries)
    for owner in _OWNERS:
        assert list(table.prefixes(owner)) == [prefix for prefix, by in naive.entries.items() if by == owner]
    for prefix in probes:
        assert table.owner(prefix) == naive.entries.get(prefix)
        last = prefix.network | ((1 << (prefix.bits - prefix.length)) - 1)
        for address in (prefix.network, last):
            packed = address.to_bytes(prefix.bits // 8, "big")
            assert table.lookup(packed) == naive.lookup(prefix.version, address)
